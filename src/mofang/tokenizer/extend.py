"""Add Chinese tokens to a model's tokenizer, so that old ids, and how text without Chinese is cut, stay.

How it is done depends on the base's kind (mofang.tokenizer.EXTENDERS); here is what both share: the plan, the result,
which new pieces are let in, and the folder that is written.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mofang.errors import Invalid
from mofang.tokenizer import EXTENDERS
from mofang.tokenizer.base import Tokenizer
from mofang.tokenizer.scripts import SCRIPTS

RECORD = "extension.json"
"""In the folder of an extended tokenizer: what it was made from, and how."""
MAX_CHARACTERS = 8
"""Longest new piece; longer ones are phrases of the training text, not words (guess, not studied)."""
SCRIPT = ("han", "all")
UNREACHABLE = ("drop", "complete", "keep")

Lines = Callable[[], Iterator[str]]
Tell = Callable[[str, int, int], None]
"""(stage, done, total)."""


@dataclass(frozen=True, slots=True)
class Plan:
    """size: pieces to learn; fewer are added where the base has some. script: "han" lets in Chinese pieces only.

    unreachable (SentencePiece): pieces that a BPE can never produce are dropped, completed (their beginnings are added
    too), or kept as Chinese-LLaMA kept them. vocabulary: a SentencePiece model to merge instead of learning one.
    """

    size: int = 10_000
    script: str = "han"
    unreachable: str = "drop"
    vocabulary: Tokenizer | None = None


@dataclass(frozen=True, slots=True)
class Extension:
    """The new tokenizer; its ids below `n_old` are the base's. `dropped`: pieces that were not let in, being dead;
    `n_short`: how many fewer than were wished, the texts holding no more."""

    tokenizer: Tokenizer
    n_old: int
    method: str
    n_completed: int = 0
    dropped: list[str] = field(default_factory=list)
    n_short: int = 0

    @property
    def n_added(self) -> int:
        return self.tokenizer.n_vocab - self.n_old


def plan(
    base: Tokenizer, *, size: int, script: str, unreachable: str, vocabulary: Tokenizer | None, path: str = ""
) -> Plan:
    """What was wished, checked. Raises Invalid for an unknown word, or a vocabulary of another kind than the base."""
    for name, value, known in (("script", script, SCRIPT), ("unreachable", unreachable, UNREACHABLE)):
        if value not in known:
            raise Invalid("core.unknown_name", param=name, kind=name, name=value, known=", ".join(known), near=known[0])
    if vocabulary and not (base.backend.kind() == "sp-bpe" and vocabulary.backend.kind().startswith("sp-")):
        raise Invalid(
            "tokenizer.not_a_vocabulary",
            param="vocabulary",
            path=path,
            kind=vocabulary.backend.kind(),
            wanted=base.backend.kind(),
        )
    return Plan(size, script, unreachable, vocabulary)


def extend(base: Tokenizer, lines: Lines, plan: Plan, tell: Tell = lambda stage, done, total: None) -> Extension:
    """Raises UnknownName for a kind of tokenizer that cannot be extended, MissingExtra; Invalid when nothing was found
    to add."""
    made: Extension = EXTENDERS.get(base.backend.kind())(base, lines, plan, tell)
    if not made.n_added:
        raise Invalid("tokenizer.nothing_added", param="texts")
    return made


def save(extension: Extension, folder: Path, **record: Any) -> None:
    """Write the tokenizer's files and the record of its making."""
    extension.tokenizer.save(folder)
    about = {
        "method": extension.method,
        "n_old": extension.n_old,
        "n_vocab": extension.tokenizer.n_vocab,
        "n_completed": extension.n_completed,
        "dropped": extension.dropped,
        **record,
    }
    (folder / RECORD).write_text(json.dumps(about, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def fits(text: str, script: str) -> bool:
    """Whether a piece of whole characters is let in: for "han", Chinese characters and marks, at least one its own.

    Marks that other languages use too (“ — …) only beside those, so that text without Chinese is cut as before.
    """
    if not text or len(text) > MAX_CHARACTERS:
        return False
    if script == "all":
        return True
    own = [_own(character) for character in text]
    return any(own) and all(mine or SCRIPTS["cjk_marks"].match(letter) for mine, letter in zip(own, text, strict=True))


def fits_bytes(data: bytes, script: str) -> bool:
    """The same of a byte-level piece, which may also be the beginning of one character, and nothing before it."""
    try:
        return fits(data.decode(), script)
    except UnicodeDecodeError:
        pass
    width = 4 if data[0] >= 0xF0 else 3 if data[0] >= 0xE0 else 2 if data[0] >= 0xC2 else 0
    missing = width - len(data)
    if missing <= 0 or len(data) < 2:  # a first byte alone begins characters of several scripts
        return False
    try:
        ends = [(data + fill * missing).decode() for fill in (b"\x80", b"\xbf")]
    except UnicodeDecodeError:
        return False
    return script == "all" or all(len(end) == 1 and _own(end) for end in ends)


def _own(character: str) -> bool:
    """Chinese characters, and the marks and full-width forms that no other script uses."""
    return (
        bool(SCRIPTS["han"].match(character)) or "\u3000" <= character <= "\u303f" or "\uff00" <= character <= "\uffef"
    )
