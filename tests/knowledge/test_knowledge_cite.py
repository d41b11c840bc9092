"""Marks are judged while an answer is written: what its source does not hold is not let through."""

import asyncio
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

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
    return asyncio.run(_written(text, size, Citing(sources())))


async def _written(text: str, size: int, citing: Citing) -> tuple[str, Citing]:
    shown = [await citing.push(text[at : at + size]) for at in range(0, len(text), size)]
    return "".join(shown) + citing.close(), citing


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


@pytest.mark.parametrize(
    ("answer", "shown"),
    [
        ("滤网每半年用清水冲洗一次。", "滤网每半年用清水冲洗一次。[1]"),
        ("滤网每半年要用清水冲洗一次", "滤网每半年要用清水冲洗一次[1]"),
        # Each sentence its own, before the space that follows it; one that the model marked keeps that mark alone.
        (
            "人为损坏不在保修范围之内。\n\n滤网每半年用清水冲洗一次。",
            "人为损坏不在保修范围之内。[2]\n\n滤网每半年用清水冲洗一次。[1]",
        ),
        (
            "- 用干布擦拭外壳，不要用酒精\n- 维修前请先填写申请单[2]\n",
            "- 用干布擦拭外壳，不要用酒精[1]\n- 维修前请先填写申请单[2]\n",
        ),
        ("他说：“清洁之前先拔掉电源。”然后走了。", "他说：“清洁之前先拔掉电源。”[1]然后走了。"),
        # A mark that was taken out does not come back, whichever source.
        ("这台设备由杭州的工厂生产，年产量三百万台[1]。好。", "这台设备由杭州的工厂生产，年产量三百万台。好。"),
        # Held by none, too short to come from one place, no prose.
        ("保修的规定由各门店自行制定并报批。", "保修的规定由各门店自行制定并报批。"),
        ("不会。", "不会。"),
        ("资料中没有找到。", "资料中没有找到。"),
        ("| 清洁之前先拔掉电源 |\n| --- |\n", "| 清洁之前先拔掉电源 |\n| --- |\n"),
        ("# 清洁之前先拔掉电源\n", "# 清洁之前先拔掉电源\n"),
        ("```\n清洁之前先拔掉电源。\n```\n", "```\n清洁之前先拔掉电源。\n```\n"),
    ],
)
@pytest.mark.parametrize("size", [1, 2, 5, 1000])
def test_a_sentence_without_a_mark_gets_that_of_the_source_that_holds_it(answer: str, shown: str, size: int) -> None:
    assert written(answer, size)[0] == shown


def test_an_added_mark_tells_its_span_and_is_counted() -> None:
    _, citing = written("滤网每半年用清水冲洗一次。人为损坏不在保修范围之内[2]。")
    first, second = citing.citations
    assert CLEANING[first.start - 100 : first.end - 100] == "滤网每半年用清水冲洗一次。"
    assert (citing.added, second.number) == (1, 2)


def test_full_width_and_case_do_not_hide_a_source_and_latin_text_gets_its_space() -> None:
    text = "换端口：mofang_port=8652 mofang up，运行"
    held = [Source(1, "manual", "a", "a.md", text, 0, len(text))]
    shown, _ = asyncio.run(_written("运行 ＭＯＦＡＮＧ＿ＰＯＲＴ=8652 mofang UP.", 4, Citing(held)))
    assert shown == "运行 ＭＯＦＡＮＧ＿ＰＯＲＴ=8652 mofang UP. [1]"
    assert asyncio.run(_written("滤网每半年用清水冲洗一次。", 4, Citing([])))[0] == "滤网每半年用清水冲洗一次。"


@pytest.mark.parametrize(
    ("answer", "shown"),
    [
        # What the question said already is no claim: the rest is looked for.
        ("机器脏得厉害，进风变小的时候，滤网用清水冲洗。", "机器脏得厉害，进风变小的时候，滤网用清水冲洗。[1]"),
        ("机器脏得厉害，进风变小的时候，要寄回工厂处理[1]。", "机器脏得厉害，进风变小的时候，要寄回工厂处理。"),
        # An echo of the question rests on nothing, whichever source it names.
        ("机器脏得厉害，进风变小。", "机器脏得厉害，进风变小。"),
        ("机器脏得厉害，进风变小[2]。", "机器脏得厉害，进风变小。"),
    ],
)
def test_the_words_of_the_question_are_no_evidence(answer: str, shown: str) -> None:
    question = "机器脏得厉害，进风变小的时候，怎么办？"
    assert asyncio.run(_written(answer, 3, Citing(sources(), question=question)))[0] == shown


SAID = st.lists(
    st.sampled_from(
        [*CLEANING.split("。"), *WARRANTY.split("。"), "。", "\n", " ", "[1]", "[2]", "”", "```", "| ", "# ", "a[1]"]
    )
)


@given(SAID.map("".join), st.integers(1, 9))
def test_pieces_do_not_matter_and_the_text_is_whole_under_its_marks(text: str, size: int) -> None:
    shown, citing = written(text, size)
    assert shown == written(text, len(text) or 1)[0]
    assert shown.replace("[1]", "").replace("[2]", "").split() == text.replace("[1]", "").replace("[2]", "").split()
    assert citing.added <= len(citing.citations) and all(one.number in (1, 2) for one in citing.citations)


@given(st.text(alphabet="保修期滤网[]【】1234,， 资料。\n`", max_size=60), st.integers(1, 7))
def test_pieces_do_not_matter_and_nothing_but_marks_is_lost(text: str, size: int) -> None:
    shown, citing = written(text, size)
    whole, _ = written(text, len(text) or 1)
    assert shown == whole
    if not citing.dropped and not citing.moved and len(citing.citations) == 0:
        assert shown == text


def test_between_languages_a_mark_goes_to_the_source_with_the_nearest_sentence() -> None:
    near = "Unplug the device before you clean it."
    texts = {
        near: (1.0, 0.0),
        "The warranty runs for two years.": (0.6, 0.8),
        "清洁设备之前应该先把电源拔掉": (0.98, 0.199),
    }

    async def vectors(base: str, sentences: Sequence[str]) -> NDArray[np.float32]:
        return np.array([texts[one] for one in sentences], np.float32)

    def english(number: int, text: str) -> Source:
        return Source(number, "manual", str(number), f"{number}.md", text, 10, 10 + len(text))

    held = [english(1, near), english(2, "The warranty runs for two years.")]
    for mark, wanted in (("[1]", "[1]"), ("[2]", "[1]")):
        shown, citing = asyncio.run(_written(f"清洁设备之前应该先把电源拔掉{mark}。", 5, Citing(held, vectors)))
        assert shown == f"清洁设备之前应该先把电源拔掉{wanted}。"
        assert citing.spans(1) == ((10, 10 + len(near)),)


def test_without_vectors_what_another_language_says_is_not_judged() -> None:
    held = [Source(1, "manual", "1", "1.md", "The warranty runs for two years.", 0, 32)]
    shown, _ = asyncio.run(_written("保修期为两年，从购买之日算起[1]。", 4, Citing(held)))
    assert shown == "保修期为两年，从购买之日算起[1]。"
