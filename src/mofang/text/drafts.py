"""What all rows that a model drafts for a person to check have in common, whatever they are for: questions about a base,
instructions to teach. Nothing here proves that a row is a good one: that is why each says "checked": false."""

import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

from mofang.text.pairs import bare, pairs_of

MIN_SUPPORT = 0.6
"""Share of an answer's character pairs that must stand in the passage that it rests on; as in knowledge/cite.py."""
SAME = 0.7
"""Two texts that share this part of their character pairs (Jaccard) say the same. Self-instruct's own bound, which is
on the longest common part (ROUGE-L), is the same figure (Wang et al., arXiv 2212.10560)."""

_POINTS = re.compile(
    r"(?:本文|本段|本节|这段|该段|此段|上文|上述|下文|文中|文章中|段落|原文|根据(?:资料|文档|段落))"
    r"|\b(?:this|the|above|following) (?:passage|text|paragraph|document|section|excerpt)\b",
    re.IGNORECASE,
)


def points(text: str) -> bool:
    """Whether it points at a passage ("this text") that its reader will not see."""
    return _POINTS.search(text) is not None


def is_repeated(text: str, others: Iterable[str]) -> bool:
    """Whether one of the others says nearly the same."""
    mine = pairs_of(text)
    return any(len(mine & other) >= SAME * len(mine | other) for other in map(pairs_of, others))


def is_supported(answer: str, passage: str) -> bool:
    """Whether the answer is made of the passage's words."""
    said = pairs_of(answer)
    if not said:  # one character, such as a number
        return bool(bare(answer)) and bare(answer) in bare(passage)
    return len(said & pairs_of(passage)) >= MIN_SUPPORT * len(said)


def read(said: str, names: Sequence[str]) -> dict[str, str] | None:
    """The texts of these names in the JSON object of a model's reply, none empty; None when it is something else."""
    start, end = said.find("{"), said.rfind("}")
    try:
        row = json.loads(said[start : end + 1])
        found = {name: row[name].strip() for name in names}
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    return found if all(found.values()) else None


def whole_lines(raw: bytes) -> list[tuple[int, bytes]]:
    """(number from 1, line) of an earlier run's file; a last line that a kill cut short is not among them."""
    lines = raw.splitlines(keepends=True)
    return [(number, line) for number, line in enumerate(lines, 1) if line.endswith(b"\n")]


def schema(names: Sequence[str]) -> dict[str, Any]:
    """The JSON schema of an object of texts, for engines that keep to one."""
    return {
        "type": "object",
        "properties": {name: {"type": "string"} for name in names},
        "required": list(names),
        "additionalProperties": False,
    }
