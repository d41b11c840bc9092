"""Sentence ends: in Chinese, in Latin text, in mixtures; and the invariants of any text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mofang.text.sentences import sentence_ends, sentences

CASES = {
    "closing quotes stay": ("他说：“好。”然后走了！真的？！", ["他说：“好。”", "然后走了！", "真的？！"]),
    "nested closers": ("（注：「见下文。」）后面。", ["（注：「见下文。」）", "后面。"]),
    "ellipsis": ("等等……再说；好…", ["等等……", "再说；", "好…"]),
    "decimals and versions": ("售价3.5元，版本7.4.2。没了", ["售价3.5元，版本7.4.2。", "没了"]),
    "address": ("见 https://a.example.org/b?x=1&y=2。好", ["见 https://a.example.org/b?x=1&y=2。", "好"]),
    "abbreviations": ("Use a tool, e.g. sed. Then stop.", ["Use a tool, e.g. sed.", "Then stop."]),
    "initials": ("By J. R. Smith et al. in 2020. Next.", ["By J. R. Smith et al. in 2020.", "Next."]),
    "numbered items": ("1. 打开文件\n2. 保存。", ["1. 打开文件", "2. 保存。"]),
    "code stays whole": ("for(i=0;i<3;i++) a!=b?c:d", ["for(i=0;i<3;i++) a!=b?c:d"]),
    "lines": ("标题\n\n正文第一行\n第二行", ["标题", "正文第一行", "第二行"]),
    "english quotes": ('He said "stop." Then left.', ['He said "stop."', "Then left."]),
    "half-width Chinese": ("你好!再见?好", ["你好!", "再见?", "好"]),
}


@pytest.mark.parametrize("case", CASES)
def test_sentences(case: str) -> None:
    text, expected = CASES[case]
    assert [text[start:end] for start, end in sentences(text)] == expected


@given(st.text(alphabet="中文字a1 .。！？；…“”「」\n)）😀", max_size=200))
def test_ends_ascend_and_lose_nothing(text: str) -> None:
    ends = list(sentence_ends(text))
    assert ends == sorted(set(ends))
    if text:
        assert ends[-1] == len(text)
    starts = [0, *ends]
    assert "".join(text[a:b] for a, b in zip(starts, ends, strict=False)) == text


@given(st.text(max_size=200))
def test_sentences_hold_all_that_is_not_space(text: str) -> None:
    spans = list(sentences(text))
    assert all(text[a:b].strip() == text[a:b] != "" for a, b in spans)
    assert "".join("".join(text[a:b].split()) for a, b in spans) == "".join(text.split())
