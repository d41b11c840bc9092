"""Scanned pages: pictures of Chinese text, read by RapidOCR as it comes in its wheel, without any network."""

import io
import os
from contextlib import closing
from pathlib import Path

import pytest

pytest.importorskip("rapidocr")

import numpy as np
import pypdfium2
from PIL import Image, ImageDraw, ImageFont

from mofang.errors import EngineFailed, Unreadable
from mofang.knowledge.loaders import parse
from mofang.knowledge.loaders.ocr import RapidReader
from mofang.knowledge.loaders.ocr_child import joined

FONTS = sorted(Path("/usr/share/fonts").rglob("NotoSansCJK*Regular*"))

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not FONTS, reason="needs a font with Chinese characters (fonts-noto-cjk)"),
]

DOTS = 150
"""An inch, as an office scanner makes them."""


def _scan(pages: list[list[tuple[int, int, int, str]]], *, turned: int = 0) -> bytes:
    """A PDF of pictures: (x, y, size in pixels, text) on A4; `turned`: the page's rotation in degrees."""
    document = pypdfium2.PdfDocument.new()
    for lines in pages:
        picture = Image.new("RGB", (1240, 1754), "white")
        draw = ImageDraw.Draw(picture)
        for x, y, size, text in lines:
            draw.text((x, y), text, font=ImageFont.truetype(str(FONTS[0]), size), fill="black")
        if turned:
            picture = picture.rotate(turned, expand=True)
        jpeg = io.BytesIO()
        picture.save(jpeg, "JPEG", quality=85)
        image = pypdfium2.PdfImage.new(document)
        image.load_jpeg(io.BytesIO(jpeg.getvalue()), inline=True)
        width, height = picture.width * 72 / DOTS, picture.height * 72 / DOTS
        image.set_matrix(pypdfium2.PdfMatrix().scale(width, height))
        page = document.new_page(width, height)
        page.insert_obj(image)
        page.set_rotation(turned)
        page.gen_content()
    data = io.BytesIO()
    document.save(data)
    document.close()
    return data.getvalue()


PAGE = [
    (120, 100, 56, "第三章 报销管理"),
    (120, 220, 36, "员工出差期间的住宿费用按照城市等级报销，超出标"),
    (120, 274, 36, "准的部分由个人承担。"),
    (120, 380, 36, "請於十五日內辦理，合計 1,234.56 元。"),
]


def test_a_scan_is_read_with_places_and_it_is_said(tmp_path: Path) -> None:
    path = tmp_path / "扫描.pdf"
    path.write_bytes(_scan([PAGE, [], [(120, 900, 40, "最后一页的文字。")]]))
    document = parse(path, "扫描.pdf")
    words = "".join(document.text.split())
    for sentence in ("第三章报销管理", "超出标准的部分由个人承担。", "請於十五日內辦理", "1,234.56", "最后一页的文字"):
        assert sentence in words
    heading, first, *_ = document.blocks
    assert heading.kind == "heading" and first.page == 1
    assert first.headings and "报销管理" in first.headings[0]
    assert document.blocks[-1].page == 3
    left, bottom, right, top = first.box or (0, 0, 0, 0)
    scale = 72 / DOTS
    assert left == pytest.approx(120 * scale, abs=6)
    assert top == pytest.approx((1754 - 228) * scale, abs=8)
    assert bottom == pytest.approx((1754 - 312) * scale, abs=10)
    assert right > left + 800 * scale
    assert any("1, 3" in note for note in document.notes), "recognized pages are named"
    assert any("第 2 页" in note for note in document.notes), "and so is the one where nothing was found"


def test_a_page_that_is_turned_has_its_box_on_the_page(tmp_path: Path) -> None:
    path = tmp_path / "转.pdf"
    path.write_bytes(_scan([PAGE], turned=90))
    document = parse(path, "转.pdf")
    assert "超出标准的部分由个人承担" in "".join(document.text.split())
    with pypdfium2.PdfDocument(path) as opened:
        _, _, width, height = opened[0].get_mediabox()
    for block in document.blocks:
        left, bottom, right, top = block.box or (-1, -1, -1, -1)
        assert -1 <= left < right <= width + 1 and -1 <= bottom < top <= height + 1


def test_blank_paper_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "白.pdf"
    path.write_bytes(_scan([[], []]))
    with pytest.raises(Unreadable) as fault:
        parse(path, "白.pdf")
    assert fault.value.code == "pdf_no_words"


def test_a_reader_that_dies_costs_one_document_and_leaves_no_process(tmp_path: Path) -> None:
    with closing(RapidReader()) as reader:
        child = reader._child
        assert reader.read(np.full((200, 400, 3), 255, np.uint8)) == []
        child.kill()
        with pytest.raises(EngineFailed) as fault:
            reader.read(np.full((2000, 4000, 3), 255, np.uint8))
        assert fault.value.code == "ocr_failed" and "mofang[ocr]" in fault.value.hint("zh")
    assert child.poll() is not None


def test_a_library_that_does_not_load_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "rapidocr.py").write_text("raise OSError('libGL is missing')")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    with pytest.raises(EngineFailed) as fault:
        RapidReader()
    assert "libGL is missing" in fault.value.message("zh")


def test_pieces_at_one_height_are_one_line_from_left_to_right() -> None:
    pieces = [
        ("三百", (500.0, 12.0, 560.0, 40.0)),
        ("下一行", (10.0, 50.0, 90.0, 80.0)),
        ("住宿", (10.0, 10.0, 70.0, 40.0)),
    ]
    assert [text for text, _ in joined(pieces)] == ["住宿 三百", "下一行"]
    assert next(iter(joined(pieces)))[1] == (10.0, 10.0, 560.0, 40.0)
