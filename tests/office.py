"""Small office files and books, made by the libraries that know the formats, and their XML changed by hand."""

import io
import zipfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import docx
import openpyxl
import pptx
import xlsxwriter
from docx.oxml import parse_xml
from docx.oxml.ns import nsdecls
from pptx.util import Inches

NUMBERING = f"""<w:numbering {nsdecls("w")}>
  <w:abstractNum w:abstractNumId="7"><w:multiLevelType w:val="multilevel"/>
    <w:lvl w:ilvl="0"><w:start w:val="1"/><w:numFmt w:val="chineseCountingThousand"/><w:lvlText w:val="第%1条"/></w:lvl>
    <w:lvl w:ilvl="1"><w:start w:val="1"/><w:numFmt w:val="decimal"/><w:lvlText w:val="（%2）"/></w:lvl>
  </w:abstractNum>
  <w:abstractNum w:abstractNumId="8">
    <w:lvl w:ilvl="0"><w:start w:val="1"/><w:numFmt w:val="bullet"/><w:lvlText w:val="•"/></w:lvl>
  </w:abstractNum>
  <w:num w:numId="1"><w:abstractNumId w:val="7"/></w:num>
  <w:num w:numId="2"><w:abstractNumId w:val="8"/></w:num>
</w:numbering>"""


def word(*, title: str = "") -> Any:
    """An empty document with the numbering above."""
    document = docx.Document()
    document.core_properties.title = title
    part = document.part.numbering_part
    part._element = parse_xml(NUMBERING)
    return document


def in_list(paragraph: Any, number: int, level: int = 0) -> None:
    """Make it an item of list `number`."""
    about = paragraph._p.get_or_add_pPr()
    about.append(parse_xml(f'<w:numPr {nsdecls("w")}><w:ilvl w:val="{level}"/><w:numId w:val="{number}"/></w:numPr>'))


def outline(paragraph: Any, level: int) -> None:
    """Give it an outline level of its own, from 0."""
    paragraph._p.get_or_add_pPr().append(parse_xml(f'<w:outlineLvl {nsdecls("w")} w:val="{level}"/>'))


def saved(document: Any) -> bytes:
    data = io.BytesIO()
    document.save(data)
    return data.getvalue()


def workbook(sheets: Mapping[str, Sequence[Sequence[Any]]], *, formats: Mapping[str, str] | None = None) -> bytes:
    """`formats`: number formats by cell, such as {"B2": "0%"}, on every sheet."""
    book = openpyxl.Workbook()
    book.remove(book.active)
    for name, rows in sheets.items():
        sheet = book.create_sheet(name)
        for row in rows:
            sheet.append(list(row))
        for cell, how in (formats or {}).items():
            sheet[cell].number_format = how
    return saved(book)


def excel(rows: Sequence[Sequence[str]]) -> bytes:
    """One sheet as Excel itself writes it: texts in a part of their own."""
    data = io.BytesIO()
    book = xlsxwriter.Workbook(data)
    sheet = book.add_worksheet()
    for number, row in enumerate(rows):
        sheet.write_row(number, 0, row)
    book.close()
    return data.getvalue()


def deck(slides: Sequence[tuple[str, Sequence[str], str]]) -> bytes:
    """Slides of (title, lines, notes)."""
    show = pptx.Presentation()
    for title, lines, notes in slides:
        slide = show.slides.add_slide(show.slide_layouts[5 if title else 6])
        if title:
            slide.shapes.title.text = title
        if lines:
            slide.shapes.add_textbox(Inches(1), Inches(2), Inches(6), Inches(2)).text_frame.text = "\n".join(lines)
        if notes:
            slide.notes_slide.notes_text_frame.text = notes
    return saved(show)


def book(chapters: Mapping[str, str], *, title: str = "", more: Mapping[str, str] | None = None) -> bytes:
    """An EPUB: {file name: body}. `more`: further members."""
    items = "".join(
        f'<item id="c{i}" href="text/{name}" media-type="application/xhtml+xml"/>' for i, name in enumerate(chapters)
    )
    spine = "".join(f'<itemref idref="c{i}"/>' for i in range(len(chapters)))
    members = {
        "mimetype": "application/epub+zip",
        "META-INF/container.xml": '<container xmlns="urn:oasis:names:tc:opendocument:xmlns:container"><rootfiles>'
        '<rootfile full-path="OEBPS/content.opf"/></rootfiles></container>',
        "OEBPS/content.opf": '<package xmlns="http://www.idpf.org/2007/opf"><metadata '
        f'xmlns:dc="http://purl.org/dc/elements/1.1/"><dc:title>{title}</dc:title></metadata>'
        f"<manifest>{items}</manifest><spine>{spine}</spine></package>",
        **{
            f"OEBPS/text/{name}": '<?xml version="1.0"?><html xmlns="http://www.w3.org/1999/xhtml"><head><title/></head>'
            f"<body>{body}</body></html>"
            for name, body in chapters.items()
        },
        **(more or {}),
    }
    return zipped(members)


def zipped(members: Mapping[str, str | bytes]) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return data.getvalue()


def changed(data: bytes, member: str, change: Callable[[str], str]) -> bytes:
    """An archive with one member's text changed."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    members[member] = change(members[member].decode()).encode()
    return zipped(members)


def added(data: bytes, more: Mapping[str, str | bytes]) -> bytes:
    """An archive with further members."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return zipped({**{name: archive.read(name) for name in archive.namelist()}, **more})
