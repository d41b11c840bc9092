"""What a training needs: hours and memory, from the runs that are stored on this machine (`mofang plan train`).

A run is like another when it teaches the same base by the same method, changing the same weights in the same type.
"""

from dataclasses import dataclass
from datetime import datetime
from math import log
from pathlib import Path
from statistics import median
from typing import Any

from mofang.errors import NotFound
from mofang.recipes import METHODS, Recipe
from mofang.runs import Run, Runs, State
from mofang.strings import say

ALIKE = ("base", "tune", "quantize_base", "dtype")
"""Fields of a recipe that decide how fast a token is learned, and in how much memory."""


@dataclass(frozen=True, slots=True)
class TrainingPlan:
    """The answer, and what it was drawn from."""

    method: str
    base: str
    tune: str
    tokens: int
    workers: int
    tokens_per_s: float
    """Of all workers together: the median of the runs with as many, or with the nearest number."""
    hours: float
    least_hours: float
    """By the fastest and the slowest of those runs."""
    most_hours: float
    beside: float
    """What loading, evaluating and saving took in the newest of them, as a part of its steps' time."""
    memory_bytes: int
    """Of each worker: the most that any of those runs took."""
    runs: list[str]
    notes: list[str]


@dataclass(frozen=True, slots=True)
class _Past:
    run: Run
    recipe: Recipe
    state: State
    rate: float
    workers: int
    memory_bytes: int
    """Of each worker; 0: not known."""

    @property
    def kind(self) -> tuple[Any, ...]:
        return tuple(getattr(self.recipe, name, "") for name in ALIKE)


def plan(tokens: int, home: Path, *, method: str = "sft", base: str = "", workers: int = 1) -> TrainingPlan:
    """How long so many tokens take. `base` "": that of the newest such run.

    Raises UnknownName for a method that is none, NotFound where nothing like it has run here.
    """
    METHODS.get(method)
    known = [past for run in Runs(home).list() if (past := _past(run, method))]
    fitting = [past for past in known if base in ("", past.kind[0])]
    if not known:
        raise NotFound("plan.no_runs", method=method)
    if not fitting:
        bases = ", ".join(sorted({str(past.kind[0]) for past in known}))
        raise NotFound("plan.no_runs_of_base", method=method, base=base, known=bases)
    newest = fitting[0]
    alike = [past for past in fitting if past.kind == newest.kind]
    near = min({past.workers for past in alike}, key=lambda count: (abs(log(count / workers)), count))
    used = [past for past in alike if past.workers == near]
    gain, note = _gain(alike, near, workers)
    rates = [past.rate * gain for past in used]
    hours, least, most = (round(tokens / rate / 3600, 3) for rate in (median(rates), max(rates), min(rates)))
    return TrainingPlan(
        method=method, base=str(newest.kind[0]), tune=str(newest.kind[1]), tokens=tokens, workers=workers,
        tokens_per_s=round(median(rates), 2), hours=hours, least_hours=least, most_hours=most, beside=_beside(used[0]),
        memory_bytes=max(past.memory_bytes for past in used), runs=[past.run.id for past in used],
        notes=[note] if note else [],
    )  # fmt: skip


def _past(run: Run, method: str) -> _Past | None:
    """What a finished training of that method showed."""
    state = run.state()
    if state.kind != method or state.status != "done" or not state.result.get("tokens_per_s"):
        return None
    workers = int(state.result.get("processes") or 1)
    peak = int(state.result.get("peak_memory_bytes") or 0)
    return _Past(run, run.recipe(), state, float(state.result["tokens_per_s"]), workers, peak // workers)


def _gain(alike: list[_Past], near: int, workers: int) -> tuple[float, str]:
    """How many times faster so many workers are than `near`, and what is to be said of it.

    Where two numbers of workers were measured, speed goes on with the power of their number that it went by between
    them; else every worker is taken to bring as much as the first, which none does.
    """
    if near == workers:
        return 1.0, ""
    by_count = {past.workers: [each.rate for each in alike if each.workers == past.workers] for past in alike}
    others = [count for count in by_count if count != near]
    if not others:
        return workers / near, say("plan.workers_assumed", workers=workers, near=near)
    other = max(others)
    power = log(median(by_count[other]) / median(by_count[near])) / log(other / near)
    power = min(1.0, max(0.0, power))
    return (workers / near) ** power, say("plan.workers_drawn", counts=", ".join(map(str, sorted(by_count))))


def _beside(past: _Past) -> float:
    """0 where it was resumed: then only its last part's time is known."""
    steps = sum(row["seconds"] for row in past.run.metrics() if "seconds" in row)
    began, ended = (datetime.fromisoformat(at) for at in (past.state.started_at, past.state.ended_at))
    return round(max(0.0, (ended - began).total_seconds() / steps - 1), 3) if steps else 0.0
