"""How much a key may use, on a clock that the test winds."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mofang.errors import Busy
from mofang.server.keys import Key, Limits
from mofang.server.limits import WINDOW_S, Meter


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def key(**limits: int) -> Key:
    return Key("key-1", "甲", "2026-11-24T00:00:00.000Z", limits=Limits(**limits))


@given(st.integers(1, 5), st.lists(st.floats(0, 40), max_size=60))
def test_no_minute_ever_sees_more_requests_than_the_limit(limit: int, pauses: list[float]) -> None:
    clock, mine = Clock(), key(requests_per_minute=limit)
    meter, let_in = Meter(clock), []
    for pause in pauses:
        clock.now += pause
        try:
            meter.begin(mine)
        except Busy as refusal:
            clock.now += math.ceil(refusal.retry_after_s)  # who waits as told is let in
            meter.begin(mine)
        let_in.append(clock.now)
        meter.end(mine, 0)
    for at in let_in:
        assert sum(other <= at < other + WINDOW_S for other in let_in) <= limit


@given(st.integers(1, 100), st.lists(st.tuples(st.floats(0, 40), st.integers(0, 80)), max_size=40))
def test_tokens_are_refused_in_debt_and_only_then(limit: int, answers: list[tuple[float, int]]) -> None:
    clock, mine = Clock(), key(tokens_per_minute=limit)
    meter, used = Meter(clock), []
    for pause, tokens in answers:
        clock.now += pause
        spent = sum(amount for at, amount in used if at + WINDOW_S > clock.now)
        try:
            meter.begin(mine)
        except Busy as refusal:
            assert spent >= limit and refusal.code == "token_limit"
            continue
        assert spent < limit
        meter.end(mine, tokens)
        used.append((clock.now, tokens))


def test_headers_tell_what_is_left_and_when_it_is_whole_again() -> None:
    clock, mine = Clock(), key(requests_per_minute=3, tokens_per_minute=100)
    meter = Meter(clock)
    meter.begin(mine)
    clock.now += 10
    meter.end(mine, 130)
    assert meter.headers(mine) == {
        "x-ratelimit-limit-requests": "3",
        "x-ratelimit-remaining-requests": "2",
        "x-ratelimit-reset-requests": "50s",
        "x-ratelimit-limit-tokens": "100",
        "x-ratelimit-remaining-tokens": "0",
        "x-ratelimit-reset-tokens": "60s",
    }
    clock.now += 60
    assert meter.headers(mine)["x-ratelimit-remaining-tokens"] == "100"
    assert meter.headers(key()) == {}


def test_requests_at_the_same_time() -> None:
    meter, mine = Meter(Clock()), key(concurrent=2)
    meter.begin(mine)
    meter.begin(mine)
    with pytest.raises(Busy) as refused:
        meter.begin(mine)
    assert refused.value.code == "concurrent_limit"
    meter.end(mine, 0)
    meter.begin(mine)
