"""What `mofang engine info` and GET /v1/engine tell: the machine, which llama.cpp runs here and why, what was tuned."""

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from mofang.engine import build, profile
from mofang.engine.llama.provider import choose, describe
from mofang.errors import MofangError
from mofang.models.base import ModelRef
from mofang.platform import cpu_flags, cpu_name, n_cores, n_threads
from mofang.settings import Settings
from mofang.strings import say

TOLD = (
    "avx2",
    "fma",
    "f16c",
    "avx_vnni",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "amx_tile",
    "amx_int8",
    "asimd",
    "sve",
)
"""Abilities of a CPU that decide how fast it computes a model."""


def status(config: Settings, models: Iterable[ModelRef], lang: str) -> dict[str, Any]:
    abilities = cpu_flags()
    told: dict[str, Any] = {
        "machine": {
            "cpu": cpu_name(),
            "cores": n_cores(),
            "threads": n_threads(),
            "abilities": [name for name in TOLD if name in abilities],
        },
        "wanted": config.llama_build,
        "builds": [_build(one, lang) for one in build.builds(config.home)],
    }
    try:
        provider = choose(config.home, config.llama_build)
        provider.check()
    except MofangError as error:
        return {**told, "provider": None, "why": error.message(lang), "profiles": []}
    named = describe(provider)
    why = (
        say(build.reason(config.home), lang=lang) if provider.name != "native" and config.llama_build == "auto" else ""
    )
    known = [(ref, profile.load(config.home, ref, named)) for ref in models if ref.format == "gguf"]
    return {**told, "provider": named, "why": why, "profiles": [asdict(one) for _, one in known if one]}


def _build(one: build.Build, lang: str) -> dict[str, Any]:
    told = asdict(one)
    notes = [say(note, lang=lang) for note in one.notes]
    return {**told, "folder": str(one.folder), "notes": notes, "proven": one.proven, "fits": build.fits(one)}
