"""How a model runs best on this machine: what `mofang engine tune` measured, kept by model, machine and llama.cpp build.

A profile changes speed, never answers: what would change them (a quantized key-value cache) is only in it on request.
"""

import hashlib
import json
import platform as _platform
import uuid
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from mofang.models.base import ModelRef
from mofang.platform import cpu_flags, cpu_name, n_cores

AUTO_SLOTS = 4
"""Slots that are enough where nobody chose and nothing was measured: each costs the memory of a whole context."""
FlashAttention = Literal["auto", "on", "off"]


@dataclass(frozen=True, slots=True)
class Choices:
    """What is chosen. Each default leaves the matter to llama.cpp, or to Mofang's own defaults."""

    flash_attn: FlashAttention = "auto"
    n_threads: int = 0
    """For the tokens of an answer; 0: one a core."""
    n_threads_batch: int = 0
    """For the tokens of a prompt; 0: one a core."""
    n_batch: int = 0
    """Tokens of a prompt computed together, between two looks at who wants to stop; 0: Mofang's default."""
    cache_type: str = "f16"
    """Of keys and values. Anything but f16 changes answers, and saves memory."""
    speculative: str = ""
    """Drafts guessed from the text so far, as "type:n:m" ("ngram-simple:8:24": what followed the last 8 tokens before,
    at most 24 of it); "": none. Accepted only where the model itself would have said so."""
    n_slots: int = 0
    """Answers at once, where there is memory for them and the setting leaves it open; 0: AUTO_SLOTS."""

    def words(self) -> dict[str, Any]:
        """The choices that are not the default."""
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}


@dataclass(frozen=True, slots=True)
class Step:
    """One question that was put to the machine: the champion so far against one change. Speeds in tokens a second."""

    change: dict[str, Any]
    """Fields of Choices and the values that were tried."""
    champion: dict[str, float]
    challenger: dict[str, float]
    gain: float
    """Time of the mix with the champion / with the challenger; 1.2 is a fifth faster."""
    noise: float
    """How far `gain` wanders between rounds."""
    taken: bool


@dataclass(frozen=True, slots=True)
class Profile:
    """What was chosen for one model, and why."""

    model: str
    choices: Choices
    mix: str
    provider: str
    """Name and version of the llama.cpp build that it holds for."""
    made_at: str = ""
    brief: bool = False
    """Made by itself in an idle moment, with fewer questions."""
    seconds: float = 0.0
    steps: list[Step] = field(default_factory=list)
    speeds: dict[str, float] = field(default_factory=dict)
    """Of the choices: prompt, answer, quoting; tokens a second."""
    together: dict[str, float] = field(default_factory=dict)
    """Answers at once → tokens a second, all of them together; empty where that was not asked."""
    agreement: dict[str, float] = field(default_factory=dict)
    """mean_kl, same_top, n_tokens against the model with nothing rounded, and `defaults_mean_kl`: how far the defaults are
    from it; empty where the defaults were kept."""
    notes: list[str] = field(default_factory=list)


def model_key(ref: ModelRef) -> str:
    """What tells this model's file from every other: its digest, or, where none was computed, place, size and time."""
    if ref.sha256:
        return ref.sha256[:16]
    stat = ref.path.stat()
    return hashlib.sha256(f"{ref.path}\0{stat.st_size}\0{stat.st_mtime_ns}".encode()).hexdigest()[:16]


def machine_key() -> str:
    """The CPU, its abilities and how many cores we may use."""
    abilities = " ".join(sorted(cpu_flags()))
    return hashlib.sha256(f"{_platform.machine()}\0{cpu_name()}\0{abilities}\0{n_cores()}".encode()).hexdigest()[:12]


def _path(home: Path, ref: ModelRef, provider: str) -> Path:
    build = hashlib.sha256(provider.encode()).hexdigest()[:8]
    return home / "engine" / "profiles" / f"{model_key(ref)}-{machine_key()}-{build}.json"


def load(home: Path, ref: ModelRef, provider: str) -> Profile | None:
    """The profile of this model, on this machine, with this build; None where there is none or it cannot be read."""
    try:
        values = json.loads(_path(home, ref, provider).read_text(encoding="utf-8"))
        steps = [Step(**step) for step in values.pop("steps")]
        return Profile(**{**values, "choices": Choices(**values.pop("choices")), "steps": steps})
    except (OSError, ValueError, TypeError, KeyError):
        return None  # one of an older layout, too: it is measured again


def save(home: Path, ref: ModelRef, profile: Profile) -> Path:
    """Keep a profile; it takes the place of the one before."""
    path = _path(home, ref, profile.provider)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{uuid.uuid4().hex}")
    aside.write_text(json.dumps(asdict(profile), ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    aside.replace(path)
    return path


def forget(home: Path, ref: ModelRef, provider: str) -> None:
    _path(home, ref, provider).unlink(missing_ok=True)


def changed(choices: Choices, change: dict[str, Any]) -> Choices:
    """The choices with a change laid over them."""
    return replace(choices, **change)
