"""What this machine has, what is missing, and what to type: the checks behind `mofang doctor`.

One check = one function in CHECKS. None of them changes anything or loads a model.
"""

import asyncio
import importlib.metadata
import importlib.util
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from mofang.errors import MofangError
from mofang.launch import home
from mofang.platform import describe, free_disk, has_avx2, has_library, memory, n_cores
from mofang.settings import Settings
from mofang.strings import say

GB = 1e9


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report. `cure` is what to type, empty when all is well."""

    name: str
    status: Literal["ok", "note", "missing"]
    found: str
    cure: str = ""


def examine(settings: Settings) -> list[Finding]:
    """Every check in turn; one that fails with an error of ours is a finding, too."""
    findings: list[Finding] = []
    for check in CHECKS:
        try:
            findings.extend(check(settings))
        except MofangError as error:
            findings.append(Finding(check.__name__.strip("_"), "missing", error.message(), error.hint()))
    return findings


def _system(settings: Settings) -> Iterable[Finding]:
    machine = describe()
    yield Finding("system", "ok", f"{machine['system']} {machine['machine']}, Python {machine['python']}")


def _cpu(settings: Settings) -> Iterable[Finding]:
    avx2 = has_avx2()
    if avx2 is False:
        yield Finding("cpu", "missing", say("launch.no_avx2"), say("launch.no_avx2_cure"))
    else:
        yield Finding("cpu", "ok", say("launch.cpu", cores=n_cores(), avx2="AVX2" if avx2 else "-"))


def _memory(settings: Settings) -> Iterable[Finding]:
    has = memory()
    enough = has.available > 2 * GB
    found = say("launch.memory", total=f"{has.total / GB:.1f}", available=f"{has.available / GB:.1f}")
    yield Finding("memory", "ok" if enough else "note", found, "" if enough else say("launch.memory_low_cure"))


def _disk(settings: Settings) -> Iterable[Finding]:
    free = free_disk(settings.home)
    enough = free > 3 * GB
    found = say("launch.disk", free=f"{free / GB:.1f}", path=settings.home)
    yield Finding("disk", "ok" if enough else "note", found, "" if enough else say("launch.disk_low_cure"))


def _libgomp(settings: Settings) -> Iterable[Finding]:
    if sys.platform == "linux" and not has_library("libgomp.so.1"):
        yield Finding("libgomp", "missing", say("launch.no_libgomp"), "sudo apt-get install libgomp1")


def _llama(settings: Settings) -> Iterable[Finding]:
    try:
        version = importlib.metadata.version("xllamacpp")
    except importlib.metadata.PackageNotFoundError:
        yield Finding("llama.cpp", "missing", say("launch.no_wheel"), f"{sys.executable} -m pip install xllamacpp")
    else:
        yield Finding("llama.cpp", "ok", f"xllamacpp {version} (llama.cpp b{version.rsplit('.', 1)[-1]})")


def _pip(settings: Settings) -> Iterable[Finding]:
    if importlib.util.find_spec("pip") is None:
        yield Finding("pip", "note", say("launch.no_pip"), f"{sys.executable} -m ensurepip")
    else:
        yield Finding("pip", "ok", importlib.metadata.version("pip"))


def _extras(settings: Settings) -> Iterable[Finding]:
    has_torch = importlib.util.find_spec("torch") is not None
    yield Finding("torch", "ok" if has_torch else "note", say("launch.torch" if has_torch else "launch.no_torch"))


def _home(settings: Settings) -> Iterable[Finding]:
    home.prepare(settings.home)
    owner = home.find(settings.home)
    found = say("launch.owned", url=owner.url, pid=owner.pid) if owner else say("launch.not_owned")
    yield Finding("gateway", "ok", found)


def _models(settings: Settings) -> Iterable[Finding]:
    from mofang.models.store import ModelStore

    names = [ref.name for ref in ModelStore(settings).list()]
    cure = "" if names else "mofang models catalog; mofang models pull NAME"
    yield Finding("models", "ok" if names else "note", ", ".join(names) or "-", cure)


def _sources(settings: Settings) -> Iterable[Finding]:
    from mofang.models.sources import SOURCES

    async def probe(name: str) -> bool:
        return bool(await SOURCES.get(name)(settings).probe())

    async def all_of_them(names: list[str]) -> list[bool]:
        return await asyncio.gather(*(probe(name) for name in names))

    names = ["pypi", "huggingface", "modelscope"]
    for name, answers in zip(names, asyncio.run(all_of_them(names)), strict=True):
        found = say("launch.source_answers" if answers else "launch.source_silent")
        yield Finding(name, "ok" if answers else "note", found, "" if answers else say("launch.source_cure"))


CHECKS: tuple[Callable[[Settings], Iterable[Finding]], ...] = (
    _system, _cpu, _memory, _disk, _libgomp, _llama, _pip, _extras, _home, _models, _sources,
)  # fmt: skip
