"""PDF: pages, boxes, paragraphs, headings; and what is wrong with a file is said."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from pdfs import pdf

from mofang.errors import Unreadable
from mofang.knowledge.base import ParsedDocument
from mofang.knowledge.loaders import parse


def _read(tmp_path: Path, data: bytes, name: str = "文.pdf") -> ParsedDocument:
    path = tmp_path / "x"
    path.write_bytes(data)
    return parse(path, name)


def _where(document: ParsedDocument, words: str) -> tuple[int | None, tuple[str, ...]]:
    place = document.text.index(words)
    block = next(b for b in document.blocks if b.start <= place < b.end)
    return block.page, block.headings


def test_a_printed_chinese_page(sample: Callable[[str], Path]) -> None:
    document = parse(sample("员工手册.pdf"), "制度/员工手册.pdf")
    assert (document.title, document.n_pages, document.notes) == ("星河公司员工手册", 3, ())
    # A line broken in the middle of a word is mended without a space; so is a Latin one, with a space.
    assert "核心工作时间为上午十点至下午四点。因公外出" in document.text
    assert "available from the internal web portal at https://oa.example.org/forms and must" in document.text
    assert "书面批准😀。" in document.text
    assert _where(document, "带薪年假五天") == (1, ("星河公司员工手册", "第一章 考勤与休假"))
    assert _where(document, "十五个工作日") == (2, ("星河公司员工手册", "第二章 报销"))
    assert _where(document, "不得少于十二位") == (3, ("星河公司员工手册", "第三章 信息安全"))
    # Two paragraphs without a gap, known by the indent of the second.
    assert "按缺勤处理。\n\n员工入职满一年" in document.text


def test_boxes_lie_on_the_page_in_reading_order(sample: Callable[[str], Path]) -> None:
    document = parse(sample("员工手册.pdf"), "员工手册.pdf")
    tops = []
    for block in document.blocks:
        assert block.box is not None
        left, bottom, right, top = block.box
        assert 0 <= left < right <= 420 and 0 <= bottom < top <= 596  # A5
        tops.append((block.page or 0, -top))
    assert tops == sorted(tops)


def test_a_font_without_a_file(tmp_path: Path) -> None:
    lines = [(60, 520, 12, "本合同自双方签字之日起生效，"), (60, 500, 12, "有效期为三年。")]
    document = _read(tmp_path, pdf([[(60, 550, 20, "采购合同"), *lines]], title="采购合同（正本）"))
    assert document.title == "采购合同（正本）"
    assert "本合同自双方签字之日起生效，有效期为三年。" in document.text
    assert _where(document, "有效期")[1] == ("采购合同",)


def test_a_sentence_goes_on_over_the_page(tmp_path: Path) -> None:
    first = [(60, 100, 12, "供方应当在收到订单之后的第十五个工作日之前把全部货物运到")]
    document = _read(tmp_path, pdf([first, [(60, 550, 12, "需方指定的仓库。")]]))
    assert "运到需方指定的仓库。" in document.text
    assert [block.page for block in document.blocks] == [1, 2]


def test_pages_without_text_are_noted(tmp_path: Path) -> None:
    document = _read(tmp_path, pdf([[(60, 500, 12, "有字的一页。")], [], [], [(60, 500, 12, "末页。")], []]))
    assert document.n_pages == 5
    assert any("2–3, 5" in note for note in document.notes)
    assert _where(document, "末页")[0] == 4


def test_encrypted_is_said(tmp_path: Path) -> None:
    with pytest.raises(Unreadable) as fault:
        _read(tmp_path, pdf([[(60, 500, 12, "密")]], encrypt=True))
    assert fault.value.code == "pdf_encrypted"


@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.9])
def test_truncated_is_refused_or_noted(share: float, sample: Callable[[str], Path], tmp_path: Path) -> None:
    data = sample("员工手册.pdf").read_bytes()
    try:
        document = _read(tmp_path, data[: int(len(data) * share)])
    except Unreadable as fault:
        assert fault.code in ("pdf_damaged", "pdf_no_text", "pdf_no_words")
    else:
        assert any("结尾不完整" in note for note in document.notes)


def test_not_a_pdf(tmp_path: Path) -> None:
    for data in (b"%PDF-1.7\nnothing more", b"hello", "其实是文本".encode()):
        with pytest.raises(Unreadable) as fault:
            _read(tmp_path, data)
        assert fault.value.code == "pdf_damaged"


@pytest.mark.slow
def test_a_thousand_pages(tmp_path: Path) -> None:
    pages = [[(60, 540 - 18 * i, 12, f"第{n}页的第{i}行，内容是数字{n * i}。") for i in range(25)] for n in range(1000)]
    began = time.monotonic()
    document = _read(tmp_path, pdf(pages))
    assert document.n_pages == 1000
    assert _where(document, "第777页的第3行")[0] == 778
    assert time.monotonic() - began < 120  # 6 s of one core
