"""Drafted questions: what is kept, what is dropped and why, and going on after a kill."""

import json

import pytest

from mofang.errors import Invalid
from mofang.knowledge import questions
from mofang.knowledge.base import Hit

TEXT = "清洁设备前先拔掉电源，再用干布擦拭外壳，不要用酒精，也不要让水流进散热孔里，擦完等十分钟再开机。"


def passage(
    text: str = TEXT,
    title: str = "文档/设备手册.md",
    headings: tuple[str, ...] = ("清洁", "清洁注意事项"),
    start: int = 0,
) -> Hit:
    return Hit("库", "d", title, text, start, start + len(text), None, headings, 0.0, None, None, None)


@pytest.mark.parametrize(
    ("question", "answer", "asked", "why"),
    [
        ("擦外壳要用什么布？", "用干布擦拭外壳", [], ""),
        ("布？", "干布", [], "unasked"),
        ("MOFANG_CHAT_MODEL", "先拔掉电源", [], "unasked"),
        ("要用多大的力气拔掉电源", "先拔掉电源", [], ""),
        ("Which cloth is right", "干布擦拭外壳", [], ""),
        ("清洁设备前先拔掉电源？", "先拔掉电源", [], "copied"),
        ("这段说了什么？", "先拔掉电源", [], "points"),
        ("What does the passage say?", "先拔掉电源", [], "points"),
        ("《清洁注意事项》有哪些？", "先拔掉电源", [], "title"),
        ("设备手册怎么说清洁？", "先拔掉电源", [], "title"),
        ("清洁前先做什么？", "先拔掉电源", [], ""),
        ("擦外壳要用什么布", "用干布擦拭外壳", ["擦外壳要用什么布？"], "repeated"),
        ("保修多长时间？", "保修期为两年", [], "unsupported"),
        ("保修多长时间？", "。", [], "unsupported"),
        ("保修多长时间？", "无", [], "unsupported"),
        ("擦完等多久？", "十", [], ""),
    ],
)
def test_why_a_draft_is_dropped(question: str, answer: str, asked: list[str], why: str) -> None:
    assert questions.fault(passage(), question, answer, asked) == why


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ('{"question": "几年？", "answer": "两年"}', ("几年？", "两年")),
        ('好的：```json\n{"question": " 几年？ ", "answer": "两年"}\n```', ("几年？", "两年")),
        ('{"question": "几年？"}', None),
        ('{"question": 3, "answer": "x"}', None),
        ("我不会", None),
        ("", None),
        ("}{", None),
    ],
)
def test_reading_a_reply(said: str, found: tuple[str, str] | None) -> None:
    assert questions.read(said) == found


def test_the_prompt_holds_the_passage_and_no_more() -> None:
    system, _, example, user = questions.prompt(passage(), "zh")
    assert system.role == "system" and "JSON" in system.text
    assert questions.read(example.text), "the example is in the form that is asked for"
    assert TEXT in user.text and "设备手册.md > 清洁 > 清洁注意事项" in user.text


def test_going_on_where_a_kill_cut_a_line() -> None:
    drawn = [passage(start=100 * n) for n in range(5)]
    rows = [questions.row(drawn[n], f"问{n}", "答", n) for n in (0, 2)]
    raw = b"".join(json.dumps(row).encode() + b"\n" for row in rows)
    found, whole = questions.drafted("x", raw + b'{"question": "hal')
    assert found == rows and whole == len(raw) and not rows[0]["checked"]
    assert [place for place, _ in questions.remaining(drawn, found)] == [3, 4], "1 was dropped, and stays so"
    assert [place for place, _ in questions.remaining([*drawn, passage("短")], [])] == [0, 1, 2, 3, 4]
    with pytest.raises(Invalid, match="2"):
        questions.drafted("x.jsonl", raw.splitlines(keepends=True)[0] + b'{"a": 1}\n')
