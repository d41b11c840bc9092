"""Texts that a quantizer watches a model read: the user's own, or Mofang's documentation, as the model meets texts.

Conversations are rendered with the model's chat template; rows follow one another and are cut into sequences of the same
length, so nothing is padded. What a model is used for is what it should be watched at: texts of another language make
it worse, and are warned of.
"""

import hashlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mofang.data import handbook, readers
from mofang.data.rows import Conversation, Document, Row
from mofang.errors import Unreadable
from mofang.models.base import ModelRef
from mofang.runs import Run
from mofang.strings import say
from mofang.tokenizer import Tokenizer
from mofang.tokenizer import load as load_tokenizer
from mofang.tokenizer.scripts import script_of

POOL = 64
"""Characters for each token wanted, among which rows are drawn; what lies beyond is not read."""
MIN_TOKENS = 64
LITTLE_CHINESE = 0.1
"""Share of Chinese among letters below which a calibration is warned of."""
OURS = "mofang"
"""Stands for Mofang's own texts, among the user's or alone."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """Sequences to read, and what they are."""

    ids: NDArray[np.int64]
    """(n_sequences, length)."""
    han: float
    """Share of Chinese characters among letters."""
    sources: tuple[str, ...]

    def manifest(self) -> dict[str, Any]:
        """What a manifest says of them."""
        n, length = self.ids.shape
        return {
            "sha256": self.digest, "n_sequences": n, "length": length, "han": round(self.han, 3),
            "sources": list(self.sources),
        }  # fmt: skip

    @property
    def digest(self) -> str:
        """SHA-256 of the ids."""
        return hashlib.sha256(self.ids.astype("<i8").tobytes()).hexdigest()


class Asked(Protocol):
    """Of a recipe: what is to be read."""

    calibration: list[str]
    samples: int
    length: int
    seed: int


def of(recipe: Asked, base: ModelRef, run: Run) -> Calibration:
    """The texts that a recipe asks for, and what the user must know of them said. Raises as `read`."""
    texts = read(
        recipe.calibration, load_tokenizer(base.path), samples=recipe.samples, length=recipe.length, seed=recipe.seed
    )
    n, length = texts.ids.shape
    run.note(say("export.calibration", n=n, length=length, tokens=n * length, han=f"{texts.han:.0%}"))
    if 2 * n * length < recipe.samples * recipe.length:
        run.note(say("export.calibration_short", tokens=n * length, wanted=recipe.samples * recipe.length))
    if texts.han < LITTLE_CHINESE:
        run.note(say("export.calibration_no_chinese", han=f"{texts.han:.0%}"))
    return texts


def read(data: Sequence[str], tokenizer: Tokenizer, *, samples: int, length: int, seed: int) -> Calibration:
    """At most `samples` sequences of `length` tokens. Raises NotFound, Unreadable as readers; Unreadable for too few."""
    wanted = samples * length
    texts: list[str] = []
    n_characters = 0
    for row in _rows(data):
        for text in _texts(row, tokenizer, 4 * length):
            texts.append(text)
            n_characters += len(text)
        if n_characters > POOL * wanted:
            break
    random.Random(seed).shuffle(texts)
    ids: list[int] = []
    used = 0
    while used < len(texts) and len(ids) < wanted:
        some = texts[used : used + 64]
        for found in tokenizer.encode_batch(some):
            ids += [*tokenizer.begin(), *found]
        used += len(some)
    length = min(length, len(ids))
    if len(ids) < MIN_TOKENS:
        raise Unreadable("export.calibration_empty", sources=", ".join(data), n=len(ids), least=MIN_TOKENS)
    n = min(samples, len(ids) // length)
    cut = np.array(ids[: n * length], np.int64).reshape(n, length)
    scripts = [script_of(character) for text in texts[:used] for character in text]
    han, latin = scripts.count("han"), scripts.count("latin")
    return Calibration(cut, han / max(1, han + latin), tuple(data) or (OURS,))


def _rows(data: Sequence[str]) -> Iterator[Row]:
    for path in data or (OURS,):
        if path == OURS:
            yield from handbook.sections()
            yield from handbook.code()
            continue
        for file in readers.files_of(Path(path).expanduser())[0]:
            yield from readers.rows(file, readers.Layout())


def _texts(row: Row, tokenizer: Tokenizer, most: int) -> Iterator[str]:
    """A conversation as the model reads it; a document in pieces of about `most` characters, so that rows are mixed."""
    if isinstance(row, Document):
        piece = ""
        for line in row.text.splitlines(keepends=True):
            piece += line
            if len(piece) >= most:
                yield piece
                piece = ""
        if piece.strip():
            yield piece
        return
    messages = row.messages if isinstance(row, Conversation) else [*row.prompt, *row.chosen]
    if tokenizer.chat_template:
        yield tokenizer.render(messages, add_generation_prompt=False, tools=row.tools)
    else:
        yield "\n\n".join(str(message.content) for message in messages)
