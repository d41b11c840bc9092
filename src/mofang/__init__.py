"""Mofang (模坊): an open language model, all the way, on your own machine.

Importing this package loads nothing heavy: no torch, no model library, no web framework. The rooms are listed in
docs/architecture.md, with who may import whom.
"""

__version__ = "0.1.0"
