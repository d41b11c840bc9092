"""mofang.engine.base.Embedder over a child with onnxruntime; none of it is imported here."""

import asyncio
import tomllib
from collections.abc import Callable, Sequence
from importlib.resources import files
from typing import Any

from mofang.engine.base import Engine, Purpose
from mofang.engine.onnx.known import knows
from mofang.engine.prefixes import normalised, prefixes
from mofang.engine.worker.embed import WorkerEmbedder
from mofang.engine.worker.process import WorkerProcess
from mofang.errors import Invalid
from mofang.messages import Progress
from mofang.models.base import ModelRef
from mofang.platform import BESIDE_CHAT, lower_priority
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

    prefix = prefixes(ref)
    configuration = {
        "engine": "onnx",
        "cache": str(settings.home / "cache" / "onnx"),
        "dtype": dtype,
        "n_ctx": ENCODER_CTX,
        "sample": [normalised(ref, prefix["passage"] + text) for text in sample()],
    }
    process = await WorkerProcess.load("mofang.engine.onnx.child", configuration, ref, settings, progress)
    lower_priority(process.pid, BESIDE_CHAT)  # a folder being read must not take the speed of an answer

    def given(texts: Sequence[str], purpose: Purpose) -> dict[str, Any]:
        return {"texts": [normalised(ref, prefix[purpose] + text) for text in texts]}

    rounded_badly = process.said["dtype"] != dtype
    notices = (say("engine.onnx_float32", model=ref.name),) if rounded_badly else ()
    return WorkerEmbedder(ref, process, engine="onnx", asked=given, notices=notices)


def sample() -> list[str]:
    """Texts in both languages, each a few lines."""
    told = tomllib.loads(files("mofang.engine").joinpath("passages.toml").read_text(encoding="utf-8"))
    texts = (" ".join(text.split()) for text in told["passages"])
    return [text[at : at + SAMPLE_LENGTH] for text in texts for at in range(0, len(text), SAMPLE_LENGTH)][:40]
