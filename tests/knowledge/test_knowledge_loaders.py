"""Text, Markdown and web pages: golden structures, encodings, and formats that are not read yet."""

from pathlib import Path

import pytest

from mofang.errors import TooLarge, Unreadable
from mofang.knowledge.base import ParsedDocument
from mofang.knowledge.loaders import parse


def _read(tmp_path: Path, name: str, content: str | bytes) -> ParsedDocument:
    path = tmp_path / "x"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return parse(path, name)


def _outline(document: ParsedDocument) -> list[tuple[str, str, str]]:
    """(kind, headings, text) of each block."""
    return [(b.kind, "/".join(b.headings), document.text[b.start : b.end]) for b in document.blocks]


def test_text_with_chapters(tmp_path: Path) -> None:
    document = _read(
        tmp_path, "a/劳动法.txt", "前言\r\n\r\n第一章 总则\r\n第一条　立法。\r\n\r\n第二章 合同\n第二条　订立。\n"
    )
    assert document.title == "劳动法"
    assert _outline(document) == [
        ("paragraph", "", "前言\n"),
        ("heading", "", "第一章 总则"),
        ("paragraph", "第一章 总则", "第一条　立法。\n"),
        ("heading", "", "第二章 合同"),
        ("paragraph", "第二章 合同", "第二条　订立。\n"),
    ]


def test_a_contents_line_and_a_sentence_are_no_headings(tmp_path: Path) -> None:
    document = _read(tmp_path, "x.txt", "第一章 总则 …………… 3\n第三章的规定在这里不适用，因为它已经废止。\n")
    assert [block.kind for block in document.blocks] == ["paragraph"]


def test_gbk_text_is_read_and_the_guess_is_noted(tmp_path: Path) -> None:
    document = _read(tmp_path, "旧文件.txt", "为了保护劳动者的合法权益，调整劳动关系。".encode("gbk"))
    assert document.text == "为了保护劳动者的合法权益，调整劳动关系。"
    assert "gb18030" in document.notes[0]


def test_markdown(tmp_path: Path) -> None:
    source = (
        "---\ntitle: '使用 手册'\ntags: [a]\n---\n"
        "# 一级 **粗** `码`\n\n引言[链接](http://x)。\n\n## 二级\n\n- 甲\n  - 乙\n- 丙\n\n"
        "| 名 | 值 |\n|----|----|\n| 甲 | 1 |\n\n```sh\n# 不是标题\nls\n```\n\n> 引用\n\n另一级\n======\n\n尾。\n"
    )
    document = _read(tmp_path, "m.md", source)
    assert document.text == source, "the canonical text is the source"
    assert document.title == "使用 手册"
    one, two, other = "一级 粗 码", "一级 粗 码/二级", "另一级"
    assert _outline(document) == [
        ("heading", "", "# 一级 **粗** `码`"),
        ("paragraph", one, "引言[链接](http://x)。"),
        ("heading", one, "## 二级"),
        ("list", two, "- 甲\n  - 乙\n- 丙"),
        ("table", two, "| 名 | 值 |\n|----|----|\n| 甲 | 1 |"),
        ("code", two, "```sh\n# 不是标题\nls\n```"),
        ("paragraph", two, "> 引用"),
        ("heading", "", "另一级\n======"),
        ("paragraph", other, "尾。"),
    ]


def test_markdown_without_front_matter_takes_its_first_heading(tmp_path: Path) -> None:
    assert _read(tmp_path, "m.md", "文\n\n## 标题\n").title == "标题"
    assert _read(tmp_path, "无题.markdown", "只有正文").title == "无题"


def test_html(tmp_path: Path) -> None:
    source = """<!doctype html><html><head><title> 帮助 · 背景 </title><style>p{}</style><script>var a;</script></head><body>
    <header><p>网站抬头</p></header><nav><a>导航</a></nav>
    <article><h1>背景<b>颜色</b></h1><p>在表格中，
    您可以定义背景。第一行<br>第二行</p>
    <h2>步骤</h2><ol><li><p>选择单元格。</p></li><li>打开<em>格式</em><ul><li>背景</li></ul></li></ol>
    <table><caption>键</caption><tr><th>键</th><th>作用</th></tr><tr><td>F1</td><td>帮
    助</td></tr></table>
    <pre>a = 1
  b = 2</pre><dl><dt>术语</dt><dd>解释。</dd></dl><p hidden>藏</p><noscript>无</noscript></article>
    <footer>版权</footer></body></html>"""
    document = _read(tmp_path, "h.html", source)
    assert document.title == "帮助 · 背景"
    one, two = "背景颜色", "背景颜色/步骤"
    assert _outline(document) == [
        ("heading", "", "背景颜色"),
        ("paragraph", one, "在表格中，您可以定义背景。第一行\n第二行"),
        ("heading", one, "步骤"),
        ("list", two, "1. 选择单元格。\n2. 打开格式\n  - 背景"),
        ("table", two, "键\n键 | 作用\nF1 | 帮助"),
        ("code", two, "a = 1\n  b = 2"),
        ("list", two, "术语\n解释。"),
    ]


def test_html_main_is_all_that_counts(tmp_path: Path) -> None:
    document = _read(tmp_path, "h.htm", "<body><div>外面</div><main><p>里面</p></main></body>")
    assert document.text == "里面"


def test_html_tables_that_lay_out_the_page_are_walked_through(tmp_path: Path) -> None:
    source = "<table><tr><td><h1>题</h1><p>文</p><table><tr><td>1<td>2</table></td></tr></table>"
    assert [kind for kind, _, _ in _outline(_read(tmp_path, "h.html", source))] == ["heading", "paragraph", "table"]


@pytest.mark.parametrize(("charset", "encoding"), [("gb2312", "gbk"), ("big5", "big5")])
def test_html_says_its_own_encoding(charset: str, encoding: str, tmp_path: Path) -> None:
    words = "繁體中文" if encoding == "big5" else "简体中文"
    document = _read(tmp_path, "h.html", f'<meta charset="{charset}"><p>{words}</p>'.encode(encoding))
    assert (document.text, document.notes) == (words, ())


def test_html_nested_beyond_the_recursion_limit(tmp_path: Path) -> None:
    assert _read(tmp_path, "h.html", "<div>" * 5000 + "深" + "</div>" * 5000).text == "深"


@pytest.mark.parametrize("name", ["合同.doc", "表.XLS", "片.ppt", "包.rar", "文.wps", "x.odt"])
def test_formats_of_before_2007_and_others_are_refused_with_what_to_do(name: str, tmp_path: Path) -> None:
    with pytest.raises(Unreadable) as fault:
        _read(tmp_path, name, b"PK\x03\x04")
    assert fault.value.code == "format_later"
    assert name in fault.value.message("zh") and "PDF" in fault.value.hint("zh")


@pytest.mark.parametrize("name", ["无后缀", "x.exe", "a.b/c", ".txt"])
def test_an_unknown_suffix_names_the_known_ones(name: str, tmp_path: Path) -> None:
    with pytest.raises(Unreadable) as fault:
        _read(tmp_path, name, "文")
    assert fault.value.code == "unknown_format"
    assert "pdf" in fault.value.message("zh")


def test_a_file_beyond_the_limit(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"a" * 2_000_001)
    with pytest.raises(TooLarge) as fault:
        parse(path, "大.txt", limit_bytes=1_000_000)
    assert "2 MB" in fault.value.message("zh")
