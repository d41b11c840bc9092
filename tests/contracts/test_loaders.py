"""Every loader of the table: blocks are spans of one text in order, and what is no such file is refused in our words."""

from collections.abc import Callable
from pathlib import Path

import pytest

import office
from mofang.errors import Unreadable
from mofang.knowledge import LOADERS
from mofang.knowledge.base import ParsedDocument
from mofang.knowledge.loaders import parse

SAMPLES = Path(__file__).parent.parent / "knowledge" / "samples"

TEXT = "第一章 总则\n\n为了保护合法权益，制定本法。“好。”😀\n\n第二段话，全角ＡＢＣ。\n"
MARKDOWN = "# 总则\n\n为了保护**合法权益**，制定本法。\n\n- 甲\n- 乙\n\n| 名 | 值 |\n|---|---|\n| 甲 | 1 |\n\n```py\na = 1\n```\n"
HTML = (
    "<html><head><title>法</title><style>x{}</style></head><body><nav>导航</nav><h1>总则</h1>"
    "<p>为了保护<b>合法权益</b>，制定本法。</p><ul><li>甲<li>乙</ul><table><tr><th>名<th>值<tr><td>甲<td>1</table>"
    "<pre>a = 1\n  b</pre><script>alert(1)</script></body></html>"
)


_NO_DOCUMENT = {
    "empty": b"",
    "blank": b" \n\t \n",
    "program": b"\x7fELF\0\0\0\1" * 50,
    "picture": b"\xff\xd8\xff\xe0\0\x10JFIF\0\1" + bytes(range(256)) * 8,
}


def _word() -> bytes:
    made = office.word()
    made.add_heading("总则", 1)
    made.add_paragraph("为了保护合法权益，制定本法。")
    office.in_list(made.add_paragraph("甲"), 1)
    made.add_table(2, 2).cell(0, 0).text = "名"
    return office.saved(made)


MADE: dict[str, Callable[[], bytes]] = {
    **dict.fromkeys(("txt", "text"), TEXT.encode),
    **dict.fromkeys(("md", "markdown"), MARKDOWN.encode),
    **dict.fromkeys(("html", "htm"), HTML.encode),
    "pdf": (SAMPLES / "员工手册.pdf").read_bytes,
    **dict.fromkeys(("docx", "docm"), _word),
    **dict.fromkeys(
        ("xlsx", "xlsm"),
        lambda: office.workbook({"价目": [["名", "值"], ["甲", 1]], "问答": [["问", "答"], ["几点？", "九点"]]}),
    ),
    "pptx": lambda: office.deck([("总则", ["甲", "乙"], "备注")]),
    "csv": "名,值\n甲,1\n".encode,
    "tsv": "问题\t答案\n几点开门？\t九点。\n".encode,
    "jsonl": '{"title": "总则", "text": "甲"}\n{"question": "几点？", "answer": "九点"}\n'.encode,
    "epub": lambda: office.book({"a.xhtml": "<h1>总则</h1><p>甲</p>"}, title="法"),
}
WITHOUT_HEADINGS = {"csv", "tsv"}


def _sample(kind: str, folder: Path) -> Path:
    path = folder / f"样本.{kind}"
    path.write_bytes(MADE[kind]())
    return path


@pytest.mark.parametrize("kind", LOADERS.names())
def test_blocks_are_spans_in_order_that_cover_the_text(kind: str, tmp_path: Path) -> None:
    document = parse(_sample(kind, tmp_path), f"样本.{kind}")
    assert isinstance(document, ParsedDocument)
    assert document.title
    assert any("\u4e00" <= character <= "\u9fff" for character in document.text)
    end = 0
    for block in document.blocks:
        assert end <= block.start < block.end <= len(document.text)
        assert document.text[end : block.start].strip() == ""
        assert document.text[block.start : block.end].strip()
        assert all(heading.strip() == heading != "" for heading in block.headings)
        assert block.lead is None or 0 <= block.lead[0] < block.lead[1] <= block.end
        assert block.kind != "qa" or (block.lead and block.lead[0] == block.start and block.lead[1] < block.end)
        end = block.end
    assert document.text[end:].strip() == ""
    if kind not in WITHOUT_HEADINGS:
        assert any(block.headings for block in document.blocks), "the heading path reaches what stands under it"


@pytest.mark.parametrize("kind", LOADERS.names())
@pytest.mark.parametrize("content", _NO_DOCUMENT.values(), ids=_NO_DOCUMENT)
def test_what_is_no_document_is_refused(kind: str, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(content)
    with pytest.raises(Unreadable) as fault:
        parse(path, f"坏.{kind}")
    assert fault.value.message("zh") and fault.value.message("en") and fault.value.hint("zh")


@pytest.mark.parametrize("kind", LOADERS.names())
def test_every_name_is_a_suffix_with_a_summary(kind: str) -> None:
    assert kind == kind.lower().strip(". ")
    assert LOADERS.entry(kind).summary
    assert callable(LOADERS.get(kind))
