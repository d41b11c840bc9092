"""The source that an unmarked answer rests on."""

from hypothesis import given
from hypothesis import strategies as st

from mofang.knowledge.support import MAX_MARKS, supporting
from mofang.messages import Source


def _sources(*texts: str) -> list[Source]:
    return [Source(n, "库", f"d{n}", f"{n}.md", text, 0, len(text)) for n, text in enumerate(texts, start=1)]


LEAVE = "员工入职满一年后享有五天年假，满十年后为十天。未休的年假可以顺延到下一年三月。"
TRAVEL = "出差期间的住宿费凭发票报销，每晚不超过四百元。"
SOURCES = _sources(TRAVEL, LEAVE)


def test_a_quotation_and_a_near_quotation_find_their_source() -> None:
    assert supporting("员工入职满一年后享有五天年假。", SOURCES) == [2]
    assert supporting("满十年后的年假为十天。", SOURCES) == [2]
    assert supporting("员工入职满一年后享有五天年假。住宿费凭发票报销，每晚不超过四百元。", SOURCES) == [2, 1]


def test_full_width_and_case_do_not_hide_it() -> None:
    assert supporting(
        "运行 ＭＯＦＡＮＧ＿ＰＯＲＴ=8652 mofang UP 换端口", _sources("换端口：MOFANG_PORT=8652 mofang up，运行")
    ) == [1]


def test_what_no_source_says_gets_no_mark() -> None:
    assert supporting("今天北京天气晴朗，最高气温二十二度。", SOURCES) == []
    assert supporting("年假的规定由各部门自行制定并报批。", SOURCES) == []
    assert supporting("不会。", SOURCES) == [], "too short to come from one place"
    assert supporting("资料中没有找到。", SOURCES) == []
    assert supporting("", SOURCES) == []
    assert supporting("员工入职满一年后享有五天年假。", []) == []


@given(st.text(max_size=300))
def test_marks_are_numbers_of_sources_each_once(answer: str) -> None:
    found = supporting(answer, SOURCES)
    assert len(found) == len(set(found)) <= MAX_MARKS
    assert set(found) <= {source.number for source in SOURCES}
