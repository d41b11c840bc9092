"""An embedder without a model, for tests: vectors of hashed character bigrams, so that similar texts are near."""

import itertools
import zlib
from collections.abc import Callable, Sequence

import numpy as np

from mofang.engine.base import EngineInfo, Purpose, Vectors
from mofang.errors import TooLarge
from mofang.messages import Progress
from mofang.models.base import ModelRef
from mofang.settings import Settings
from mofang.text.fold import fold

DIMENSIONS = 512
"""Enough that few pairs share one: what has no pair in common is far apart."""
N_CTX = 8192


async def load(ref: ModelRef, settings: Settings, *, progress: Callable[[Progress], None]) -> "HashEmbedder":
    progress(Progress("load", 1, 1))
    return HashEmbedder(ref.name)


class HashEmbedder:
    """mofang.engine.base.Embedder. A token is a character."""

    dimensions = DIMENSIONS

    def __init__(self, name: str = "hash") -> None:
        self._name = name
        self._alive = True

    def info(self) -> EngineInfo:
        return EngineInfo(self._name, "hash", "embedding", N_CTX, 8, pid=None, memory_bytes=0)

    def alive(self) -> bool:
        return self._alive

    async def close(self) -> None:
        self._alive = False

    async def tokenize(self, text: str) -> list[int]:
        return [ord(character) for character in text]

    async def embed(self, texts: Sequence[str], purpose: Purpose) -> Vectors:
        rows = np.zeros((len(texts), DIMENSIONS), dtype=np.float32)
        for number, text in enumerate(texts):
            if len(text) > N_CTX:
                values = {"number": number, "text": text[:40] + "…", "n_tokens": len(text), "n_ctx": N_CTX}
                raise TooLarge("engine.text_too_long", **values)
            folded = f" {fold(text)} "
            for pair in itertools.pairwise(folded):
                rows[number, zlib.crc32("".join(pair).encode("utf-8", "replace")) % DIMENSIONS] += 1.0
        norms: Vectors = np.linalg.norm(rows, axis=1, keepdims=True).astype(np.float32)
        return rows / norms
