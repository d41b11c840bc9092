"""What so many people need: replicas of a model, from what tuning measured on this machine (`mofang plan serve`).

Nothing is typed in that can be measured: speeds are the model's profile's (mofang.engine.profile) and, where there is
one, its newest bench's at that length of prompt; lengths are those of the answers in the log of requests. What was not
measured is assumed, and said. A replica is a machine like this one, with the model alone on it.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from statistics import mean
from typing import Any

from mofang.engine.llama.provider import describe, tuned
from mofang.engine.profile import AUTO_SLOTS, Profile
from mofang.errors import Invalid, NotFound
from mofang.knowledge.evaluate import percentile
from mofang.launch.queueing import Crowd, Lengths, Outcome, Service, Speeds, among, around, simulate
from mofang.models.base import ModelRef
from mofang.models.store import ModelStore
from mofang.platform import cpu_name, memory, n_cores
from mofang.runs import Runs
from mofang.settings import Settings
from mofang.strings import say

PROMPT, ANSWER = 800, 200
"""Tokens, where nothing is known of what people ask here: a question with a few passages, a paragraph in answer. A guess."""
SEEN, FEWEST_SEEN = 2000, 50
"""Answers in the log of requests that are looked at, the newest; fewer than the second tell nothing of the longest."""
TOLD = 0.95
"""The percentile that is asked for."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What a person wants to know. None: what is seen here, or else the default."""

    users: int
    think_s: float
    ttft_s: float
    """95 of 100 first tokens are to come within it."""
    prompt_tokens: int | None = None
    answer_tokens: int | None = None
    model: str = "auto"


@dataclass(frozen=True, slots=True)
class Row:
    """What so many replicas come to."""

    replicas: int
    ttft_p50_s: float
    ttft_p95_s: float
    tokens_per_s_each: float
    """As somebody sees it who reads an answer: the median."""
    tokens_per_s: float
    """Of all replicas together."""
    busy: float
    """Share of the slots that are taken, on average."""


@dataclass(frozen=True, slots=True)
class ServingPlan:
    """The answer, and what it was drawn from."""

    model: str
    asked: Asked
    prompt_tokens: float
    """On average; those that a cache holds are not among them."""
    answer_tokens: float
    replicas: int
    """The fewest with which the wish comes true."""
    slots: int
    rows: list[Row]
    """What was tried, ascending; one replica less and one more than `replicas` are among it."""
    memory_bytes: int
    """Of each replica, and what this machine has."""
    machine_bytes: int
    sources: list[str]
    notes: list[str]


@dataclass(frozen=True, slots=True)
class _Known:
    """What this machine has stored of a model."""

    speeds: Speeds
    slots: int
    sources: list[str]
    notes: list[str]


def plan(asked: Asked, settings: Settings, *, tell: Callable[[int], None] = lambda replicas: None) -> ServingPlan:
    """The fewest replicas with which 95 of 100 first tokens come in time. `tell` hears how many are being tried.

    Raises NotFound for a model that was not measured, Invalid for a wish that no number of replicas fulfils.
    """
    models = ModelStore(settings)
    ref = models.resolve(asked.model, "chat")
    lengths, prompt, answer, whence = _lengths(asked, settings.home)
    known = _known(settings, ref, round(prompt))
    crowd = Crowd(asked.users, asked.think_s, lengths)
    service = Service(1, known.slots, known.speeds)
    outcomes: dict[int, Outcome] = {}

    def never(least: float) -> Invalid:
        return Invalid(
            "plan.never", param="--p95-ttft", wanted=f"{asked.ttft_s:g}", least=f"{least:.2g}", prompt=round(prompt),
            speed=f"{known.speeds.prompt:.0f}", model=ref.name,
        )  # fmt: skip

    alone = _reading_alone(known.speeds, lengths)
    if alone > asked.ttft_s:
        raise never(alone)

    def p95(replicas: int) -> float:
        if replicas not in outcomes:
            tell(replicas)
            outcomes[replicas] = simulate(replace(service, replicas=replicas), crowd)
        return percentile(outcomes[replicas].ttft, TOLD)

    fewest = fewest_for(p95, asked.ttft_s, most=asked.users)
    if fewest is None:
        raise never(p95(asked.users))
    for number in range(max(1, fewest - 1), fewest + 2):
        p95(number)
    return ServingPlan(
        model=ref.name, asked=asked, prompt_tokens=prompt, answer_tokens=answer, replicas=fewest, slots=known.slots,
        rows=[_row(number, outcomes[number]) for number in sorted(outcomes)],
        memory_bytes=models.memory(ref, settings.n_ctx, known.slots).total, machine_bytes=memory().total,
        sources=[*known.sources, whence], notes=known.notes,
    )  # fmt: skip


def fewest_for(p95: Callable[[int], float], wanted: float, *, most: int) -> int | None:
    """The smallest number, up to `most`, with which `p95` is within `wanted`; None when not even `most` are enough.

    Doubles until it is, then halves the gap: `p95` is dear.
    """
    low, high = 0, 1
    while p95(high) > wanted:
        if high == most:
            return None
        low, high = high, min(2 * high, most)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if p95(middle) <= wanted else (middle, high)
    return high


def _reading_alone(speeds: Speeds, lengths: Lengths) -> float:
    """Seconds that 95 of 100 prompts take at most where nobody else asks: no number of replicas is faster."""
    random = Random(0)
    return percentile([lengths(random)[0] / speeds.prompt for _ in range(SEEN)], TOLD)


def _row(replicas: int, found: Outcome) -> Row:
    return Row(
        replicas, ttft_p50_s=round(percentile(found.ttft, 0.5), 4), ttft_p95_s=round(percentile(found.ttft, TOLD), 4),
        tokens_per_s_each=round(percentile(found.speeds, 0.5), 2) if found.speeds else 0.0,
        tokens_per_s=round(found.tokens_per_s, 2), busy=round(found.busy, 4),
    )  # fmt: skip


# ---- what is stored ----


def _known(settings: Settings, ref: ModelRef, n_prompt: int) -> _Known:
    """Raises NotFound where tuning has not measured the model with the build that runs here."""
    provider, found = tuned(settings, ref) if ref.format == "gguf" and ref.path.is_file() else (None, None)
    if provider is None or found is None:
        raise NotFound("plan.not_tuned", name=ref.name)
    machine = {"cpu": cpu_name() or "?", "cores": str(n_cores()), "provider": found.provider}
    sources = [say("plan.from_profile", model=ref.name, when=found.made_at[:16], **machine)]
    notes = [] if found.together else [say("plan.crowd_unknown", model=ref.name)]
    prompt, together = found.speeds["prompt"], _together(found)
    if bench := _bench(settings.home, ref, describe(provider), n_prompt):
        row, run = bench
        prompt = row["prompt_per_second"]
        slower = row["predicted_per_second"] / together[1]
        together = {count: rate * min(1.0, slower) for count, rate in together.items()}
        sources.append(say("plan.from_bench", run=run, n_ctx=row["n_ctx"]))
    slots = settings.n_slots or found.choices.n_slots or AUTO_SLOTS
    batch = {"n_batch": found.choices.n_batch} if found.choices.n_batch else {}
    return _Known(Speeds(prompt, together, **batch), slots, sources, notes)


def _together(found: Profile) -> dict[int, float]:
    """Answers at once → tokens a second; where only one was measured, any number share its speed."""
    return {int(count): rate for count, rate in found.together.items()} or {1: found.speeds["answer"]}


def _bench(home: Path, ref: ModelRef, provider: str, n_prompt: int) -> tuple[dict[str, Any], str] | None:
    """The row of the newest bench of that model and build whose context is nearest, and the run's id."""
    for run in Runs(home).list():
        state = run.state()
        result = state.result
        same = state.kind == "bench" and (result.get("model"), result.get("provider")) == (ref.name, provider)
        if same and result.get("rows"):
            return min(result["rows"], key=lambda row: abs(row["n_ctx"] - n_prompt)), run.id
    return None


def _lengths(asked: Asked, home: Path) -> tuple[Lengths, float, float, str]:
    """Lengths of prompts and answers, their means, and in words where they are from."""
    seen = seen_lengths(home / "logs") if None in (asked.prompt_tokens, asked.answer_tokens) else []
    if len(seen) < FEWEST_SEEN:
        prompt = asked.prompt_tokens if asked.prompt_tokens is not None else PROMPT
        answer = asked.answer_tokens if asked.answer_tokens is not None else ANSWER
        given = None not in (asked.prompt_tokens, asked.answer_tokens)
        words = say("plan.lengths_given") if given else say("plan.lengths_default", n=len(seen), needed=FEWEST_SEEN)
        return around(prompt, answer), prompt, answer, words
    means = [mean(each) for each in zip(*seen, strict=True)]
    wanted = [asked.prompt_tokens or means[0], asked.answer_tokens or means[1]]
    scaled = [(max(1, round(p * wanted[0] / means[0])), max(1, round(a * wanted[1] / means[1]))) for p, a in seen]
    return among(scaled), wanted[0], wanted[1], say("plan.lengths_seen", n=len(seen))


def seen_lengths(logs: Path) -> list[tuple[int, int]]:
    """(tokens of a prompt that no cache held, tokens of its answer) of the newest answers in the logs of requests."""
    found: list[tuple[int, int]] = []
    files = sorted(logs.glob("requests.jsonl*"), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in files:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        found += [pair for line in reversed(lines) if (pair := _pair(line))]
        if len(found) >= SEEN:
            break
    return found[:SEEN]


def _pair(line: str) -> tuple[int, int] | None:
    """None for a line that is no answer, or that is being written."""
    try:
        told = json.loads(line)
        prompt, answer = int(told["prompt_tokens"]) - int(told["cached_tokens"]), int(told["completion_tokens"])
    except (ValueError, KeyError, TypeError):
        return None
    return (max(1, prompt), answer) if answer > 0 else None
