"""How a model runs best on this machine: asked of the machine itself, one change at a time.

A champion (what Mofang does by default) meets one challenger after another. Both are loaded, and measured in turn on
the same work, so that whatever else the machine does hits both alike; a change is taken when the time that a stated
mix of work takes falls by more than the noise. At the end the champion must be as true as llama.cpp's defaults are: both
are held against the same model computed in full precision, since the defaults themselves round (flash attention).
Sources of the candidates: llama.cpp tools/server/README.md; what each did here: docs/log.md.
"""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Protocol, cast

from mofang import settings
from mofang.engine import profile
from mofang.engine.agreement import MAX_MEAN_KL, Agreement, agreement
from mofang.engine.base import ChatEngine
from mofang.engine.llama.engine import start
from mofang.engine.llama.provider import Provider, choose, describe
from mofang.engine.profile import Choices, Profile, Step, changed
from mofang.engine.texts import passages
from mofang.errors import Busy, EngineFailed, Invalid, MofangError
from mofang.messages import Sampling
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
CONTEXT, FRESH, ANSWER, QUOTED = 512, 128, 20, 40
"""Tokens of: the context that answers are measured at; a prompt; an answer; an answer that quotes."""
FORCED = 100
BUDGET_S, BUDGET_BYTES = 90.0, 500_000_000
BRIEF = 0.4
"""Part of the budget that a tuning takes which nobody asked for."""
NGRAM = "ngram-map-k:3:8"
EXACT = Choices(flash_attn="off", cache_type="f32")
"""Nothing is rounded but the weights."""


class Contestant(Protocol):
    """A model, loaded with certain choices."""

    async def measure(self, kinds: Sequence[str]) -> Speeds: ...
    async def agrees(self, other: "Contestant") -> Agreement: ...


class Arena(Protocol):
    """Where contestants come from: real servers, or scripted ones in tests."""

    def enter(self, choices: Choices) -> AbstractAsyncContextManager[Contestant]: ...


# ---- the questions ----


def questions(
    champion: Choices, *, cores: int, threads: int, cache_types: Sequence[str] = ()
) -> Iterator[dict[str, Any]]:
    """The changes that may pay, those that usually pay most first. `champion` is asked anew after each answer."""
    yield {"flash_attn": "off"}
    yield {"speculative": NGRAM}
    for n_batch in (512, 256):
        yield {"n_batch": n_batch}
    for number in sorted({threads, cores - 1} - {cores, 0}):
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
               usual: Speeds) -> Step:  # fmt: skip
    """Measure both in turn. `usual`: the champion's speeds so far, for the kinds of work that the change leaves alone."""
    kinds = kinds_of(change, mix)
    gains: list[float] = []
    ours: list[Speeds] = []
    theirs: list[Speeds] = []
    while len(gains) < ROUNDS[1]:
        order = [(champion, ours), (challenger, theirs)]
        for contestant, speeds in order if len(gains) % 2 == 0 else reversed(order):
            speeds.append({**usual, **await contestant.measure(kinds)})
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

    Ends its questions when `budget_s` is nearly over: the proof at the end is always made, and what was not asked is
    said in the notes.
    """
    work, began = MIXES[mix], clock()
    champion, steps, notes = Choices(), [], []
    longest = 0.0
    async with _Corner(arena) as corner:
        first = await corner.get(champion)
        tell(say("engine.tune_start"))
        try:
            async with asyncio.timeout(budget_s / 2):
                speeds = await first.measure(list(work))
        except TimeoutError as error:
            raise Busy("engine.tune_too_busy", seconds=round(budget_s), retry_after_s=60.0) from error
        proof_s = 0.0
        for change in questions(champion, cores=cores, threads=threads, cache_types=cache_types):
            if champion != Choices() and not proof_s:
                proof_s = longest  # another load of the defaults and the forced tokens take about a duel
            if clock() - began + max(longest, 1.0) + max(proof_s, longest) > budget_s:
                notes.append(say("engine.tune_not_asked", change=words(change)))
                continue
            if all(getattr(champion, name) == value for name, value in change.items()) or _settled(change, champion):
                continue
            asked = clock()
            try:
                step = await _ask(corner, champion, change, work, speeds)
            except EngineFailed as error:
                notes.append(say("engine.tune_failed", change=words(change), why=error.message().split("\n")[0]))
                continue
            longest = max(longest, clock() - asked)
            steps.append(step)
            tell(told(step))
            if step.taken:
                champion, speeds = changed(champion, change), step.challenger
                await corner.keep(champion)
        found: dict[str, Any] = {}
        if champion != Choices():
            tell(say("engine.tune_proof"))
            found = await _true(corner, arena, champion)
            if not found["passed"] and champion.cache_type == "f16":
                notes.append(say("engine.tune_differs", **found))
                champion, speeds = Choices(), steps[0].champion
    return Profile(
        "", champion, mix, "", made_at=datetime.now(UTC).isoformat(timespec="seconds"), steps=steps,
        seconds=round(clock() - began, 1), speeds={kind: round(speed, 2) for kind, speed in speeds.items()},
        agreement=found, notes=notes,
    )  # fmt: skip


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


def _settled(change: Mapping[str, Any], champion: Choices) -> bool:
    """A smaller batch need not be asked about where a larger one has won."""
    return champion.n_batch > int(change.get("n_batch", champion.n_batch + 1))


async def _ask(
    corner: "_Corner", champion: Choices, change: dict[str, Any], work: Mapping[str, int], usual: Speeds
) -> Step:
    return await duel(
        await corner.get(champion), await corner.get(changed(champion, change)), change, work, usual=usual
    )


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


# ---- real servers ----


class Servers:
    """mofang.engine.tune.Arena over llama.cpp servers of one model."""

    def __init__(self, ref: ModelRef, config: Settings, provider: Provider) -> None:
        self._ref = ref
        # Slot 0 holds the long context that answers are measured at, slot 1 the prompts.
        self._config = config.model_copy(update={"n_ctx": 2 * CONTEXT, "n_slots": 2, "save_slots": False})
        self._provider = provider

    @asynccontextmanager
    async def enter(self, choices: Choices) -> AsyncIterator[Contestant]:
        engine = await start(
            self._ref, self._config, self._provider, choices, progress=lambda progress: None, log_name="tune"
        )
        try:
            yield await Loaded.of(cast(ChatEngine, engine))
        finally:
            await engine.close()


class Loaded:
    """mofang.engine.tune.Contestant over an engine."""

    def __init__(self, engine: ChatEngine, ids: list[int]) -> None:
        self.engine = engine
        self._ids = ids
        self._fresh = 0
        self._works = {"prompt": self._prompt, "answer": self._answer, "quoting": self._quoting}

    @classmethod
    async def of(cls, engine: ChatEngine) -> "Loaded":
        ids: list[int] = []
        while len(ids) < 2 * CONTEXT:
            ids += await engine.tokenize("\n\n".join(passages()))
        return cls(engine, ids)

    async def measure(self, kinds: Sequence[str]) -> Speeds:
        return {kind: await self._works[kind]() for kind in kinds}

    async def agrees(self, other: Contestant) -> Agreement:
        assert isinstance(other, Loaded)
        # A text that neither has in its cache: what is there was rounded by the batch that it was computed in.
        ids = (await self.engine.tokenize(passages()[2]))[: FORCED + 8]
        return await agreement(other.engine, self.engine, ids)

    async def _prompt(self) -> float:
        """A prompt that no cache knows."""
        self._fresh += 1
        start = 7 * self._fresh
        prompt = [self._ids[start % FRESH], *self._ids[start : start + FRESH]]
        return await self._speed(prompt, 1, slot=1, cached=False, of_prompt=True)

    async def _answer(self) -> float:
        """The continuation of a long text."""
        return await self._speed(self._ids[:CONTEXT], ANSWER, slot=0)

    async def _quoting(self) -> float:
        """A text that stands in the prompt, said again: what an answer from documents does."""
        quoted = self._ids[: CONTEXT // 2]
        return await self._speed([*quoted, *quoted[:12]], QUOTED, slot=1)

    async def _speed(
        self, prompt: list[int], n: int, *, slot: int, cached: bool = True, of_prompt: bool = False
    ) -> float:
        """Tokens a second, as the server measured them."""
        options = {"id_slot": slot, "cache_prompt": cached, "ignore_eos": True}
        last = None
        async for delta in self.engine.complete(prompt, Sampling(max_tokens=n, temperature=0.0, options=options)):
            last = delta
        if last is None or last.timings is None:
            raise MofangError("engine.no_timings")
        return last.timings.prompt_per_second if of_prompt else last.timings.predicted_per_second


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
