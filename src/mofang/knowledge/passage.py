"""What is embedded and indexed for a chunk: its headings and its text. One place, so that both legs see the same."""

import hashlib
from collections.abc import Sequence

MAX_HEADINGS = 100
"""Characters; of a longer path the innermost headings stay, so that a chunk never outgrows the embedder."""


def passage(headings: Sequence[str], text: str) -> str:
    """The headings, outermost first, on a line of their own, then the text."""
    path = " > ".join(headings)
    if len(path) > MAX_HEADINGS:
        path = "…" + path[-MAX_HEADINGS:]
    return f"{path}\n{text}" if path else text


def digest(passage: str) -> bytes:
    """Identity of a passage: equal passages share one vector."""
    return hashlib.sha256(passage.encode()).digest()
