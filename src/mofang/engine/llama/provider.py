"""How a model is to be served, in our words, and the words of each build of llama.cpp's server for it.

Two providers of the same server: the wheel `xllamacpp` (instant, AVX2) and a build for this CPU (mofang.engine.build).
`PARAMETERS` is the one table of what each calls a thing.
"""

import asyncio
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from mofang.engine import profile
from mofang.engine.profile import Choices, Profile
from mofang.models.base import ModelRef
from mofang.platform import memory
from mofang.settings import Settings
from mofang.strings import say

CPU_BATCH = 128
"""Tokens of a prompt that a CPU computes before llama.cpp looks up: for a stop, and for who else is being answered.

With llama.cpp's 2048 a stopped prompt held its slot for 27 s, with 128 for 1.1 s, at the same prompt speed (131 and
127 tokens/s; 64: 121, 32: 111; Qwen2.5-0.5B Q4_K_M, 2 cores with AVX2, 2026-11-24).
"""
PROMPT_CACHE_SHARE = 16
"""Part of the memory that is free at the start that a server may keep prompts of other conversations in. llama.cpp's
own limit, 8 GiB a server whatever the machine has, is beyond many laptops."""
DRAFTS = "ngram-simple"
"""llama.cpp's way of guessing from the text so far that suits a server. "ngram-map-k" remembers across requests how often
a guess was right, by the place in the text: after another prompt in the same slot it hardly guesses any more (seven
grounded answers in turn, Qwen2.5-0.5B: 39 tokens/s without, 43 with ngram-map-k:3:8, 87 with ngram-simple:8:24)."""
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
    projector: str = ""
    """The GGUF with which a chat model sees images; "": it does not."""
    slot_folder: str = ""
    """Where POST /slots/{id}?action=save writes a slot's key-value cache; "": nowhere."""
    choices: Choices = field(default_factory=Choices)
    """What tuning found for this model on this machine."""

    @property
    def generates(self) -> bool:
        return not (self.embedding or self.reranking)

    @property
    def draft(self) -> tuple[str, int, int] | None:
        """(type, tokens looked for, tokens drafted) of speculation."""
        kind, _, numbers = self.choices.speculative.partition(":")
        found, _, drafted = numbers.partition(":")
        return (kind, int(found), int(drafted)) if kind == DRAFTS else None


Flags = Callable[[Any], list[str]]


def _flag(name: str) -> Flags:
    return lambda value: [name, str(value)]


def _switch(on: str = "", off: str = "") -> Flags:
    return lambda value: [flag] if (flag := on if value else off) else []


@dataclass(frozen=True, slots=True)
class Parameter:
    """One thing that a server is told. A `value` of None leaves it at llama.cpp's default."""

    value: Callable[[Launch], Any]
    wheel: str
    """xllamacpp's name, steps joined with dots; "": it is told in another way."""
    native: Flags
    """llama-server's flags."""
    cpu_only: bool = False
    """Not where llama.cpp sees a GPU."""


def _draft(part: int) -> Callable[[Launch], Any]:
    return lambda launch: launch.draft[part] if launch.draft else None


PARAMETERS = (
    Parameter(lambda it: it.path, "model.path", _flag("--model")),
    Parameter(lambda it: it.name, "model_alias", _flag("--alias")),
    Parameter(lambda it: "127.0.0.1", "hostnames", _flag("--host")),
    Parameter(lambda it: it.key, "api_keys", lambda value: []),  # the native server reads it from its environment
    Parameter(lambda it: "localhost", "cors_origins", _flag("--cors-origins")),
    Parameter(lambda it: False, "ui", _switch(off="--no-ui")),
    Parameter(lambda it: it.n_ctx * it.n_slots, "n_ctx", _flag("--ctx-size")),
    # every slot has its own n_ctx, whoever else is there
    Parameter(lambda it: False, "kv_unified", _switch(off="--no-kv-unified")),
    Parameter(lambda it: it.n_slots, "n_parallel", _flag("--parallel")),
    # nothing is dropped from a conversation in silence
    Parameter(lambda it: False, "ctx_shift", _switch(off="--no-context-shift")),
    Parameter(lambda it: True, "endpoint_slots", _switch(on="--slots")),
    # llama.cpp keeps prompts without the adapter that read them: another one would go on from them.
    Parameter(lambda it: 0 if it.adapters else _spare_mib(), "cache_ram_mib", _flag("--cache-ram")),
    Parameter(lambda it: it.choices.n_threads or it.n_threads, "cpuparams.n_threads", _flag("--threads")),
    Parameter(
        lambda it: it.choices.n_threads_batch or it.n_threads, "cpuparams_batch.n_threads", _flag("--threads-batch")
    ),
    Parameter(lambda it: it.projector or None, "mmproj.path", _flag("--mmproj")),
    Parameter(lambda it: list(it.adapters) or None, "lora_adapters", lambda value: ["--lora", ",".join(value)]),
    Parameter(
        lambda it: True if it.adapters else None, "lora_init_without_apply", _switch(on="--lora-init-without-apply")
    ),
    Parameter(
        lambda it: it.slot_folder.rstrip("/") + "/" if it.slot_folder else None,
        "slot_save_path",
        _flag("--slot-save-path"),
    ),
    Parameter(lambda it: None if it.generates else True, "embedding", _switch(on="--embedding")),
    Parameter(lambda it: POOLING_RANK if it.reranking else None, "pooling_type", lambda value: ["--reranking"]),
    Parameter(lambda it: None if it.generates else it.n_batch, "n_batch", _flag("--batch-size")),
    Parameter(lambda it: None if it.generates else it.n_batch, "n_ubatch", _flag("--ubatch-size")),
    Parameter(
        lambda it: it.choices.n_batch or CPU_BATCH if it.generates else None,
        "n_batch",
        _flag("--batch-size"),
        cpu_only=True,
    ),
    Parameter(
        lambda it: it.choices.n_batch or CPU_BATCH if it.generates else None,
        "n_ubatch",
        _flag("--ubatch-size"),
        cpu_only=True,
    ),
    Parameter(
        lambda it: None if it.choices.flash_attn == "auto" else it.choices.flash_attn,
        "flash_attn_type",
        _flag("--flash-attn"),
    ),
    Parameter(lambda it: _unless(it.choices.cache_type, "f16"), "cache_type_k", _flag("--cache-type-k")),
    Parameter(lambda it: _unless(it.choices.cache_type, "f16"), "cache_type_v", _flag("--cache-type-v")),
    Parameter(_draft(0), "speculative.types", _flag("--spec-type")),
    Parameter(_draft(1), "speculative.ngram_simple.size_n", _flag("--spec-ngram-simple-size-n")),
    Parameter(_draft(2), "speculative.ngram_simple.size_m", _flag("--spec-ngram-simple-size-m")),
)


def _spare_mib() -> int:
    return memory().available // PROMPT_CACHE_SHARE // (1 << 20)


def _unless(value: str, default: str) -> str | None:
    return None if value == default else value


def told(launch: Launch, *, cpu_only: bool) -> list[tuple[Parameter, Any]]:
    """The parameters that are not left to llama.cpp, each with its value."""
    chosen = [(parameter, parameter.value(launch)) for parameter in PARAMETERS if parameter.cpu_only is cpu_only]
    return [(parameter, value) for parameter, value in chosen if value is not None]


class Provider(Protocol):
    """A build of llama.cpp's server."""

    name: str

    @property
    def version(self) -> str:
        """Changes whenever the build does; profiles are kept by it."""
        ...

    def check(self) -> None:
        """Raises MissingSystem, with the cure, when this machine cannot run it: before a child dies of it."""
        ...

    def start(self, launch: Launch, log: Path) -> "subprocess.Popen[bytes]": ...

    async def address(self, child: "subprocess.Popen[bytes]") -> str:
        """Where it listens, once it has loaded the model; "" when it ended before that."""
        ...

    def library(self) -> Path | None:
        """The file with llama.cpp's C interface (library.py); None where the build has none."""
        ...


def describe(provider: Provider) -> str:
    return f"{provider.name} {provider.version}"


def choose(home: Path, wanted: str = "auto") -> Provider:
    """The native build where a proven one for this CPU is there, else the wheel. Raises MissingSystem."""
    from mofang.engine import build
    from mofang.engine.llama.native import Native
    from mofang.engine.llama.wheel import Wheel
    from mofang.errors import MissingSystem

    found = None if wanted == "wheel" else build.current(home)
    if found is not None:
        return Native(found)
    if wanted == "native":
        raise MissingSystem("engine.no_build", why=say(build.reason(home)))
    return Wheel()


def tuned(settings: Settings, ref: ModelRef) -> tuple[Provider, Profile | None]:
    """The provider that suits this machine, and what tuning found for a model with it. Raises MissingSystem."""
    provider = choose(settings.home, settings.llama_build)
    return provider, profile.load(settings.home, ref, describe(provider))


async def poll(child: "subprocess.Popen[bytes]", ready: Callable[[], Any], every_s: float) -> bool:
    """Ask `ready` (an awaitable's maker) again and again: True when it says so, False when the child has ended."""
    while child.poll() is None:
        if await ready():
            return True
        await asyncio.sleep(every_s)
    return False
