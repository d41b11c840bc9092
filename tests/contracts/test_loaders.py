"""Every loader of the table: blocks are spans of one text in order, and what is no such file is refused in our words."""

from pathlib import Path

import pytest

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


def _sample(kind: str, folder: Path) -> Path:
    made = {"txt": TEXT, "text": TEXT, "md": MARKDOWN, "markdown": MARKDOWN, "html": HTML, "htm": HTML}
    if kind == "pdf":
        return SAMPLES / "员工手册.pdf"
    path = folder / f"样本.{kind}"
    path.write_text(made[kind], encoding="utf-8")
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
        end = block.end
    assert document.text[end:].strip() == ""
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
