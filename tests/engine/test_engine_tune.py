"""Tuning: the choice follows the measurements, whichever way they point. Scripted machines; no model."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mofang.engine import profile
from mofang.engine.agreement import Agreement, divergence
from mofang.engine.contestants import ANSWER, FORCED, FRESH
from mofang.engine.profile import AUTO_SLOTS, Choices
from mofang.engine.tune import EXACT, MIXES, ROUNDS, WORTH, duel, kinds_of, questions, seconds_of, tune
from mofang.errors import Busy, EngineFailed
from mofang.messages import Candidate, NextToken
from mofang.models.base import ModelRef

USUAL = {"prompt": 100.0, "answer": 20.0, "quoting": 20.0}


class Scripted:
    """A machine whose speeds depend on the choices as a table says, shaken by a repeating pattern of noise."""

    def __init__(self, effects=None, *, noise=0.0, kl=None, broken=(), seconds=1.0, crowd=None):
        self.effects = effects or {}
        self.crowd = crowd or {1: 20.0, 2: 30.0, 4: 40.0, 8: 41.0}
        self.kl = kl or {}
        self.broken = broken
        self.clock = 0.0
        self.seconds = seconds
        self.loaded: list[Choices] = []
        self.most_loaded = 0
        self._random, self._noise = random.Random(1), noise

    @asynccontextmanager
    async def enter(self, choices: Choices) -> AsyncIterator["Runner"]:
        if any(getattr(choices, name) == value for name, value in self.broken):
            raise EngineFailed("engine.load_failed", model="m", why="no", log="log")
        self.clock += self.seconds
        self.loaded.append(choices)
        self.most_loaded = max(self.most_loaded, len(self.loaded))
        try:
            yield Runner(self, choices)
        finally:
            self.loaded.remove(choices)


class Runner:
    def __init__(self, machine: Scripted, choices: Choices) -> None:
        self.machine, self.choices = machine, choices

    async def measure(self, kind):
        self.machine.clock += self.machine.seconds / 3
        speed = USUAL[kind]
        for (name, value), factors in self.machine.effects.items():
            if getattr(self.choices, name) == value:
                speed *= factors.get(kind, 1.0)
        return speed * (1 + self.machine._noise * self.machine._random.uniform(-1, 1))

    async def together(self, count):
        assert self.choices.n_slots >= count
        self.machine.clock += count * ANSWER / self.machine.crowd[count]
        return self.machine.crowd[count]

    async def agrees(self, other):
        self.machine.clock += 2 * FORCED / USUAL["answer"]
        assert other.choices == (Choices() if FLASH_OFF in self.machine.broken else EXACT)
        return Agreement(self.machine.kl.get(self.choices.flash_attn, 0.0005), 1.0, 100)


async def tuned(machine: Scripted, **options):
    """The profile but for the slots, which the machine as it is scripted leaves as they are."""
    found = await tuned_whole(machine, **options)
    if found.steps and "n_slots" in found.steps[-1].change:
        assert found.steps.pop().change == {"n_slots": AUTO_SLOTS} and not found.choices.n_slots
        found.notes.pop()
    return found


async def tuned_whole(machine: Scripted, **options):
    given_ = {"mix": "both", "cores": 4, "threads": 4, "budget_s": 1000.0, "clock": lambda: machine.clock, **options}
    return await tune(machine, **given_)


FLASH_OFF, DRAFTS, BATCH = ("flash_attn", "off"), ("speculative", "ngram-simple:8:24"), ("n_batch", FRESH)


async def test_takes_what_the_machine_is_faster_with() -> None:
    machine = Scripted({FLASH_OFF: {"answer": 1.8, "prompt": 0.95}, DRAFTS: {"quoting": 1.6}}, noise=0.01)
    found = await tuned(machine)
    assert found.choices == Choices(flash_attn="off", speculative="ngram-simple:8:24")
    assert [step.taken for step in found.steps[:2]] == [True, True]
    assert found.steps[1].challenger["answer"] == pytest.approx(36, rel=0.03)
    assert found.speeds["quoting"] == pytest.approx(32, rel=0.03)


async def test_leaves_what_it_is_slower_with() -> None:
    machine = Scripted({FLASH_OFF: {"answer": 0.7}, DRAFTS: {"quoting": 0.9, "answer": 0.9}, BATCH: {"prompt": 0.8}})
    found = await tuned(machine)
    assert found.choices == Choices()
    assert not any(step.taken for step in found.steps)
    assert all(step.gain < 1 for step in found.steps[:2])


async def test_the_mix_decides() -> None:
    """Faster answers for slower prompts: worth it in a chat, not for documents."""
    machine = {FLASH_OFF: {"answer": 1.15, "prompt": 0.6, "quoting": 1.15}}
    assert (await tuned(Scripted(machine), mix="chat")).choices.flash_attn == "off"
    assert (await tuned(Scripted(machine), mix="documents")).choices.flash_attn == "auto"


async def test_noise_is_not_taken_for_speed() -> None:
    found = await tuned(Scripted({FLASH_OFF: {"answer": 1.05}}, noise=0.15))
    assert found.choices == Choices()
    assert found.steps[0].noise > 0.03


@given(gain=st.floats(0.5, 2.0), noise=st.floats(0.0, 0.2))
async def test_a_duel_takes_only_what_is_beyond_noise_and_worth_it(gain: float, noise: float) -> None:
    machine = Scripted({FLASH_OFF: {"prompt": gain, "answer": gain, "quoting": gain}}, noise=noise)
    async with machine.enter(Choices()) as one, machine.enter(Choices(flash_attn="off")) as other:
        step = await duel(one, other, {"flash_attn": "off"}, MIXES["both"], usual=USUAL)
    assert not step.taken or step.gain - 1 >= max(WORTH, step.noise) - 1e-3
    if gain < 1 - 2 * noise:
        assert not step.taken
    if noise == 0:
        assert step.taken == (gain - 1 > WORTH) or abs(gain - 1 - WORTH) < 1e-3


async def test_never_more_than_two_models_in_memory_while_it_asks() -> None:
    machine = Scripted({FLASH_OFF: {"answer": 1.5}, DRAFTS: {"quoting": 1.5}, BATCH: {"prompt": 1.5}})
    found = await tuned(machine, cores=4, threads=8)
    assert len(found.steps) >= 5 and machine.most_loaded == 2
    assert machine.loaded == []


async def test_what_cannot_be_loaded_is_said_and_passed_over() -> None:
    found = await tuned(Scripted({DRAFTS: {"quoting": 2.0}}, broken=[FLASH_OFF]), cache_types=())
    assert found.choices == Choices(speculative="ngram-simple:8:24")
    assert any("flash_attn=off" in note for note in found.notes)


async def test_the_budget_ends_the_questions_and_says_which_were_left() -> None:
    machine = Scripted({FLASH_OFF: {"answer": 1.5}}, seconds=3.0)
    found = await tuned(machine, budget_s=90.0, threads=8)
    assert machine.clock <= 90.0
    assert found.choices.flash_attn == "off"
    assert any("n_batch" in note or "n_threads" in note for note in found.notes)


@pytest.mark.parametrize(
    ("crowd", "slots"),
    [
        ({1: 20.0, 2: 30.0, 4: 60.0, 8: 100.0}, 8),
        ({1: 20.0, 2: 30.0, 4: 40.0, 8: 41.0}, 4),
        ({1: 20.0, 2: 30.0, 4: 31.0, 8: 29.0}, 2),
        ({1: 20.0, 2: 19.0, 4: 18.0, 8: 10.0}, 2),
    ],
)
async def test_slots_are_as_many_as_pay(crowd, slots) -> None:
    found = await tuned_whole(Scripted(crowd=crowd))
    assert (found.choices.n_slots or AUTO_SLOTS) == slots
    step = found.steps[-1]
    assert step.taken == (slots != AUTO_SLOTS) and step.challenger == {"together": crowd[slots]}
    assert str(slots) in found.notes[-1]
    assert found.together == {str(count): speed for count, speed in crowd.items()}, "kept for `mofang plan`"


async def test_slots_are_not_asked_about_without_time_for_it() -> None:
    found = await tuned_whole(Scripted(seconds=5.0), budget_s=50.0)
    assert not found.choices.n_slots and any("n_slots" in note for note in found.notes)
    assert not found.together


async def test_what_a_question_costs_is_known_before_it_is_asked() -> None:
    """Whatever the machine's pace, the budget is kept, the proof of what was taken included."""
    for seconds in (0.5, 1.0, 2.0, 4.0, 8.0):
        machine = Scripted({FLASH_OFF: {"answer": 1.5}}, seconds=seconds)
        found = await tuned_whole(machine, budget_s=90.0, threads=8)
        assert machine.clock <= 90.0, seconds
        assert found.steps


async def test_a_machine_too_busy_to_be_measured_is_said_and_nothing_is_kept() -> None:
    class Stuck(Runner):
        async def measure(self, kind):
            await asyncio.Event().wait()

    class Busy_(Scripted):
        @asynccontextmanager
        async def enter(self, choices):
            yield Stuck(self, choices)

    with pytest.raises(Busy) as caught:
        await tuned(Busy_(), budget_s=0.1)
    assert caught.value.code == "tune_too_busy"


async def test_choices_that_change_answers_are_dropped() -> None:
    found = await tuned(Scripted({FLASH_OFF: {"answer": 2.0}}, kl={"off": 0.3, "auto": 0.002}))
    assert found.choices == Choices() and found.notes
    assert found.agreement["mean_kl"] == 0.3 and found.speeds == found.steps[0].champion


async def test_choices_may_be_truer_than_the_defaults() -> None:
    """Flash attention rounds; without it the model is nearer to itself. That must not count as a difference."""
    found = await tuned(Scripted({FLASH_OFF: {"answer": 2.0}}, kl={"off": 0.0015, "auto": 0.004}))
    assert found.choices.flash_attn == "off"
    assert found.agreement["defaults_mean_kl"] == 0.004


async def test_a_smaller_cache_is_tried_only_on_request() -> None:
    machine = {("cache_type", "q8_0"): {"answer": 1.3}}
    assert (await tuned(Scripted(machine))).choices.cache_type == "f16"
    found = await tuned(Scripted(machine), cache_types=("q8_0",))
    assert found.choices.cache_type == "q8_0" and found.choices.flash_attn == "on"


def test_each_change_is_measured_only_where_it_can_matter() -> None:
    assert kinds_of({"n_batch": FRESH}, MIXES["both"]) == ["prompt"]
    assert kinds_of({"speculative": "x"}, MIXES["both"]) == ["answer", "quoting"]
    assert kinds_of({"flash_attn": "off"}, MIXES["chat"]) == ["prompt", "answer"]


def test_threads_are_asked_about_only_where_there_is_a_choice() -> None:
    def asked(cores, threads):
        return [q["n_threads"] for q in questions(Choices(), cores=cores, threads=threads) if "n_threads" in q]

    assert asked(4, 8) == [3, 8] and asked(1, 1) == [] and asked(2, 2) == [] and asked(2, 4) == [4]


def test_time_of_a_mix() -> None:
    assert seconds_of({"prompt": 100, "answer": 40}, {"prompt": 50.0, "answer": 20.0}) == 4.0
    assert ROUNDS[0] <= ROUNDS[1]


# ---- profiles on disk ----


def test_a_profile_belongs_to_one_file_one_machine_and_one_build(tmp_path, monkeypatch) -> None:
    file = tmp_path / "m.gguf"
    file.write_bytes(b"x")
    ref = ModelRef("m", file, "gguf", "chat", 1)
    made = profile.Profile("m", Choices(flash_attn="off"), "chat", "native abc", steps=[], speeds={"answer": 3.0})
    profile.save(tmp_path, ref, made)
    assert profile.load(tmp_path, ref, "native abc") == made
    assert profile.load(tmp_path, ref, "native other") is None
    file.write_bytes(b"another model")
    assert profile.load(tmp_path, ref, "native abc") is None
    file.write_bytes(b"x")
    monkeypatch.setattr(profile, "cpu_name", lambda: "another CPU")
    assert profile.load(tmp_path, ref, "native abc") is None


def test_a_damaged_profile_is_as_if_it_were_not_there(tmp_path) -> None:
    file = tmp_path / "m.gguf"
    file.write_bytes(b"x")
    ref = ModelRef("m", file, "gguf", "chat", 1)
    path = profile.save(tmp_path, ref, profile.Profile("m", Choices(), "chat", "p"))
    for broken in ("", "{", '{"model": 1}', '{"choices": {"nonsense": 1}, "steps": []}'):
        path.write_text(broken)
        assert profile.load(tmp_path, ref, "p") is None


# ---- agreement ----


def spread(*logprobs: float) -> NextToken:
    return NextToken(None, tuple(Candidate(number, "", value) for number, value in enumerate(logprobs)))


def test_divergence_of_equal_distributions_is_nothing() -> None:
    assert divergence(spread(-0.5, -2.0), spread(-0.5, -2.0)) == pytest.approx(0.0)


@given(st.lists(st.floats(0.01, 1.0), min_size=2, max_size=8), st.lists(st.floats(0.01, 1.0), min_size=2, max_size=8))
def test_divergence_is_never_negative_and_bounded_by_the_whole(one: list[float], other: list[float]) -> None:
    from math import log

    size = min(len(one), len(other))
    p = [value / sum(one[:size]) for value in one[:size]]
    q = [value / sum(other[:size]) for value in other[:size]]
    whole = sum(a * log(a / b) for a, b in zip(p, q, strict=True))
    ours = spread(*[log(value) for value in q])
    full = divergence(spread(*[log(value) for value in p]), ours)
    assert full == pytest.approx(whole, abs=1e-6)
    best = sorted(range(size), key=lambda at: -p[at])[: size - 1]
    part = divergence(NextToken(None, tuple(Candidate(at, "", log(p[at])) for at in best)), ours)
    assert -1e-9 <= part <= whole + 1e-6
