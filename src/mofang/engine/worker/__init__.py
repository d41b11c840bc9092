"""Models that need libraries of their own (torch, bindings in C) in a child process of ours: one child a model.

    gateway ── chat.py, process.py ──  JSON lines over loopback, one connection a call  ── serve.py ── calls.py ── Core

What an engine brings is its Core (core.py): ids in, logits out. Sampling, stopping, whole characters, slots and the
protocol are here, once.
"""
