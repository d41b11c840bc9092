"""Which builds of llama.cpp's server there are, and how each is told the same things.

Now: the wheel `xllamacpp` (instant, AVX2). A native build of the same server gets a second entry, with the flags
that it knows these parameters by.
"""

import importlib.util
import sys
from dataclasses import dataclass

from mofang.errors import MissingSystem
from mofang.platform import has_avx2, has_library, memory

CPU_BATCH = 128
"""Tokens of a prompt that a CPU computes before llama.cpp looks up: for a stop, and for who else is being answered.

With llama.cpp's 2048 a stopped prompt held its slot for 27 s, with 128 for 1.1 s, at the same prompt speed (131 and
127 tokens/s; 64: 121, 32: 111; Qwen2.5-0.5B Q4_K_M, 2 cores with AVX2, 2026-11-24).
"""
PROMPT_CACHE_SHARE = 16
"""Part of the memory that is free at the start that a server may keep prompts of other conversations in. llama.cpp's
own limit, 8 GiB a server whatever the machine has, is beyond many laptops."""
POOLING_RANK = 4
"""llama.cpp's pooling type of rerankers (llama.h: LLAMA_POOLING_TYPE_RANK)."""


@dataclass(frozen=True, slots=True)
class Launch:
    """How a model is to be served, in our words. Tokens, and numbers of threads."""

    path: str
    name: str
    """How the server speaks of the model: not by its path."""
    key: str
    n_ctx: int
    """For each slot."""
    n_slots: int
    n_batch: int
    """Tokens that an embedder or a reranker computes together; an encoder must fit a whole text into it."""
    n_threads: int
    embedding: bool = False
    reranking: bool = False
    adapters: tuple[str, ...] = ()
    """LoRA adapters as GGUF files, loaded beside the model; their place here is their id. None is applied unless a
    request names it ("lora": [{"id": 0, "scale": 1.0}])."""
    slot_folder: str = ""
    """Where POST /slots/{id}?action=save writes a slot's key-value cache; "": nowhere."""


def wheel_parameters(launch: Launch) -> dict[str, object]:
    """The launch as xllamacpp's parameter names. What is not named stays at llama.cpp's default.

    Layers for a GPU are among those: llama.cpp fits them where it sees one (not run here for want of a GPU).
    """
    parameters: dict[str, object] = {
        "model.path": launch.path,
        "model_alias": [launch.name],
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
        # llama.cpp keeps prompts without the adapter that read them: another one would go on from them.
        "cache_ram_mib": 0 if launch.adapters else memory().available // PROMPT_CACHE_SHARE // (1 << 20),
        "cpuparams.n_threads": launch.n_threads,
        "cpuparams_batch.n_threads": launch.n_threads,
    }
    if launch.adapters:
        parameters |= {"lora_adapters": list(launch.adapters), "lora_init_without_apply": True}
    if launch.slot_folder:
        parameters["slot_save_path"] = launch.slot_folder.rstrip("/") + "/"
    if launch.embedding or launch.reranking:
        parameters |= {"embedding": True, "n_batch": launch.n_batch, "n_ubatch": launch.n_batch}
    if launch.reranking:
        parameters["pooling_type"] = POOLING_RANK
    return parameters


def without_gpu(launch: Launch) -> dict[str, object]:
    """What goes over these parameters where there is no GPU."""
    if launch.embedding or launch.reranking:
        return {}
    return {"n_batch": CPU_BATCH, "n_ubatch": CPU_BATCH}


def check_wheel() -> None:
    """Raise MissingSystem, with the cure, when this machine cannot run the wheel: before a child dies of it."""
    if has_avx2() is False:
        raise MissingSystem("engine.no_avx2")
    if sys.platform == "linux" and not has_library("libgomp.so.1"):
        raise MissingSystem("engine.no_libgomp")
    if importlib.util.find_spec("xllamacpp") is None:
        raise MissingSystem("engine.no_wheel", python=sys.executable)
