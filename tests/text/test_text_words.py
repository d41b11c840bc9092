"""Cutting for search: what a person types must meet what stands in the document."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mofang.text.fold import fold
from mofang.text.words import INNER, marks, query_words, stop_words, words


def test_long_words_come_with_the_words_inside_them() -> None:
    assert {"清华大学", "清华", "大学"} <= set(words("清华大学"))


def test_unknown_runs_give_characters_and_bigrams() -> None:
    found = words("蔚瀚")
    assert {"蔚", "瀚", "蔚瀚"} <= set(found)


def test_width_and_case_do_not_matter() -> None:
    assert words("ＧＰＵ　Ｄｒｉｖｅｒ") == words("gpu driver")
    assert fold("ﬁle：Ａ") == "file:a"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("UTF-8", {"utf-8", "utf", "8"}),
        ("config.yaml", {"config.yaml", "config", "yaml"}),
        ("C++ 与 C#", {"c++", "c#"}),
        ("foo_bar", {"foo_bar", "foo", "bar"}),
        ("版本3.14", {"版本", "3.14"}),
        ("ひらがな", {"ひら", "らが", "がな"}),
        ("Ünïcode café", {"ünïcode", "café"}),
    ],
)
def test_other_scripts(text: str, expected: set[str]) -> None:
    assert expected <= set(words(text))


@pytest.mark.parametrize(
    ("query", "passage"),
    [
        ("单元格格式", "如何设置单元格的格式"),
        ("报销期限", "差旅费报销须在十五日内提交，逾期即过期限"),
        ("ＷＩＦＩ密码", "公司 WiFi 的密码是"),
        ("张伟", "负责人：张伟（研发部）"),
        ("蔚瀚科技", "蔚瀚科技有限公司"),
        ("年假", "带薪年假五天"),
    ],
)
def test_query_meets_passage(query: str, passage: str) -> None:
    assert set(query_words(query)) & set(words(passage)), (query_words(query), words(passage))


@pytest.mark.parametrize(
    ("traditional", "one"),
    [
        ("頭髮", "头发"),
        ("發財", "发财"),
        ("乾燥", "干燥"),
        ("乾隆", "乾隆"),
        ("皇后以後", "皇后以后"),
        ("瞭解", "了解"),
        ("ＰＤＦ檔", "pdf档"),
    ],
)
def test_traditional_becomes_simplified_by_phrase(traditional: str, one: str) -> None:
    assert fold(traditional) == one == fold(one)


@given(st.text(max_size=60))
def test_folding_twice_changes_little_and_folding_the_folded_nothing(text: str) -> None:
    once = fold(text)
    assert fold(once) == fold(fold(once)) and words(text) == words(text.upper().lower() if text.isascii() else text)


def test_half_a_character_is_left_alone() -> None:
    assert fold("\ud800體") == "\ud800體"


def test_stop_words_leave_queries_only() -> None:
    assert query_words("请问怎么设置打印机？") == ["设置", "打印", "印机", "打印机"]
    assert "的" in words("我的书")
    assert query_words("how do I change the password") == ["change", "password"]
    assert query_words("是什么") != [], "a query of stop words alone keeps them"
    assert {"的", "the"} <= stop_words()


@given(st.text(max_size=100))
def test_words_are_what_the_index_can_hold(text: str) -> None:
    for word in words(text):
        assert word
        assert not any(c.isspace() for c in word)
        assert all(c.isalnum() or c in INNER or ord(c) > 127 for c in word), word
        assert '"' not in word


@given(st.text(alphabet="中国人民银行数据库ab1 ，。", max_size=60))
def test_every_han_character_is_in_some_word(text: str) -> None:
    held = set("".join(words(text)))
    assert {c for c in text if "一" <= c <= "鿿"} <= held


def _marked(text: str, query: str) -> list[str]:
    return [text[start:end] for start, end in marks(text, query)]


def test_the_words_of_a_query_are_marked_where_they_stand() -> None:
    text = "没有网络的机器也能离线安装；先下载 ＧＧＵＦ 文件，再 pip install gguf-tools。"
    assert _marked(text, "怎样离线安装 GGUF？") == ["离线安装", "ＧＧＵＦ", "gguf"], "width and case are folded"
    assert _marked(text, "INSTALL") == ["install"]
    assert _marked("installed", "install") == [], "a part of another word is not it"
    assert _marked("装在表里的表示", "表") == ["表", "表"]
    assert _marked("把表装好，离线", "表离线") == ["离线"], "a lone character next to a longer word is noise"
    assert _marked("", "离线") == [] and _marked("离线", "，。") == []


@given(
    st.text(alphabet=st.sampled_from("离线安装aＡb1 ß，\u0301ﬁ的"), max_size=40),
    st.text(alphabet="离线安装aA1ßfi", max_size=8),
)
def test_marks_are_spans_in_order_that_hold_a_word(text: str, query: str) -> None:
    spans = marks(text, query)
    assert all(0 <= start < end <= len(text) for start, end in spans)
    assert all(one[1] < other[0] for one, other in zip(spans, spans[1:], strict=False))
    held = [fold(text[start:end]) for start, end in spans]
    assert all(any(word in one for word in query_words(query)) for one in held)
