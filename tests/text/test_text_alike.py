"""Whether two questions ask the same: a wrong yes is what must not be."""

import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from mofang.text.alike import key, near

PAIRS: list[dict[str, Any]] = tomllib.loads((Path(__file__).parent / "alike.toml").read_text(encoding="utf-8"))["pair"]
STORED = st.sampled_from([pair["stored"] for pair in PAIRS])


def _same(one: str, other: str) -> bool:
    return key(one) == key(other) or near(key(one), key(other))


@pytest.mark.parametrize("pair", PAIRS, ids=[pair["stored"] for pair in PAIRS])
def test_another_question_is_another_question(pair: dict[str, Any]) -> None:
    assert not [asked for asked in pair["other"] if _same(asked, pair["stored"])]


@pytest.mark.parametrize(("held_out", "least"), [(False, 0.85), (True, 0.6)])
def test_most_of_the_same_in_other_words_is_known(held_out: bool, least: float) -> None:
    """As measured: 52 of 61 and, of those never looked at, 23 of 36. What is missed costs nothing but a model's time."""
    asked = [(one, pair["stored"]) for pair in PAIRS if pair.get("held_out", False) is held_out for one in pair["same"]]
    assert sum(_same(*each) for each in asked) >= least * len(asked)


@given(
    STORED,
    st.sampled_from(["", "你好，", "您好！请问", "请问一下，", "Hello, "]),
    st.sampled_from(["", "？", "!!", "。谢谢！"]),
)
def test_politeness_and_punctuation_are_no_part_of_a_question(stored: str, before: str, after: str) -> None:
    assert key(f" {before}{stored.rstrip('？?')}{after} ") == key(stored)


@given(st.text(max_size=40), st.text(max_size=40))
def test_alike_both_ways_or_neither(one: str, other: str) -> None:
    one, other = key(one), key(other)
    assert near(one, other) == near(other, one)
    assert key(one) == key(key(one))


@given(STORED, st.sampled_from(["3", "不", "没有", "非", "xlsx", "昨天"]), st.data())
def test_a_word_more_is_another_question(stored: str, word: str, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(stored) - 1))
    asked = f"{stored[:at]}{word}{stored[at:]}"
    assume("有没有" not in asked)  # which asks the same as "有……吗"
    assert not _same(asked, stored)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("C++ 怎么学", "C 怎么学"),
        ("涨了 5% 吗", "涨了 5 吗"),
        ("3.5 版支持吗", "35 版支持吗"),
        (".env 是什么", "env 是什么"),
        ("-5 度能开机吗", "5 度能开机吗"),
        ("a/b 是什么", "ab 是什么"),
        ("谁管理张三", "张三管理谁"),
        ("订单怎样导入系统", "系统怎样导入订单"),
        ("计划 a 怎么买", "计划怎么买"),
        ("What does the router do?", "What is the router?"),
        ("会议怎么开", "怎么会议"),
        ("茶几多少钱", "茶多少钱"),
    ],
)
def test_signs_and_places_count(one: str, other: str) -> None:
    assert not _same(one, other)


@pytest.mark.parametrize("nothing", ["", "？？", "你好", "谢谢！", "　"])
def test_nothing_asked(nothing: str) -> None:
    assert key(nothing) == "" and not near(key(nothing), key(nothing))
