"""The simulation behind `mofang plan serve` against what is known exactly: Erlang, machines with repairmen, Little."""

import math
from dataclasses import replace
from random import Random
from statistics import mean

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mofang.knowledge.evaluate import percentile
from mofang.launch.queueing import (
    Crowd,
    Lengths,
    Outcome,
    Service,
    Speeds,
    _Simulation,
    around,
    simulate,
)

STEP_S = 0.001
"""Of a token, in the services without a prompt to read: answers do not slow each other down."""
FREE = Speeds(1e9, {count: count / STEP_S for count in range(1, 65)})


def exponential(seconds: float) -> Lengths:
    """No prompt, and an answer that takes so long on average."""

    def drawn(random: Random) -> tuple[int, int]:
        return 1, 1 + max(1, round(random.expovariate(1 / seconds) / STEP_S))

    return drawn


def repairmen(users: int, slots: int, think_s: float, serve_s: float) -> tuple[float, float]:
    """Of M/M/c//N, exactly: mean seconds of waiting, and requests a second (Kleinrock, Queueing Systems I, 3.8)."""
    ratio, weights = serve_s / think_s, [1.0]
    for n in range(1, users + 1):
        weights.append(weights[-1] * (users - n + 1) * ratio / min(n, slots))
    total = sum(weights)
    shares = [weight / total for weight in weights]
    waiting = sum((n - slots) * share for n, share in enumerate(shares) if n > slots)
    rate = sum(min(n, slots) * share for n, share in enumerate(shares)) / serve_s
    return waiting / rate, rate


def erlang_c(slots: int, load: float) -> float:
    """The share of requests that wait in M/M/c with so many Erlang."""
    last = load**slots / math.factorial(slots) * slots / (slots - load)
    return last / (sum(load**n / math.factorial(n) for n in range(slots)) + last)


@pytest.mark.parametrize(("users", "slots", "think_s"), [(8, 2, 3.0), (20, 4, 5.0), (30, 4, 4.0)])
def test_a_closed_queue_waits_as_long_as_it_must(users: int, slots: int, think_s: float) -> None:
    found = simulate(Service(1, slots, FREE), Crowd(users, think_s, exponential(1.0)), requests=15_000)
    wait, rate = repairmen(users, slots, think_s, 1.0 + STEP_S)
    assert mean(found.ttft) == pytest.approx(wait, rel=0.08, abs=0.01)
    assert found.requests_per_s == pytest.approx(rate, rel=0.02)


@pytest.mark.parametrize("load", [2.0, 3.0])
def test_many_users_wait_as_erlang_says(load: float) -> None:
    """A thousand who think long are as good as a stream of strangers."""
    slots, users, serve_s = 4, 1000, 0.5 + STEP_S
    think_s = users * serve_s / load
    found = simulate(Service(1, slots, FREE), Crowd(users, think_s, exponential(0.5)), requests=20_000)
    waits = [each for each in found.ttft if each > 4 * STEP_S]
    assert len(waits) / len(found.ttft) == pytest.approx(erlang_c(slots, load), rel=0.08)
    expected = erlang_c(slots, load) * serve_s / (slots - load)
    assert mean(found.ttft) == pytest.approx(expected, rel=0.1)


CROWDS = st.builds(
    Crowd,
    users=st.integers(1, 40),
    think_s=st.floats(0.5, 20),
    lengths=st.builds(
        around, st.integers(1, 1500), st.integers(1, 200), st.sampled_from([0.0, 0.5, 1.0])
    ),
    turns=st.sampled_from([1.0, 4.0, 100.0]),
)  # fmt: skip
SPEEDS = st.builds(
    Speeds,
    prompt=st.floats(50, 5000),
    together=st.sampled_from([{1: 20.0, 2: 30.0, 4: 40.0, 8: 41.0}, {1: 50.0}, {1: 10.0, 2: 20.0, 4: 40.0}]),
    n_batch=st.sampled_from([32, 128, 512]),
)
SERVICES = st.builds(Service, st.integers(1, 6), st.integers(1, 8), SPEEDS, st.integers(0, 1))


def run(service: Service, crowd: Crowd, seed: int, requests: int) -> tuple[_Simulation, Outcome]:
    simulation = _Simulation(service, crowd, seed)
    return simulation, simulation.run(0, requests)


@settings(max_examples=60, deadline=None)
@given(SERVICES, CROWDS, st.integers(0, 5))
def test_nobody_is_lost_and_nobody_is_early(service: Service, crowd: Crowd, seed: int) -> None:
    simulation, found = run(service, crowd, seed, 300)
    held = sum(replica.held for replica in simulation._replicas)
    waiting = len(simulation._gate) + len(simulation._stuck)
    assert found.asked == found.answered + found.inside and found.inside == held + waiting
    thinking = sum(what == 0 for _, what, _ in simulation._events)
    assert thinking + found.inside == crowd.users, "everybody thinks, or waits for an answer"
    assert simulation._admitted == held + len(simulation._stuck) <= service.replicas * service.slots
    assert len(found.ttft) == len(found.responses) == found.answered
    assert min(found.ttft) > 0 and max(found.ttft) <= max(found.responses)
    fastest = max(found.speeds, default=0.0)
    assert fastest <= max(service.speeds.together.values()) / 1 * 1.0001
    assert 0 <= found.busy <= 1.0001


@settings(max_examples=6, deadline=None)
@given(SERVICES, CROWDS)
def test_littles_law(service: Service, crowd: Crowd) -> None:
    """Inside on average = asked a second times seconds inside; and all users = that rate times the whole round."""
    found = simulate(service, crowd, requests=3000)
    assert found.mean_inside == pytest.approx(found.requests_per_s * mean(found.responses), rel=0.06)
    whole = found.requests_per_s * (crowd.think_s + mean(found.responses))
    assert whole == pytest.approx(crowd.users, rel=0.06)


@settings(max_examples=6, deadline=None)
@given(SPEEDS, CROWDS, st.integers(1, 8))
def test_one_more_replica_never_makes_it_worse(speeds: Speeds, crowd: Crowd, slots: int) -> None:
    """Where every question may go anywhere: people who stay can be unlucky with where the new one stands."""
    crowd = replace(crowd, turns=1.0)
    found = [
        percentile(simulate(Service(count, slots, speeds), crowd, requests=1500).ttft, 0.95) for count in range(1, 6)
    ]
    for fewer, more in zip(found, found[1:], strict=False):
        assert more <= fewer * 1.1 + 0.01, found


def test_a_prompt_is_read_in_batches_and_holds_up_the_answers() -> None:
    """By hand: 256 tokens at 128 a second, batches of 128; an answer that is under way gets a token in each."""
    speeds = Speeds(128.0, {1: 10.0, 2: 10.0}, n_batch=128)
    alone = simulate(Service(1, 2, speeds), Crowd(1, 5.0, around(256, 11, 0)), requests=50)
    assert alone.ttft[0] == pytest.approx(2.0) and alone.ttft[-1] == pytest.approx(2.0)
    assert alone.responses[0] == pytest.approx(3.0), "ten more tokens at ten a second"
    assert alone.speeds[0] == pytest.approx(10.0)
    both = simulate(Service(1, 2, speeds), Crowd(2, 0.1, around(256, 11, 0)), requests=200)
    assert both.speeds[0] < 5.0 < alone.speeds[0], "half of a slow pair, or held up by the other's prompt"


def test_speeds_between_and_beyond_what_was_measured() -> None:
    speeds = Speeds(100.0, {1: 20.0, 4: 50.0})
    assert speeds.step_s(1) == pytest.approx(1 / 20) and speeds.step_s(4) == pytest.approx(4 / 50)
    assert speeds.step_s(2) == pytest.approx(2 / 30), "on the line between"
    assert speeds.step_s(8) == pytest.approx(8 / 50), "no more in all than four"
    assert Speeds(1.0, {2: 30.0}).step_s(1) == pytest.approx(1 / 15), "below the first: in proportion"


def test_the_same_seed_is_the_same_and_another_is_not() -> None:
    service, crowd = Service(2, 4, FREE), Crowd(10, 2.0, around(50, 30))
    assert simulate(service, crowd, seed=1, requests=500) == simulate(service, crowd, seed=1, requests=500)
    assert simulate(service, crowd, seed=1, requests=500) != simulate(service, crowd, seed=2, requests=500)


def test_conversations_stay_with_their_replica_and_so_spread_unevenly() -> None:
    """One user, one conversation: one of two replicas does everything. A new one each time: both do."""

    def served(turns: float) -> list[int]:
        simulation = _Simulation(Service(2, 1, FREE), Crowd(1, 1.0, exponential(0.1), turns), 3)
        counts = [0, 0]
        enter = type(simulation._replicas[0]).enter

        class Counting(type(simulation._replicas[0])):  # type: ignore[misc]
            def enter(self, request, now):  # type: ignore[no-untyped-def]
                counts[simulation._replicas.index(self)] += 1
                enter(self, request, now)

        simulation._replicas = [Counting(1, FREE), Counting(1, FREE)]
        simulation.run(0, 200)
        return counts

    assert 0 in served(1e12)
    assert min(served(1.0)) > 60


def test_percentiles_are_values_that_were_seen() -> None:
    assert [percentile([1.0, 2.0, 3.0, 4.0], share) for share in (0.0, 0.25, 0.5, 0.95, 1.0)] == [1, 1, 2, 4, 4]
