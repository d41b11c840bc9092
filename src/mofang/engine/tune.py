"""How a model runs best on this machine: asked of the machine itself, one change at a time.

A champion (what Mofang does by default) meets one challenger after another. Both are loaded, and measured in turn on
the same work, kind by kind, so that whatever else the machine does hits both alike; a change is taken when the time that
a stated mix of work takes falls by more than the noise. Then the champion must be as true as llama.cpp's defaults are:
both are held against the same model computed in full precision, since the defaults themselves round (flash attention).
Last, how many answers at once bring the most tokens in all.
Sources of the candidates: llama.cpp tools/server/README.md; what each did here: docs/log.md.
"""

import asyncio
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Protocol

from mofang import settings
from mofang.engine import profile
from mofang.engine.agreement import MAX_MEAN_KL, Agreement
from mofang.engine.contestants import ANSWER, CROWD_CONTEXT, FORCED, FRESH, Servers
from mofang.engine.llama.provider import DRAFTS, choose, describe
from mofang.engine.profile import AUTO_SLOTS, Choices, Profile, Step, changed
from mofang.errors import Busy, EngineFailed, Invalid
from mofang.models.base import ModelRef
from mofang.models.store import ModelStore
from mofang.platform import n_cores, n_threads
from mofang.recipes.engine import Tune
from mofang.runs import Reporter, Run
from mofang.settings import Settings
from mofang.strings import say

Speeds = Mapping[str, float]
"""Kind of work → tokens a second."""
Tell = Callable[[str], None]

MIXES: dict[str, dict[str, int]] = {
    "chat": {"prompt": 150, "answer": 300},
    "documents": {"prompt": 1200, "answer": 100, "quoting": 150},
    "both": {"prompt": 1350, "answer": 400, "quoting": 150},
}
"""Tokens of each kind of work; "both" is one chat turn and one question to documents. Prompt: tokens that are not in
the cache. Quoting: tokens of an answer that repeat the prompt."""
WORTH = 0.03
"""A change that gains less than this part of the time is not worth being different from everybody else."""
ROUNDS = (3, 5)
"""Rounds of a duel: at least, at most. It ends early when the gain is beyond the noise, or clearly not there. Who is
measured first changes from round to round; a change that lost even one round is not taken."""
CROWDS = (1, 2, 4, 8)
"""Answers at once."""
CROWD_ROUNDS = 2
LEAST_SLOTS = 2
"""A short question need not wait for a long answer, whatever two at once cost."""
SLOT_WORTH = 0.2
"""More slots that bring less than this part of the speed in all are not worth the memory of their contexts, nor the time
in which it is cleared: eight instead of four cost SmolLM2 750 MB and 1.6 s of its start (docs/log.md)."""
BUDGET_S, BUDGET_BYTES = 90.0, 500_000_000
BRIEF = 0.6
"""Part of the budget that a tuning takes which nobody asked for: enough for the question that gains most."""
NGRAM = f"{DRAFTS}:8:24"
"""Of real grounded answers in Chinese, 8 tokens that were said before went on as before in 93 of 100; with 3 or 4 more
guesses are wrong, and of longer guesses little more is right (docs/log.md)."""
EXACT = Choices(flash_attn="off", cache_type="f32")
"""Nothing is rounded but the weights."""


class Contestant(Protocol):
    """A model, loaded with certain choices."""

    async def measure(self, kind: str) -> float: ...
    async def together(self, count: int) -> float:
        """Tokens a second of `count` answers at once, in all."""
        ...

    async def agrees(self, other: "Contestant") -> Agreement: ...


class Arena(Protocol):
    """Where contestants come from: real servers, or scripted ones in tests."""

    def enter(self, choices: Choices) -> AbstractAsyncContextManager[Contestant]: ...


# ---- the questions ----


def questions(
    champion: Choices, *, cores: int, threads: int, cache_types: Sequence[str] = ()
) -> Iterator[dict[str, Any]]:
    """The changes that may pay, those that usually pay most first. `champion` is asked anew after each answer."""
    yield {"speculative": NGRAM}
    yield {"flash_attn": "off"}
    yield {"n_batch": FRESH}
    fewer = {cores - 1} if cores > 2 else set()  # half the machine was never faster (docs/log.md)
    for number in sorted({threads, *fewer} - {cores}):
        yield {"n_threads": number}
        yield {"n_threads_batch": number}
    for cache_type in cache_types:
        yield {"cache_type": cache_type, "flash_attn": "on"}  # llama.cpp needs it for a quantized cache of values


def kinds_of(change: Mapping[str, Any], mix: Mapping[str, int]) -> list[str]:
    """The kinds of work that a change can make a difference to."""
    prompt_only = set(change) <= {"n_batch", "n_threads_batch"}
    answer_only = set(change) <= {"n_threads", "speculative"}
    return [kind for kind in mix if not (prompt_only and kind != "prompt") and not (answer_only and kind == "prompt")]


def seconds_of(mix: Mapping[str, int], speeds: Speeds) -> float:
    """How long the mix takes; kinds that were not measured are left out."""
    return sum(tokens / speeds[kind] for kind, tokens in mix.items() if speeds.get(kind))


# ---- a duel ----


async def duel(champion: Contestant, challenger: Contestant, change: dict[str, Any], mix: Mapping[str, int], *,
               usual: Speeds, rounds: int = ROUNDS[1]) -> Step:  # fmt: skip
    """Measure both in turn. `usual`: the champion's speeds so far, for the kinds of work that the change leaves alone."""
    kinds = kinds_of(change, mix)
    gains: list[float] = []
    ours: list[dict[str, float]] = []
    theirs: list[dict[str, float]] = []
    while len(gains) < rounds:
        order = [(champion, ours), (challenger, theirs)]
        for speeds in (ours, theirs):
            speeds.append(dict(usual))
        for kind in kinds:
            for contestant, speeds in order if len(gains) % 2 == 0 else reversed(order):
                speeds[-1][kind] = await contestant.measure(kind)
        gains.append(seconds_of(mix, ours[-1]) / seconds_of(mix, theirs[-1]))
        gain, noise = _middle(gains), _spread(gains)
        if len(gains) >= ROUNDS[0] and abs(gain - 1 - WORTH) > 2 * noise:
            break
    taken = gain - 1 > max(WORTH, noise) and min(gains) > 1
    return Step(change, _medians(ours), _medians(theirs), round(gain, 4), round(noise, 4), taken)


def _middle(values: Sequence[float]) -> float:
    ordered = sorted(values)
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else math.sqrt(ordered[half - 1] * ordered[half])


def _spread(values: Sequence[float]) -> float:
    return (max(values) - min(values)) / 2


def _medians(rounds: Sequence[Speeds]) -> dict[str, float]:
    return {kind: round(_middle([speeds[kind] for speeds in rounds]), 2) for kind in rounds[0]}


# ---- a tuning ----


@dataclass(slots=True)
class _Costs:
    """Seconds of wall time, as the first contestant took them: what a question will take can be told before it is
    asked."""

    load: float = 0.0
    first: dict[str, float] = field(default_factory=dict)
    """Of each kind of work, what it reads once included."""
    again: dict[str, float] = field(default_factory=dict)

    def duel(self, kinds: Sequence[str], rounds: int) -> float:
        return self.load + sum(self.first[kind] + 2 * rounds * self.again[kind] for kind in kinds)

    def rounds(self, kinds: Sequence[str], left_s: float) -> int:
        """As many as there is time for; 0: too few to learn from."""
        return max((count for count in range(ROUNDS[0], ROUNDS[1] + 1) if self.duel(kinds, count) <= left_s), default=0)

    def proof(self, speeds: Speeds) -> float:
        """Four loads, and four times the forced tokens."""
        return 4 * (self.load + FORCED / speeds["answer"])

    def crowd(self, speeds: Speeds) -> float:
        """As if several at once were no faster in all than one."""
        read = max(CROWDS) * CROWD_CONTEXT / speeds["prompt"]
        return self.load + read + CROWD_ROUNDS * sum(CROWDS) * ANSWER / speeds["answer"]


async def tune(
    arena: Arena,
    *,
    mix: str,
    cores: int,
    threads: int,
    budget_s: float,
    cache_types: Sequence[str] = (),
    tell: Tell = lambda text: None,
    clock: Callable[[], float] = time.monotonic,
) -> Profile:
    """The best choices, and how they were found. `model` and `provider` of the profile are the caller's to fill in.

    What `budget_s` leaves no time for is not asked, and that is said in the notes; the proof is always made.
    """
    work, began = MIXES[mix], clock()
    champion, steps, notes, found = Choices(), [], [], {}
    together: dict[str, float] = {}
    async with _Corner(arena) as corner:
        tell(say("engine.tune_start"))
        try:
            async with asyncio.timeout(budget_s / 2):
                speeds, costs = await _first(corner, champion, work, clock)
        except TimeoutError as error:
            raise Busy("engine.tune_too_busy", seconds=round(budget_s), retry_after_s=60.0) from error
        plain = speeds
        for change in questions(champion, cores=cores, threads=threads, cache_types=cache_types):
            if all(getattr(champion, name) == value for name, value in change.items()):
                continue
            rounds = costs.rounds(kinds_of(change, work), budget_s - (clock() - began) - costs.proof(plain))
            if not rounds:
                notes.append(say("engine.tune_not_asked", change=words(change)))
                continue
            try:
                ours, theirs = await corner.get(champion), await corner.get(changed(champion, change))
                step = await duel(ours, theirs, change, work, usual=speeds, rounds=rounds)
            except EngineFailed as error:
                notes.append(say("engine.tune_failed", change=words(change), why=error.message().split("\n")[0]))
                continue
            steps.append(step)
            tell(told(step))
            if step.taken:
                champion, speeds = changed(champion, change), step.challenger
                await corner.keep(champion)
        if champion != Choices():
            tell(say("engine.tune_proof"))
            found = await _true(corner, arena, champion)
            if not found["passed"] and champion.cache_type == "f16":
                notes.append(say("engine.tune_differs", **found))
                champion, speeds = Choices(), plain
        if clock() - began + costs.crowd(speeds) > budget_s:
            notes.append(say("engine.tune_not_asked", change="n_slots"))
        else:
            await corner.empty()
            step, note, together = await _crowd(arena, champion)
            steps.append(step)
            notes.append(note)
            tell(note)
            if step.taken:
                champion = changed(champion, step.change)
    return Profile(
        "", champion, mix, "", made_at=datetime.now(UTC).isoformat(timespec="seconds"), steps=steps,
        seconds=round(clock() - began, 1), speeds={kind: round(speed, 2) for kind, speed in speeds.items()},
        together=together, agreement=found, notes=notes,
    )  # fmt: skip


async def _first(
    corner: "_Corner", champion: Choices, work: Mapping[str, int], clock: Callable[[], float]
) -> tuple[Speeds, _Costs]:
    """The champion's speeds, and how long things take. Each kind is done twice: the first time also reads a context."""
    costs, speeds, at = _Costs(), {}, clock()
    first = await corner.get(champion)
    costs.load, at = clock() - at, clock()
    for seconds in (costs.first, costs.again):
        for kind in work:
            speeds[kind] = await first.measure(kind)
            seconds[kind], at = clock() - at, clock()
    return speeds, costs


async def _crowd(arena: Arena, champion: Choices) -> tuple[Step, str, dict[str, float]]:
    """How many slots, and what was measured: in a sentence, and as Profile.together."""
    rates: dict[int, list[float]] = {count: [] for count in CROWDS}
    async with arena.enter(changed(champion, {"n_slots": max(CROWDS)})) as crowd:
        await crowd.together(max(CROWDS))  # reads what they answer to
        for number in range(CROWD_ROUNDS):
            for count in CROWDS if number % 2 == 0 else reversed(CROWDS):
                rates[count].append(await crowd.together(count))
    speeds = {count: _middle(found) for count, found in rates.items()}
    enough = (1 - SLOT_WORTH) * max(speeds.values())
    chosen = min(count for count in CROWDS if count >= LEAST_SLOTS and speeds[count] >= enough)
    gain = speeds[chosen] / speeds[AUTO_SLOTS]
    noise = max(_spread(found) / speeds[count] for count, found in rates.items())
    usual, found = ({"together": round(speeds[count], 2)} for count in (AUTO_SLOTS, chosen))
    step = Step({"n_slots": chosen}, usual, found, round(gain, 4), round(noise, 4), chosen != AUTO_SLOTS)
    listed = ", ".join(f"{count}: {speed:.4g}" for count, speed in speeds.items())
    together = {str(count): round(speed, 2) for count, speed in speeds.items()}
    return step, say("engine.tune_slots", listed=listed, n_slots=chosen), together


async def _true(corner: "_Corner", arena: Arena, champion: Choices) -> dict[str, Any]:
    """How far the champion is from the model in full precision, and how far the defaults are."""
    best = await corner.get(champion)
    await corner.empty(but=champion)
    try:
        async with arena.enter(EXACT) as exact:
            ours = await best.agrees(exact)
    except EngineFailed:  # an architecture that computes in no other way: then the defaults are the measure
        async with arena.enter(Choices()) as plain:
            ours = await best.agrees(plain)
        return {**ours.as_dict(), "defaults_mean_kl": 0.0, "passed": ours.mean_kl <= MAX_MEAN_KL}
    await corner.empty()
    async with arena.enter(EXACT) as exact, arena.enter(Choices()) as plain:
        defaults = await plain.agrees(exact)
    passed = ours.mean_kl <= max(MAX_MEAN_KL, defaults.mean_kl)
    return {**ours.as_dict(), "defaults_mean_kl": round(defaults.mean_kl, 7), "passed": passed}


class _Corner:
    """The contestants that are loaded: the champion, and one who asks to be."""

    def __init__(self, arena: Arena) -> None:
        self._arena = arena
        self._open: dict[Choices, tuple[AbstractAsyncContextManager[Contestant], Contestant]] = {}
        self._champion = Choices()

    async def __aenter__(self) -> "_Corner":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.empty()

    async def empty(self, but: Choices | None = None) -> None:
        for choices in [one for one in self._open if one != but]:
            await self._leave(choices)

    async def get(self, choices: Choices) -> Contestant:
        if choices not in self._open:
            for other in [one for one in self._open if one != self._champion]:
                await self._leave(other)
            entering = self._arena.enter(choices)
            self._open[choices] = (entering, await entering.__aenter__())
        return self._open[choices][1]

    async def keep(self, champion: Choices) -> None:
        """Make one of those here the champion; the old one leaves."""
        old, self._champion = self._champion, champion
        await self._leave(old)

    async def _leave(self, choices: Choices) -> None:
        if choices in self._open:
            await self._open.pop(choices)[0].__aexit__(None, None, None)


def words(change: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in change.items())


def told(step: Step) -> str:
    """One step in a line, for people."""
    key = "engine.tune_taken" if step.taken else "engine.tune_left"
    percent = f"{100 * (step.gain - 1):+.1f}"
    speeds = "; ".join(
        f"{kind} {step.champion[kind]:.4g} → {step.challenger[kind]:.4g}"
        for kind in step.champion
        if step.champion[kind] != step.challenger[kind]
    )
    return say(key, change=words(step.change), percent=percent, noise=f"{100 * step.noise:.1f}", speeds=speeds)


# ---- for people and for the pool ----


def budget(ref: ModelRef, asked: float = 0.0) -> float:
    """Seconds that a tuning may take."""
    return asked or BUDGET_S * max(1.0, ref.size_bytes / BUDGET_BYTES)


async def tune_model(
    ref: ModelRef,
    config: Settings,
    *,
    mix: str = "both",
    cache_types: Sequence[str] = (),
    budget_s: float,
    brief: bool = False,
    tell: Tell = lambda text: None,
) -> Profile:
    """Measure a model, and store what was found."""
    if ref.kind not in ("chat", "base") or ref.format != "gguf":
        raise Invalid("engine.cannot_tune", param="model", name=ref.name, kind=ref.kind, format=ref.format)
    provider = choose(config.home, config.llama_build)
    found = await tune(
        Servers(ref, config, provider),
        mix=mix,
        cores=n_cores(),
        threads=n_threads(),
        budget_s=budget_s,
        cache_types=cache_types,
        tell=tell,
    )
    if not found.steps:  # nothing was learnt: as if it had not been asked
        raise Busy("engine.tune_too_busy", seconds=round(budget_s), retry_after_s=60.0)
    found = replace(found, model=ref.name, provider=describe(provider), brief=brief)
    await asyncio.to_thread(profile.save, config.home, ref, found)
    return found


def run(recipe: Tune, run: Run) -> dict[str, Any]:
    """The worker of `mofang engine tune`."""
    config = settings.load()
    ref = ModelStore(config).resolve(recipe.model, "chat")
    report, limit, began = Reporter(run), budget(ref, recipe.budget_s), time.monotonic()

    def tell(text: str) -> None:
        run.note(text)
        report("measure", min(int(time.monotonic() - began), int(limit)), int(limit), "seconds")

    report("measure", 0, int(limit), "seconds")
    found = asyncio.run(
        tune_model(ref, config, mix=recipe.mix, cache_types=recipe.cache_types, budget_s=limit, tell=tell)
    )
    for note in found.notes:
        run.note(note)
    return {"model": ref.name, "choices": found.choices.words(), "speeds": found.speeds, "seconds": found.seconds}
