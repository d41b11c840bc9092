"""PDF, by PDFium. Lines become paragraphs; every block knows its page and its box.

Headings are told by letters larger than the body's, or by "第三章 …". Repeated page headers and footers stay. Pages
without a text layer are pictures, which a reader of mofang.knowledge.READERS reads; without one they are a note, and a
document that has nothing else is refused. PDFium is not safe for threads: one call at a time.
"""

import math
import re
import statistics
import threading
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from ctypes import c_double
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import pypdfium2
import pypdfium2.raw as pdfium

from mofang.errors import MissingExtra, Unreadable
from mofang.knowledge import READERS
from mofang.knowledge.base import ParsedDocument
from mofang.knowledge.loaders.build import Builder, chapter_rank, good_title, stem
from mofang.messages import Box
from mofang.strings import say
from mofang.text.lines import join_lines, joint

if TYPE_CHECKING:
    from mofang.knowledge.loaders.ocr import RapidReader

_PDFIUM = threading.Lock()

_SENTENCE_END = re.compile(r"[。！？：；.!?:;…][”’」』）)】》\"']*$")
_MARKER = re.compile(
    r"^(?:[•●○▪■◆·–—*-]\s|[（(][一二三四五六七八九十\d]{1,3}[)）]|[一二三四五六七八九十]{1,3}、|\d{1,3}[.、)）]\s?\D"
    r"|第[〇零一二三四五六七八九十百千\d]{1,6}[条章节])"
)
_DOTS_PER_POINT = 200 / 72
"""200 dots an inch: letters of 9 points are then 25 pixels high, and the recognizer was trained on 48."""
_MAX_PIXELS = 12_000_000
_LEADERS = re.compile(r"\s*(?:[.·…]\s?){5,}")
"""The dots of a table of contents."""


@dataclass(frozen=True, slots=True)
class _Line:
    text: str
    left: float
    bottom: float
    right: float
    top: float
    size: float
    """Of its letters, in points."""


def load(path: Path, name: str) -> ParsedDocument:
    """Raises Unreadable: knowledge.pdf_encrypted, knowledge.pdf_damaged, knowledge.pdf_no_text, knowledge.pdf_no_words."""
    with _PDFIUM:
        document = _open(path, name)
    try:
        with _PDFIUM:
            pages, broken = _read_pages(document)
            title = good_title(document.get_metadata_value("Title"))
        pictures = [i for i, lines in enumerate(pages) if not lines and i + 1 not in broken]
        reader = _reader() if pictures else None
        recognized = []
        if reader is not None:
            with closing(reader):
                recognized = _recognize(document, pages, pictures, reader)
    finally:
        with _PDFIUM:
            document.close()
    if not any(pages):
        code = "knowledge.pdf_no_text" if reader is None else "knowledge.pdf_no_words"
        raise Unreadable(code, name=name, pages=len(pages))
    builder = _assemble(pages)
    first = next((builder.text[b.start : b.end] for b in builder.blocks if b.kind == "heading"), "")
    notes = [*_page_notes(pages, broken, recognized, can_read=reader is not None), *_truncation_note(path)]
    return ParsedDocument(builder.text, builder.blocks, title or first or stem(name), tuple(notes), len(pages))


def _reader() -> "RapidReader | None":
    """What reads pictures of pages; None when the extra is not installed."""
    try:
        reader: RapidReader = READERS.get("rapidocr")()
    except MissingExtra:
        return None
    return reader


def _recognize(
    document: pypdfium2.PdfDocument, pages: list[list[_Line]], pictures: Sequence[int], reader: "RapidReader"
) -> list[int]:
    """Fill in the lines of these pages; returns the numbers of those where there were any."""
    found = []
    for i in pictures:
        with _PDFIUM:
            page = document[i]
            scale = min(_DOTS_PER_POINT, (_MAX_PIXELS / max(1.0, page.get_width() * page.get_height())) ** 0.5)
            bitmap = page.render(scale=scale)
            picture, place = bitmap.to_numpy().copy(), bitmap.get_posconv(page)
            bitmap.close()
        words = reader.read(picture)
        with _PDFIUM:
            boxes = [_on_page(place, edges) for _, edges in words]
            page.close()
        # Heights of boxes vary by the letters in them: near the page's usual one they are that.
        usual = statistics.median(box[3] - box[1] for box in boxes) if boxes else 0.0
        sizes = [box[3] - box[1] for box in boxes]
        pages[i] = [
            _Line(text, *box, size=round(2 * (usual if abs(size - usual) < 0.35 * usual else size)) / 2)
            for (text, _), box, size in zip(words, boxes, sizes, strict=True)
        ]
        if words:
            found.append(i + 1)
    return found


def _on_page(place: pypdfium2.PdfPosConv, edges: tuple[float, float, float, float]) -> Box:
    """Pixels of the picture → points of the page, whichever way the page is turned."""
    left, top, right, bottom = (round(edge) for edge in edges)
    (x1, y1), (x2, y2) = place.to_page(left, top), place.to_page(right, bottom)
    return min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)


def _open(path: Path, name: str) -> pypdfium2.PdfDocument:
    try:
        document = pypdfium2.PdfDocument(path)
    except pypdfium2.PdfiumError as error:
        if error.err_code == pdfium.FPDF_ERR_PASSWORD:
            raise Unreadable("knowledge.pdf_encrypted", name=name) from error
        raise Unreadable("knowledge.pdf_damaged", name=name) from error
    if len(document) == 0:
        document.close()
        raise Unreadable("knowledge.pdf_damaged", name=name)
    return document


def _read_pages(document: pypdfium2.PdfDocument) -> tuple[list[list[_Line]], list[int]]:
    """The lines of each page, and the numbers of the pages that could not be read."""
    pages: list[list[_Line]] = []
    broken: list[int] = []
    for i in range(len(document)):
        try:
            page = document[i]
            text_page = page.get_textpage()
        except pypdfium2.PdfiumError:
            broken.append(i + 1)
            pages.append([])
            continue
        pages.append(list(_lines(text_page)))
        text_page.close()
        page.close()
    return pages, broken


# ---- lines ----


def _lines(page: pypdfium2.PdfTextPage) -> Iterator[_Line]:
    codes = [pdfium.FPDFText_GetUnicode(page, i) for i in range(page.count_chars())]
    start = 0
    for i, code in enumerate([*codes, 10]):
        if code not in (10, 13):
            continue
        line = _line(page, codes, start, i) if i > start else None
        if line is not None:
            yield line
        start = i + 1


def _line(page: pypdfium2.PdfTextPage, codes: Sequence[int], start: int, end: int) -> _Line | None:
    text = _decode(codes[start:end])
    if not text:
        return None
    box = _box(page, start, end - start)
    return _Line(text, *box, size=_size(page, codes, start, end))


def _decode(codes: Sequence[int]) -> str:
    """PDFium gives UTF-16 units; 0 is a glyph without a character. Kangxi radicals are what some fonts call Han."""
    data = b"".join(code.to_bytes(2, "little") if code <= 0xFFFF else chr(code).encode("utf-16-le") for code in codes)
    text = data.decode("utf-16-le", errors="ignore").replace("\0", "")
    if any("\u2f00" <= character <= "\u2fdf" for character in text):
        text = "".join(unicodedata.normalize("NFKC", c) if "\u2f00" <= c <= "\u2fdf" else c for c in text)
    return _LEADERS.sub(" … ", text).strip()


def _box(page: pypdfium2.PdfTextPage, start: int, count: int) -> Box:
    left, top, right, bottom = c_double(), c_double(), c_double(), c_double()
    boxes = [
        (left.value, bottom.value, right.value, top.value)
        for i in range(pdfium.FPDFText_CountRects(page, start, count))
        if pdfium.FPDFText_GetRect(page, i, left, top, right, bottom)
    ]
    return _union(boxes) if boxes else (0.0, 0.0, 0.0, 0.0)


def _size(page: pypdfium2.PdfTextPage, codes: Sequence[int], start: int, end: int) -> float:
    """Of the first letter: the font's size times the scale of its matrix, to half a point."""
    matrix = pdfium.FS_MATRIX()
    for i in range(start, end):
        if codes[i] > 32 and pdfium.FPDFText_GetMatrix(page, i, matrix):
            size = float(pdfium.FPDFText_GetFontSize(page, i)) * math.hypot(matrix.c, matrix.d)
            return round(size * 2) / 2
    return 0.0


def _union(boxes: Sequence[Box]) -> Box:
    lefts, bottoms, rights, tops = zip(*boxes, strict=True)
    return min(lefts), min(bottoms), max(rights), max(tops)


# ---- paragraphs and headings ----


def _assemble(pages: list[list[_Line]]) -> Builder:
    builder = Builder()
    body = _body_size(pages)
    ranks = _heading_ranks(pages, body)
    for number, lines in enumerate(pages, start=1):
        for i, paragraph in enumerate(_paragraphs(lines)):
            text = join_lines(line.text for line in paragraph)
            box = _union([(line.left, line.bottom, line.right, line.top) for line in paragraph])
            rank = _rank(text, paragraph[0].size, ranks)
            if rank is not None:
                builder.heading(rank, text, page=number, box=box)
            else:
                separator = _across(builder, text) if i == 0 and number > 1 else "\n\n"
                builder.add("paragraph", text, page=number, box=box, separator=separator)
    return builder


def _across(builder: Builder, text: str) -> str:
    """Between the last block of a page and the first of the next: a sentence that goes on is not torn apart."""
    goes_on = builder.blocks and builder.blocks[-1].kind == "paragraph" and not _SENTENCE_END.search(builder.last)
    if not goes_on or _MARKER.match(text) or len(builder.last) < 20:
        return "\n\n"
    return joint(builder.last, text)


def _body_size(pages: list[list[_Line]]) -> float:
    """The letter size that most of the text has."""
    sizes: Counter[float] = Counter()
    for lines in pages:
        for line in lines:
            sizes[line.size] += len(line.text)
    return sizes.most_common(1)[0][0]


def _heading_ranks(pages: list[list[_Line]], body: float) -> dict[float, int]:
    """Sizes clearly above the body's, the largest first."""
    sizes = {line.size for lines in pages for line in lines if line.size > body * 1.15}
    return {size: rank for rank, size in enumerate(sorted(sizes, reverse=True))}


def _rank(text: str, size: float, ranks: dict[float, int]) -> int | None:
    if size in ranks and len(text) <= 80 and not text.endswith(("。", "，", "；")):
        return ranks[size]
    rank = chapter_rank(text)
    return None if rank is None else 1000 + rank


def _paragraphs(lines: list[_Line]) -> Iterator[list[_Line]]:
    if not lines:
        return
    left, right = _margins(lines)
    pitch = _pitch(lines)
    paragraph = [lines[0]]
    for line in lines[1:]:
        if _starts_paragraph(paragraph, line, left, right, pitch):
            yield paragraph
            paragraph = []
        paragraph.append(line)
    yield paragraph


def _margins(lines: list[_Line]) -> tuple[float, float]:
    """Where the page's lines usually begin, and how far they reach."""
    lefts = Counter(round(line.left) for line in lines)
    return float(lefts.most_common(1)[0][0]), max(line.right for line in lines)


def _pitch(lines: list[_Line]) -> float:
    """Distance from line to line within a paragraph, in multiples of the letter size."""
    steps = [
        (above.top - below.top) / below.size
        for above, below in pairwise(lines)
        if below.size and abs(above.size - below.size) < 0.1 * below.size and above.top > below.top
    ]
    return statistics.median(steps) if steps else 1.6


def _starts_paragraph(paragraph: list[_Line], line: _Line, left: float, right: float, pitch: float) -> bool:
    last = paragraph[-1]
    size = max(line.size, 1.0)
    if abs(last.size - line.size) > 0.12 * size or _MARKER.match(line.text) or chapter_rank(last.text) is not None:
        return True
    step = last.top - line.top
    if step > 1.35 * pitch * size:
        return True
    if step < -size:
        # Up again: the next column. The paragraph goes on when its sentence does.
        return bool(_SENTENCE_END.search(last.text))
    ended = bool(_SENTENCE_END.search(last.text))
    if ended and (last.right < right - 2.5 * size or line.left > left + 1.2 * size):
        return True
    return len(paragraph) > 1 and line.left > last.left + 0.8 * size and step > 0.3 * size


# ---- notes ----


def _page_notes(pages: list[list[_Line]], broken: list[int], recognized: list[int], *, can_read: bool) -> list[str]:
    empty = [number for number, lines in enumerate(pages, start=1) if not lines and number not in broken]
    told = (
        ("knowledge.pages_recognized", recognized),
        ("knowledge.pages_without_words" if can_read else "knowledge.pages_without_text", empty),
        ("knowledge.pages_broken", broken),
    )
    return [say(key, pages=ranges(numbers)) for key, numbers in told if numbers]


def _truncation_note(path: Path) -> list[str]:
    """A whole PDF ends with %%EOF; PDFium repairs what was cut off, and a person should know that pages may lack."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 2048))
        return [] if b"%%EOF" in file.read() else [say("knowledge.pdf_truncated")]


def ranges(numbers: Sequence[int]) -> str:
    """[1, 2, 3, 7] → "1–3, 7"."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(first) if first == last else f"{first}–{last}" for first, last in runs)
