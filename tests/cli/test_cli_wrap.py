"""Lines break where Chinese breaks; sizes and times read as people write them."""

import io
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console, Group

from mofang.cli.render import clock, count, progress_words, size
from mofang.cli.wrap import JOINER, ChineseText, line_breaks, shorten

MIXED = st.text(st.sampled_from("模坊支持中文，。！（）《》abc 12🙂👩‍💻é"), max_size=80)


def _lines(text: str, width: int) -> list[str]:
    at = [0, *line_breaks(text, width), len(text)]
    return [text[begin:end] for begin, end in pairwise(at)]


def test_chinese_after_a_latin_word_stays_on_its_line() -> None:
    assert _lines("使用 Python 可以把模型从头用到尾", 20) == ["使用 Python 可以把模", "型从头用到尾"]


def test_no_line_begins_with_a_closing_mark_or_ends_with_an_opening_one() -> None:
    lines = _lines("他说：「今天天气很好，我们去公园（如果不下雨）。」然后就走了。", 11)
    assert "".join(lines) == "他说：「今天天气很好，我们去公园（如果不下雨）。」然后就走了。"
    assert not [line for line in lines if line[0] in "，。：」）" or line.rstrip()[-1] in "「（"]


def test_an_emoji_of_several_code_points_is_not_torn() -> None:
    assert all(line.count("👩") == line.count("💻") for line in _lines("一二三👩‍💻四五六👩‍💻", 8))


def test_a_word_longer_than_the_line_is_cut() -> None:
    assert _lines("网址 https://example.com/abcdef", 12) == ["网址 ", "https://exam", "ple.com/abcd", "ef"]


@given(MIXED, st.integers(4, 30))
def test_nothing_is_lost_and_every_line_fits(text: str, width: int) -> None:
    lines = _lines(text, width)
    assert "".join(lines) == text
    assert all(lines) or not text
    assert max((cell_len(line.rstrip()) for line in lines), default=0) <= width


@given(MIXED, st.integers(4, 30))
@example("\u200d\u200d👩👩，", 5)
@example("\u200d🙂🙂模， ", 6)
def test_rich_prints_every_character_within_the_width(text: str, width: int) -> None:
    console = Console(file=io.StringIO(), width=width)
    console.print(Group(ChineseText(text)))  # by itself, print would make it one of rich's own Text
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    assert printed.replace("\n", "").replace(" ", "") == text.lstrip(JOINER).replace(" ", "")
    assert all(cell_len(line) <= width for line in printed.splitlines())


@pytest.mark.parametrize(
    ("n_bytes", "words"),
    [(0, "0 B"), (999, "999 B"), (491_400_064, "491 MB"), (999_600_000, "1.00 GB"), (9_996_000, "10 MB"), (4_683_000_000, "4.68 GB"),
     (1_234_000_000_000, "1.23 TB")],
)  # fmt: skip
def test_sizes(n_bytes: int, words: str) -> None:
    assert size(n_bytes) == words


def test_counts_and_clocks() -> None:
    assert [count(n) for n in (134_515_008, 494_032_768, 7_615_616_512)] == ["135M", "494M", "7.62B"]
    assert [clock(s) for s in (7.4, 59.6, 3723)] == ["0:07", "1:00", "1:02:03"]


def test_shorten_counts_cells_and_says_that_it_cut() -> None:
    assert shorten("模坊\n手册", 80) == "模坊 手册"
    assert shorten("模坊模坊模坊", 7) == "模坊模…"


def test_progress_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    progress = {"stage": "download", "done": 122_850_016, "total": 491_400_064, "unit": "bytes", "rate": 12_300_000,
                "seconds_left": 29.9}  # fmt: skip
    assert progress_words(progress) == ("下载", "123 MB / 491 MB · 12 MB/s · 剩 0:30")
    monkeypatch.setenv("MOFANG_LANG", "en")
    assert progress_words(progress) == ("download", "123 MB / 491 MB · 12 MB/s · 0:30 left")
    assert progress_words({"stage": "someone's own", "done": 3, "unit": "cats"}) == ("someone's own", "3 cats")
