"""mofang.engine.base.Embedder over a child that answers `embed` and `tokenize`; what it computes with is its own matter."""

import base64
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mofang.engine.base import COUNTED, EngineInfo, Purpose, Vectors
from mofang.engine.worker.process import WorkerProcess
from mofang.errors import TooLarge
from mofang.models.base import ModelRef
from mofang.platform import n_cores

Asked = Callable[[Sequence[str], Purpose], dict[str, Any]]
"""What the child is given for texts: {"texts", …}."""


class WorkerEmbedder:
    """See the module."""

    def __init__(
        self, ref: ModelRef, process: WorkerProcess, *, engine: str, asked: Asked, notices: Sequence[str] = ()
    ) -> None:
        self._ref = ref
        self._process = process
        self._engine = engine
        self._asked = asked
        self._notices = tuple(notices)

    @property
    def dimensions(self) -> int:
        return int(self._process.said["dimensions"])

    def info(self) -> EngineInfo:
        return EngineInfo(
            self._ref.name,
            self._engine,
            "embedding",
            n_ctx=self._process.said["n_ctx"],
            n_slots=n_cores(),
            pid=self._process.pid,
            memory_bytes=self._process.memory_bytes(),
            provider=self._process.said["provider"],
            notices=self._notices,
        )

    def alive(self) -> bool:
        return self._process.alive()

    async def tokenize(self, text: str) -> list[int]:
        return list(await self._process.call("tokenize", text=text))

    async def embed(self, texts: Sequence[str], purpose: Purpose) -> Vectors:
        answer = await self._process.call("embed", **self._asked(texts, purpose))
        COUNTED.set(answer["n_tokens"])
        rows = np.frombuffer(base64.b64decode(answer["vectors"]), dtype="<f4")
        return rows.reshape(len(texts), self.dimensions).astype(np.float32)

    async def close(self) -> None:
        await self._process.close()


# ---- the child's side ----


def answered(vectors: Vectors, n_tokens: int) -> dict[str, Any]:
    """What the child says to `embed`."""
    return {"vectors": base64.b64encode(vectors.astype("<f4").tobytes()).decode(), "n_tokens": n_tokens}


def check_lengths(texts: Sequence[str], lengths: Sequence[int], n_ctx: int) -> None:
    """Raises TooLarge for the first text of more than `n_ctx` tokens."""
    for number, (n_tokens, text) in enumerate(zip(lengths, texts, strict=True)):
        if n_tokens > n_ctx:
            values = {"number": number, "text": text[:40] + "…", "n_tokens": n_tokens, "n_ctx": n_ctx}
            raise TooLarge("engine.text_too_long", **values)
