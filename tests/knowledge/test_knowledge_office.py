"""Word, Excel, PowerPoint, EPUB, CSV, JSON Lines: golden structures, places, questions with answers."""

import datetime
import re
from pathlib import Path

import pytest
from docx.oxml import parse_xml
from docx.oxml.ns import nsdecls
from hypothesis import given, settings
from hypothesis import strategies as st

import office
from mofang.errors import Unreadable
from mofang.knowledge.base import Block, ParsedDocument
from mofang.knowledge.loaders import parse
from mofang.knowledge.loaders.build import Builder, good_title
from mofang.knowledge.loaders.docx_numbering import chinese, roman, spelled
from mofang.knowledge.loaders.table import Rows
from mofang.messages import Place


def _read(tmp_path: Path, name: str, content: bytes | str) -> ParsedDocument:
    path = tmp_path / "x"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return parse(path, name)


def _outline(document: ParsedDocument) -> list[tuple[str, str, str]]:
    return [(b.kind, "/".join(b.headings), document.text[b.start : b.end]) for b in document.blocks]


def _lead(document: ParsedDocument, block: Block) -> str:
    return document.text[slice(*block.lead)] if block.lead else ""


# ---- Word ----


def test_word_headings_by_style_and_by_outline_level(tmp_path: Path) -> None:
    made = office.word(title="差旅制度")
    made.add_heading("总则", 1)
    made.add_paragraph("为了规范出差，制定本制度。")
    office.outline(made.add_paragraph("住宿"), 1)
    made.add_paragraph("每晚不超过\n三百元。")
    made.add_paragraph("第二章 附则")
    made.add_paragraph("自发布之日起施行。")
    document = _read(tmp_path, "差旅.docx", office.saved(made))
    assert document.title == "差旅制度"
    assert _outline(document) == [
        ("heading", "", "总则"),
        ("paragraph", "总则", "为了规范出差，制定本制度。"),
        ("heading", "总则", "住宿"),
        ("paragraph", "总则/住宿", "每晚不超过\n三百元。"),
        ("heading", "总则/住宿", "第二章 附则"),
        ("paragraph", "总则/住宿/第二章 附则", "自发布之日起施行。"),
    ]


def test_word_numbers_are_counted_as_word_shows_them(tmp_path: Path) -> None:
    made = office.word()
    for text, number, level in (
        ("立法目的。", 1, 0),
        ("适用范围：", 1, 0),
        ("企业；", 1, 1),
        ("个体。", 1, 1),
        ("施行。", 1, 0),
        ("例外：", 1, 0),
        ("机关。", 1, 1),
    ):
        office.in_list(made.add_paragraph(text), number, level)
    made.add_paragraph("正文。")
    office.in_list(made.add_paragraph("带伞"), 2)
    assert _outline(_read(tmp_path, "法.docx", office.saved(made))) == [
        (
            "list",
            "",
            "第一条 立法目的。\n第二条 适用范围：\n  （1） 企业；\n  （2） 个体。\n第三条 施行。\n第四条 例外：\n  （1） 机关。",
        ),
        ("paragraph", "", "正文。"),
        ("list", "", "- 带伞"),
    ]


@pytest.mark.parametrize(
    ("n", "words"),
    [
        (1, "一"),
        (10, "十"),
        (12, "十二"),
        (20, "二十"),
        (105, "一百〇五"),
        (110, "一百一十"),
        (1010, "一千〇一十"),
        (10000, "10000"),
    ],
)
def test_numbers_in_chinese(n: int, words: str) -> None:
    assert chinese(n) == words


def test_numbers_in_other_formats() -> None:
    assert [roman(n) for n in (4, 9, 14, 1994)] == ["IV", "IX", "XIV", "MCMXCIV"]
    assert [spelled(n, "lowerLetter") for n in (1, 26, 27)] == ["a", "z", "aa"]
    assert spelled(3, "decimalEnclosedCircle") == "③" and spelled(2, "no such format") == "2"


def test_word_tables_have_a_header_and_merged_cells_are_said_in_each_row(tmp_path: Path) -> None:
    made = office.word()
    table = made.add_table(4, 3)
    for row, texts in zip(
        table.rows,
        [("城市", "职级", "标准"), ("一线", "经理", "500"), ("", "员工", "400"), ("其他", "全部", "300")],
        strict=True,
    ):
        for cell, text in zip(row.cells, texts, strict=True):
            cell.text = text
    table.cell(1, 0).merge(table.cell(2, 0))
    document = _read(tmp_path, "表.docx", office.saved(made))
    (block,) = document.blocks
    assert (block.kind, document.text) == (
        "table",
        "城市 | 职级 | 标准\n一线 | 经理 | 500\n一线 | 员工 | 400\n其他 | 全部 | 300",
    )
    assert _lead(document, block) == "城市 | 职级 | 标准"


def test_a_word_table_of_one_cell_is_a_frame(tmp_path: Path) -> None:
    made = office.word()
    cell = made.add_table(1, 1).cell(0, 0)
    cell.text = "框里的第一段。"
    cell.add_paragraph("框里的第二段。")
    assert [kind for kind, _, _ in _outline(_read(tmp_path, "框.docx", office.saved(made)))] == [
        "paragraph",
        "paragraph",
    ]


def test_word_text_in_content_controls_insertions_and_boxes_is_text_and_deleted_text_is_not(tmp_path: Path) -> None:
    made = office.word()
    made.element.body.insert(
        0,
        parse_xml(
            f"<w:sdt {nsdecls('w')}><w:sdtContent><w:p><w:r><w:t>控件里。</w:t></w:r>"
            '<w:ins w:id="1" w:author="a"><w:r><w:t>插入的。</w:t></w:r></w:ins>'
            '<w:del w:id="2" w:author="a"><w:r><w:delText>删掉的。</w:delText></w:r></w:del></w:p></w:sdtContent></w:sdt>'
        ),
    )
    box = (
        "<w:p><w:r><mc:AlternateContent xmlns:mc='http://schemas.openxmlformats.org/markup-compatibility/2006'>"
        "<mc:Choice Requires='wps'><w:txbxContent><w:p><w:r><w:t>框内。</w:t></w:r></w:p></w:txbxContent></mc:Choice>"
        "<mc:Fallback><w:txbxContent><w:p><w:r><w:t>框内。</w:t></w:r></w:p></w:txbxContent></mc:Fallback>"
        "</mc:AlternateContent></w:r><w:r><w:t>框外。</w:t></w:r></w:p>"
    )
    made.element.body.insert(1, parse_xml(box.replace("<w:p>", f"<w:p {nsdecls('w')}>", 1)))
    document = _read(tmp_path, "控.docx", office.saved(made))
    assert document.text == "控件里。插入的。\n\n框外。\n\n框内。"


def test_word_footnotes_follow_their_paragraph(tmp_path: Path) -> None:
    made = office.word()
    paragraph = made.add_paragraph("税率为百分之六")
    paragraph._p.append(parse_xml(f'<w:r {nsdecls("w")}><w:footnoteReference w:id="2"/></w:r>'))
    made.add_paragraph("后文。")
    data = office.saved(made)
    kind = "http://schemas.openxmlformats.org/officeDocument/2006/relationships/footnotes"
    data = office.changed(
        data,
        "word/_rels/document.xml.rels",
        lambda x: x.replace(
            "</Relationships>", f'<Relationship Id="rF" Type="{kind}" Target="footnotes.xml"/></Relationships>'
        ),
    )
    data = office.changed(
        data,
        "[Content_Types].xml",
        lambda x: x.replace(
            "</Types>",
            '<Override PartName="/word/footnotes.xml" ContentType="application/vnd.openxmlformats-officedocument.wordprocessingml.footnotes+xml"/></Types>',
        ),
    )
    notes = (
        f'<w:footnotes {nsdecls("w")}><w:footnote w:type="separator" w:id="0"><w:p/></w:footnote>'
        '<w:footnote w:id="2"><w:p><w:r><w:t>一般纳税人。</w:t></w:r></w:p></w:footnote></w:footnotes>'
    )
    data = office.added(data, {"word/footnotes.xml": notes})
    assert _read(tmp_path, "税.docx", data).text == "税率为百分之六〔1〕\n\n〔1〕一般纳税人。\n\n后文。"


# ---- Excel ----


def test_workbook_rows_know_their_sheet_and_row(tmp_path: Path) -> None:
    rows = [
        ["2026 年差旅标准"],
        [],
        ["城市", "税率", "日期"],
        ["北京", 0.13, datetime.datetime(2026, 1, 2)],
        [],
        ["上海", 3.0, True],
        ["备\n注", None, "x | y"],
    ]
    document = _read(
        tmp_path, "表.xlsx", office.workbook({"差旅标准": rows, "Sheet2": [["甲", "乙"], [1, 2]]}, formats={"B4": "0%"})
    )
    assert _outline(document) == [
        ("paragraph", "差旅标准", "2026 年差旅标准"),
        ("table", "差旅标准", "城市 | 税率 | 日期\n北京 | 13% | 2026-01-02"),
        ("table", "差旅标准", "上海 | 3 | TRUE\n备 注 |  | x | y"),
        ("table", "", "甲 | 乙\n1 | 2"),
    ]
    assert [block.place for block in document.blocks] == [
        Place(sheet="差旅标准", row=1),
        Place(sheet="差旅标准", row=3),
        Place(sheet="差旅标准", row=6),
        Place(sheet="Sheet2", row=1),
    ]
    assert [_lead(document, block) for block in document.blocks] == [
        "",
        "城市 | 税率 | 日期",
        "城市 | 税率 | 日期",
        "甲 | 乙",
    ]


def test_a_long_sheet_is_many_blocks_under_one_header(tmp_path: Path) -> None:
    rows = [["编号", "名称"], *([i, f"物品{i}"] for i in range(450))]
    document = _read(tmp_path, "长.xlsx", office.workbook({"Sheet1": rows}))
    assert [(block.place.row, _lead(document, block)) for block in document.blocks if block.place] == [
        (1, "编号 | 名称"),
        (201, "编号 | 名称"),
        (401, "编号 | 名称"),
    ]
    assert document.text.count("\n") == 450 + 2


def test_formulas_that_were_never_computed_are_told(tmp_path: Path) -> None:
    document = _read(tmp_path, "算.xlsx", office.workbook({"Sheet1": [["单价", "合计"], [3, "=A2*2"], [4, "=A3*2"]]}))
    assert document.text == "单价 | 合计\n3\n4"
    assert "2 个公式" in document.notes[0]


# ---- questions and answers ----


@pytest.mark.parametrize(
    "header",
    [
        ("问题", "答案"),
        ("question", "answer"),
        ("Q", "A"),
        ("instruction", "output"),
        ("prompt", "completion"),
        ("标准问题", "参考答案"),
    ],
)
def test_questions_are_told_by_their_column_names(header: tuple[str, str], tmp_path: Path) -> None:
    document = _read(tmp_path, "问.csv", f"{header[0]},{header[1]}\n怎么报销？,填单。\n几天到账？,三天。\n")
    assert _outline(document) == [("qa", "", "怎么报销？\n填单。"), ("qa", "", "几天到账？\n三天。")]
    assert [_lead(document, block) for block in document.blocks] == ["怎么报销？", "几天到账？"]
    assert [block.place for block in document.blocks] == [Place(row=2), Place(row=3)]


def test_questions_in_a_workbook_keep_their_other_columns_and_halves_are_told(tmp_path: Path) -> None:
    rows = [
        ["分类", "问题", "答案1", "答案2"],
        ["财务", "怎么报销？", "填单。", "再找经理签字。"],
        ["财务", "没有答案的问题？", None, None],
    ]
    document = _read(tmp_path, "问.xlsx", office.workbook({"Sheet1": rows}))
    assert _outline(document) == [
        ("qa", "", "怎么报销？\n填单。\n再找经理签字。\n分类：财务"),
        ("paragraph", "", "财务 | 没有答案的问题？"),
    ]
    assert "Sheet1!3" in document.notes[0]


def test_json_lines(tmp_path: Path) -> None:
    lines = [
        '{"instruction": "翻译", "input": "你好", "output": "hello"}',
        '{"question": "几点开门？", "answers": ["九点。", "周末十点。"]}',
        '{"_id": "7", "title": "开放时间", "text": "每天九点。"}',
        "",
        '{"名称": "螺丝", "数量": 3}',
        "不是 JSON",
    ]
    document = _read(tmp_path, "记.jsonl", "\n".join(lines))
    assert _outline(document) == [
        ("qa", "", "翻译\n你好\nhello"),
        ("qa", "", "几点开门？\n九点。\n周末十点。"),
        ("heading", "", "开放时间"),
        ("paragraph", "开放时间", "每天九点。"),
        ("paragraph", "", "名称：螺丝\n数量：3"),
    ]
    assert [block.place.row for block in document.blocks if block.place] == [1, 2, 3, 3, 5]
    assert _lead(document, document.blocks[0]) == "翻译\n你好"
    assert "第 6 行" in document.notes[0]


def test_json_lines_without_any_object(tmp_path: Path) -> None:
    with pytest.raises(Unreadable) as fault:
        _read(tmp_path, "x.jsonl", "[1]\n[2]\n")
    assert fault.value.code == "jsonl_damaged" and "question" in fault.value.hint("zh")


# ---- CSV ----


@pytest.mark.parametrize("delimiter", [",", "\t", ";", "|"])
@pytest.mark.parametrize("encoding", ["utf-8-sig", "gb18030", "big5", "utf-16"])
def test_tables_of_any_delimiter_and_encoding(delimiter: str, encoding: str, tmp_path: Path) -> None:
    rows = [["姓名", "部門", "電話"], ["王小明", "財務部門", "12345"], ["李大華", '"總務,採購;及|其他\t"', "67890"]]
    text = "\r\n".join(delimiter.join(row) for row in rows)
    document = _read(tmp_path, "表.csv", text.encode(encoding))
    assert document.text == "姓名 | 部門 | 電話\n王小明 | 財務部門 | 12345\n李大華 | 總務,採購;及|其他 | 67890"
    assert _lead(document, document.blocks[0]) == "姓名 | 部門 | 電話"


def test_a_line_break_inside_quotes_stays_in_its_row(tmp_path: Path) -> None:
    document = _read(tmp_path, "x.csv", '名,说明\n甲,"第一行\n第二行"\n乙,短\n')
    assert document.text == "名 | 说明\n甲 | 第一行 第二行\n乙 | 短"


# ---- PowerPoint ----


def test_slides(tmp_path: Path) -> None:
    data = office.deck([("年度计划", ["目标一", "目标二"], "讲三分钟"), ("", ["没有标题的一页"], ""), ("", [], "")])
    document = _read(tmp_path, "片.pptx", data)
    assert (document.title, document.n_pages) == ("年度计划", 3)
    assert _outline(document) == [
        ("heading", "", "年度计划"),
        ("list", "年度计划", "目标一\n目标二"),
        ("paragraph", "年度计划", "备注：讲三分钟"),
        ("paragraph", "", "没有标题的一页"),
    ]
    assert [block.place for block in document.blocks] == [Place(slide=1)] * 3 + [Place(slide=2)]
    assert "第 3 张" in document.notes[0]


# ---- EPUB ----


def test_a_book_in_the_order_of_reading(tmp_path: Path) -> None:
    chapters = {"b.xhtml": "<h1>第一回</h1><p>话说<a id='x'/>天下大势。</p>", "a.xhtml": "<p>没有标题。</p>"}
    document = _read(tmp_path, "书.epub", office.book(chapters, title="演义"))
    assert document.title == "演义"
    assert _outline(document) == [
        ("heading", "", "第一回"),
        ("paragraph", "第一回", "话说天下大势。"),
        ("paragraph", "", "没有标题。"),
    ]


def test_a_locked_book_is_said_and_hidden_fonts_are_not_a_lock(tmp_path: Path) -> None:
    def lock(path: str) -> dict[str, str]:
        return {"META-INF/encryption.xml": f'<encryption xmlns="x"><CipherReference URI="{path}"/></encryption>'}

    with pytest.raises(Unreadable) as fault:
        _read(tmp_path, "锁.epub", office.book({"a.xhtml": "<p>文</p>"}, more=lock("OEBPS/text/a.xhtml")))
    assert fault.value.code == "epub_locked"
    assert _read(tmp_path, "字.epub", office.book({"a.xhtml": "<p>文</p>"}, more=lock("OEBPS/f.otf"))).text == "文"


# ---- rows of cells ----

CELLS = st.lists(st.sampled_from(["", "", "甲", "乙 丙", "x\ny", "问题", "答案", "3"]), max_size=4)


@settings(max_examples=300)
@given(rows=st.lists(CELLS, max_size=30))
def test_no_word_of_a_sheet_is_lost_and_every_block_knows_its_row(rows: list[list[str]]) -> None:
    builder = Builder()
    Rows(builder, "表").add_all(enumerate(rows, start=1))
    text = builder.text
    found: dict[int, str] = {}
    for block in builder.blocks:
        assert block.place and block.place.sheet == "表" and block.place.row
        body = text[block.start : block.end]
        lines = body.split("\n") if block.kind == "table" else [body]
        found |= {block.place.row + i: line for i, line in enumerate(lines)}
        assert block.lead is None or text[slice(*block.lead)].strip()
    for number, cells in enumerate(rows, start=1):
        words = [" ".join(cell.split()) for cell in cells if cell.strip()]
        if set(words) >= {"问题", "答案"} and number not in found:
            continue  # the header of questions and answers is not a row of its own
        assert sorted(" ".join(words).split()) == sorted(_bare(found.get(number, ""))), number


def _bare(line: str) -> list[str]:
    """The words of a row's block, without what joins cells and without the names of further columns."""
    return re.sub(r"(?m)^.*：|\|", " ", line).split()


@pytest.mark.parametrize(
    "title", ["Microsoft Word - 合同.doc", "PowerPoint 演示文稿", "幻灯片 1", "报告.pptx", "  ", None]
)
def test_titles_that_programs_write_are_none(title: str | None) -> None:
    assert good_title(title) == "" and good_title("年度 报告\n（终）") == "年度 报告 （终）"
