"""Which builds of llama.cpp's server there are, and how each is told the same things.

Now: the wheel `xllamacpp` (instant, AVX2). A native build of the same server gets a second entry, with the flags
that it knows these parameters by.
"""

import importlib.util
import sys
from dataclasses import dataclass

from mofang.errors import MissingSystem
from mofang.platform import has_avx2, has_library

POOLING_RANK = 4
"""llama.cpp's pooling type of rerankers (llama.h: LLAMA_POOLING_TYPE_RANK)."""


@dataclass(frozen=True, slots=True)
class Launch:
    """How a model is to be served, in our words. Tokens, and numbers of threads."""

    path: str
    key: str
    n_ctx: int
    """For each slot."""
    n_slots: int
    n_batch: int
    """Tokens computed together; an encoder must fit a whole text into it."""
    n_threads: int
    embedding: bool = False
    reranking: bool = False


def wheel_parameters(launch: Launch) -> dict[str, object]:
    """The launch as xllamacpp's parameter names. What is not named stays at llama.cpp's default.

    Layers for a GPU are among those: llama.cpp fits them where it sees one (not run here for want of a GPU).
    """
    parameters: dict[str, object] = {
        "model.path": launch.path,
        "hostnames": ["127.0.0.1"],
        "port": 0,
        "api_keys": [launch.key],
        "cors_origins": "localhost",
        "ui": False,
        "n_ctx": launch.n_ctx * launch.n_slots,
        "kv_unified": False,  # every slot has its own n_ctx, whoever else is there
        "n_parallel": launch.n_slots,
        "ctx_shift": False,  # nothing is dropped from a conversation in silence
        "endpoint_slots": True,
        "cpuparams.n_threads": launch.n_threads,
        "cpuparams_batch.n_threads": launch.n_threads,
    }
    if launch.embedding or launch.reranking:
        parameters |= {"embedding": True, "n_batch": launch.n_batch, "n_ubatch": launch.n_batch}
    if launch.reranking:
        parameters["pooling_type"] = POOLING_RANK
    return parameters


def check_wheel() -> None:
    """Raise MissingSystem, with the cure, when this machine cannot run the wheel: before a child dies of it."""
    if has_avx2() is False:
        raise MissingSystem("engine.no_avx2")
    if sys.platform == "linux" and not has_library("libgomp.so.1"):
        raise MissingSystem("engine.no_libgomp")
    if importlib.util.find_spec("xllamacpp") is None:
        raise MissingSystem("engine.no_wheel", python=sys.executable)
