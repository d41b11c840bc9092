"""Tokens as people can read them: white space that shows, halves of characters as bytes, probabilities in five steps.

Knows nothing of Streamlit. Entries are OpenAI's chat logprobs with ids, as /v1/completions tells them.
"""

import math
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Final

SIGNS: Final = {" ": "␣", "\n": "⏎", "\r": "␍", "\t": "⇥"}
"""What has no picture of its own → the sign that stands for it."""
STEPS: Final = (0.05, 0.2, 0.5, 0.8)
"""Probabilities that part the five shades."""


@dataclass(frozen=True, slots=True)
class Option:
    """A token that could stand at a place."""

    id: int | None
    data: bytes
    logprob: float

    @property
    def probability(self) -> float:
        return math.exp(self.logprob)

    @property
    def text(self) -> str | None:
        """None where it begins or ends within a character."""
        try:
            return self.data.decode()
        except UnicodeDecodeError:
            return None


@dataclass(frozen=True, slots=True)
class Token(Option):
    """A token that was written, and what else could have been."""

    options: tuple[Option, ...] = ()
    """The likeliest, best first; the one that was written is among them only where it was likely."""


def token_of(entry: Mapping[str, Any]) -> Token:
    """One entry of "content"."""
    options = tuple(Option(*_parts(one)) for one in entry.get("top_logprobs") or ())
    return Token(*_parts(entry), options)


def _parts(entry: Mapping[str, Any]) -> tuple[int | None, bytes, float]:
    raw = entry.get("bytes")
    data = bytes(raw) if raw else str(entry.get("token") or "").encode()
    return entry.get("id"), data, float(entry["logprob"])


def joined(tokens: Sequence[Option]) -> str | None:
    """The text that they are together; None where it ends within a character."""
    try:
        return b"".join(token.data for token in tokens).decode()
    except UnicodeDecodeError:
        return None


def legible(data: bytes) -> str:
    """A token's bytes with nothing invisible in them: "␣the", "⏎", "⟨E4 BD⟩" for a part of a character, "∅" for none."""
    text = data.decode("utf-8", errors="surrogateescape")
    return "".join(_runs(text)) or "∅"


def _runs(text: str) -> Iterator[str]:
    for is_part, letters in groupby(text, lambda letter: "\udc80" <= letter <= "\udcff"):
        if is_part:
            yield f"⟨{' '.join(f'{ord(letter) - 0xDC00:02X}' for letter in letters)}⟩"
        else:
            yield from map(_sign, letters)


def _sign(letter: str) -> str:
    if letter in SIGNS:
        return SIGNS[letter]
    if unicodedata.category(letter)[0] in "CZ":
        return f"⟨U+{ord(letter):04X}⟩"
    return letter


def shade(probability: float) -> int:
    """0 (a surprise) to 4 (nearly certain)."""
    return sum(probability >= step for step in STEPS)


def percent(probability: float) -> str:
    """ "97.3%"; what is small keeps two digits that count, and never becomes a plain 0 unless it is one."""
    value = 100 * probability
    if value >= 99.95 or value == 0:
        return f"{value:.0f}%"
    if value >= 1:
        return f"{value:.1f}%"
    return f"{value:.2g}%" if value >= 0.001 else "<0.001%"
