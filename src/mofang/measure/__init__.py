"""How good a model is, in numbers: over any engine, here or behind HTTP, or over logits. numpy, no torch.

The sets that come with Mofang lie in sets/; `load_set` reads those and the user's own.
"""

from mofang.measure.evalset import NAMES, EvalSet, load_set, load_text, prompts

__all__ = ["NAMES", "EvalSet", "load_set", "load_text", "prompts"]
