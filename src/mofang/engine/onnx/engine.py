"""mofang.engine.base.Embedder over a child with onnxruntime; none of it is imported here."""

import asyncio
import base64
import tomllib
from collections.abc import Callable, Sequence
from importlib.resources import files

import numpy as np

from mofang.engine import children
from mofang.engine.base import COUNTED, Engine, EngineInfo, Purpose, Vectors
from mofang.engine.onnx.known import knows
from mofang.engine.prefixes import normalised, prefixes
from mofang.engine.worker.process import WorkerProcess
from mofang.errors import Invalid
from mofang.messages import Progress
from mofang.models.base import ModelRef
from mofang.platform import BESIDE_CHAT, lower_priority, n_cores
from mofang.settings import Settings
from mofang.strings import say

ENCODER_CTX = 512
"""Tokens of one text: what BERT-like models are trained for."""
DTYPES = ("int8", "float32")
SAMPLE_LENGTH = 150
"""Characters of each text that the rounding is chosen on."""


async def load(ref: ModelRef, settings: Settings, *, progress: Callable[[Progress], None]) -> Engine:
    """The embedder; in llama.cpp where it is no BERT that is known here. A manifest may hold {"onnx": {"dtype":
    "float32"}}: products of 8-bit integers otherwise."""
    if not await asyncio.to_thread(knows, ref.path):
        from mofang.engine.llama import engine as llama

        return await llama.load(ref, settings, progress=progress)
    dtype = (ref.manifest.get("onnx") or {}).get("dtype", DTYPES[0])
    if dtype not in DTYPES:
        raise Invalid(
            "engine.manifest_value", param="dtype", engine="onnx", name="dtype", value=dtype, known=", ".join(DTYPES)
        )

    report = children.loading(ref, progress)
    report(0)
    prefix = prefixes(ref)
    configuration = {
        "engine": "onnx",
        "path": str(ref.path),
        "cache": str(settings.home / "cache" / "onnx"),
        "dtype": dtype,
        "n_ctx": ENCODER_CTX,
        "n_threads": settings.n_threads or n_cores(),
        "sample": [normalised(ref, prefix["passage"] + text) for text in sample()],
    }
    process = await WorkerProcess.start(
        "mofang.engine.onnx.child",
        configuration,
        model=ref.name,
        log=settings.home / "logs" / f"engine-{ref.name}.log",
        timeout_s=settings.load_timeout_s,
        report=report,
    )
    lower_priority(process.pid, BESIDE_CHAT)  # a folder being read must not take the speed of an answer
    progress(Progress("load", ref.size_bytes, ref.size_bytes, "bytes", detail=ref.name))
    return OnnxEmbedder(ref, process, wanted=dtype)


def sample() -> list[str]:
    """Texts in both languages, each a few lines."""
    told = tomllib.loads(files("mofang.engine").joinpath("passages.toml").read_text(encoding="utf-8"))
    texts = (" ".join(text.split()) for text in told["passages"])
    return [text[at : at + SAMPLE_LENGTH] for text in texts for at in range(0, len(text), SAMPLE_LENGTH)][:40]


class OnnxEmbedder:
    """See the module."""

    def __init__(self, ref: ModelRef, process: WorkerProcess, *, wanted: str) -> None:
        self._ref = ref
        self._process = process
        self._prefixes = prefixes(ref)
        rounded_badly = process.said["dtype"] != wanted
        self._notices = (say("engine.onnx_float32", model=ref.name),) if rounded_badly else ()

    @property
    def dimensions(self) -> int:
        return int(self._process.said["dimensions"])

    def info(self) -> EngineInfo:
        return EngineInfo(
            self._ref.name,
            "onnx",
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
        prefixed = [normalised(self._ref, self._prefixes[purpose] + text) for text in texts]
        answer = await self._process.call("embed", texts=prefixed)
        COUNTED.set(answer["n_tokens"])
        rows = np.frombuffer(base64.b64decode(answer["vectors"]), dtype="<f4")
        return rows.reshape(len(prefixed), self.dimensions).astype(np.float32)

    async def close(self) -> None:
        await self._process.close()
