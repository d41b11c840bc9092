"""Marks are judged while an answer is written: what its source does not hold is not let through."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mofang.knowledge.cite import Citing
from mofang.messages import Source

WARRANTY = "保修期为自购买之日起二十四个月。人为损坏不在保修范围之内。维修前请先填写申请单。"
CLEANING = "清洁之前先拔掉电源。用干布擦拭外壳，不要用酒精。滤网每半年用清水冲洗一次。"


def sources() -> list[Source]:
    return [
        Source(1, "manual", "a", "清洁.md", CLEANING, 100, 100 + len(CLEANING)),
        Source(2, "manual", "b", "保修.md", WARRANTY, 50, 50 + len(WARRANTY)),
    ]


def written(text: str, size: int = 3) -> tuple[str, Citing]:
    citing = Citing(sources())
    shown = "".join(citing.push(text[at : at + size]) for at in range(0, len(text), size))
    return shown + citing.close(), citing


@pytest.mark.parametrize(
    ("answer", "shown"),
    [
        ("保修期是二十四个月，自购买之日起计算[2]。", "保修期是二十四个月，自购买之日起计算[2]。"),
        ("保修期是二十四个月，自购买之日起计算。[2]", "保修期是二十四个月，自购买之日起计算。[2]"),
        # Named wrongly, and held by another source.
        ("人为损坏不在保修范围之内[1]。", "人为损坏不在保修范围之内[2]。"),
        ("人为损坏不在保修范围之内【1】。", "人为损坏不在保修范围之内[2]。"),
        # Held by none.
        ("这台设备由杭州的工厂生产，年产量三百万台[1]。", "这台设备由杭州的工厂生产，年产量三百万台。"),
        ("这台设备由杭州的工厂生产，年产量三百万台[7]。", "这台设备由杭州的工厂生产，年产量三百万台。"),
        ("用干布擦拭外壳，不要用酒精[1,2]。", "用干布擦拭外壳，不要用酒精[1]。"),
        ("用干布擦拭外壳[1][2]。", "用干布擦拭外壳[1]。"),
        ("用干布擦拭外壳[1-2]。", "用干布擦拭外壳[1]。"),
        ("清洁之前先拔掉电源，人为损坏不在保修范围之内[1–2]。", "清洁之前先拔掉电源，人为损坏不在保修范围之内[1–2]。"),
        # Too short to be judged.
        ("不会[2]。", "不会[2]。"),
        # No marks: an index, code, an unfinished bracket, another bracket.
        ("```\nprint(a[1])\n```\n", "```\nprint(a[1])\n```\n"),
        ("清洁之前先拔掉电源[", "清洁之前先拔掉电源["),
        ("按 [确定] 键，清洁之前先拔掉电源[1]。", "按 [确定] 键，清洁之前先拔掉电源[1]。"),
    ],
)
@pytest.mark.parametrize("size", [1, 2, 5, 1000])
def test_a_mark_stays_where_its_source_holds_the_sentence(answer: str, shown: str, size: int) -> None:
    assert written(answer, size)[0] == shown


def test_a_mark_tells_the_span_it_rests_on() -> None:
    _, citing = written("先拔掉电源再清洁[1]。滤网每半年要用清水冲洗一次[1]。人为损坏不在保修范围之内[1]。")
    first, second, third = citing.citations
    assert CLEANING[first.start - 100 : first.end - 100] == "清洁之前先拔掉电源。"
    assert CLEANING[second.start - 100 : second.end - 100] == "滤网每半年用清水冲洗一次。"
    assert third.number == 2 and WARRANTY[third.start - 50 : third.end - 50] == "人为损坏不在保修范围之内。"
    assert citing.moved == 1 and citing.dropped == 0
    assert citing.spans(1) == ((first.start, first.end), (second.start, second.end))


def test_one_sentence_may_rest_on_neighbours() -> None:
    _, citing = written("清洁之前先拔掉电源，用干布擦拭外壳，不要用酒精[1]。")
    (one,) = citing.citations
    assert CLEANING[one.start - 100 : one.end - 100] == "清洁之前先拔掉电源。用干布擦拭外壳，不要用酒精。"


@given(st.text(alphabet="保修期滤网[]【】1234,， 资料。\n`", max_size=60), st.integers(1, 7))
def test_pieces_do_not_matter_and_nothing_but_marks_is_lost(text: str, size: int) -> None:
    shown, citing = written(text, size)
    whole, _ = written(text, len(text) or 1)
    assert shown == whole
    if not citing.dropped and not citing.moved and len(citing.citations) == 0:
        assert shown == text
