"""What is embedded and indexed for a chunk: headings, lead, text. One place, so that both legs see the same.

In simplified characters, as the query is: embedders know them better, and a query in either finds either (docs/log.md,
2026-11-25).
"""

import hashlib
from collections.abc import Sequence

from mofang.knowledge.loaders.build import stem
from mofang.text.fold import simplified
from mofang.text.words import words

MAX_HEADINGS = 100
"""Characters; of a longer path the innermost headings stay, so that a chunk never outgrows the embedder."""
MAX_LEAD = 120
"""Characters of a header row or question that are repeated; splitters leave room for them."""


def passage(headings: Sequence[str], text: str, lead: str = "") -> str:
    """The headings, outermost first, on a line of their own, what the text was cut away from, then the text."""
    path = " > ".join(headings)
    if len(path) > MAX_HEADINGS:
        path = "…" + path[-MAX_HEADINGS:]
    return simplified("\n".join(part for part in (path, short_lead(lead), text) if part))


def short_lead(lead: str) -> str:
    """A header row or question at the length that is repeated."""
    return lead if len(lead) <= MAX_LEAD else lead[: MAX_LEAD - 1] + "…"


def title_words(title: str, name: str) -> list[str]:
    """What every chunk of a document is found by: its title and its file's name."""
    return words(f"{title} {stem(name)}")


def indexed(title: Sequence[str], passage: str) -> str:
    """The words that a passage is found by, parted by spaces; `title`: its document's `title_words`."""
    return " ".join([*title, *words(passage)])


def digest(passage: str) -> bytes:
    """Identity of a passage: equal passages share one vector."""
    return hashlib.sha256(passage.encode()).digest()
