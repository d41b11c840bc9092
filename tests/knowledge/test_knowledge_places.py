"""Places from a file to a hit, a source, the prompt and the words for people; header rows and questions that travel along."""

import json
import sqlite3
from contextlib import closing
from dataclasses import asdict
from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st
from knowledge_bench import Bench, TokenCounter
from pdfs import pdf

import office
from mofang.knowledge import schema
from mofang.knowledge.base import Block, ParsedDocument
from mofang.knowledge.loaders import pdf as pdf_loader
from mofang.knowledge.passage import digest, passage
from mofang.knowledge.schema import TEXT_PART
from mofang.knowledge.split.sentence import split
from mofang.knowledge.store import FILE, span
from mofang.messages import Message, Place
from mofang.strings import where
from mofang.text.words import words


async def _ground(bench: Bench, question: str) -> tuple[list[dict[str, object]], str]:
    messages = [Message("user", question)]
    found = await bench.library.ground(["库"], messages, engine=TokenCounter(), max_prompt_tokens=8000)  # type: ignore[arg-type]
    return [asdict(source) for source in found.sources], found.messages[-1].text


async def test_a_row_far_down_a_sheet_is_found_with_its_header_and_cited_by_its_row(bench: Bench) -> None:
    rows = [
        ["城市", "标准（元/晚）", "说明"],
        *([f"城市{i}", 200 + i, "含早餐与税费，超出部分自理"] for i in range(300)),
    ]
    rows[251][0] = "敦煌"
    await bench.add(bench.write("标准.xlsx", office.workbook({"差旅": rows})))
    hit = (await bench.library.search(["库"], "敦煌"))[0]
    assert "敦煌" in hit.text and "城市 | 标准" not in hit.text
    assert hit.lead == "城市 | 标准（元/晚） | 说明"
    assert hit.place and hit.place.sheet == "差旅"
    first = next(line for line in hit.text.splitlines() if line.strip())
    assert hit.place.row == [" | ".join(map(str, row)) for row in rows].index(first) + 1
    assert any(
        text.startswith("差旅\n城市 | 标准（元/晚） | 说明\n") and "敦煌" in text for text in bench.embedder.passages
    )
    start = hit.start + hit.text.index("敦煌")
    shown = bench.library.text("库", hit.document_id, start, start + 2)
    assert shown["place"] == {"paragraph": 2, "sheet": "差旅", "row": 252, "slide": None}
    # A source may be joined from neighbours: its place is where it begins then.
    sources, prompt = await _ground(bench, "敦煌")
    source = next(one for one in sources if "敦煌" in str(one["text"]))
    place = source["place"]
    assert isinstance(place, dict) and place["sheet"] == "差旅"
    assert str(source["text"]).splitlines()[0] == " | ".join(map(str, rows[place["row"] - 1]))
    assert source["lead"] == hit.lead
    assert f"标准.xlsx > 差旅!{place['row']}\n城市 | 标准（元/晚） | 说明\n" in prompt
    assert json.loads(json.dumps(sources)) is not None


async def test_every_column_name_finds_every_part_of_its_table(bench: Bench) -> None:
    """The keyword leg sees the header too."""
    rows = [["工号", "紧急联系人"], *([str(1000 + i), f"某某某{i}"] for i in range(120))]
    await bench.add(bench.write("表.xlsx", office.workbook({"Sheet1": rows})))
    hits = await bench.library.search(["库"], "紧急联系人", k=50)
    n_chunks = bench.library.documents("库")[0].n_chunks
    assert n_chunks > 3 and sum(hit.bm25_rank is not None for hit in hits) == n_chunks


async def test_places_of_each_format(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pdf_loader, "_reader", lambda: None)
    await bench.add(
        bench.write("甲.pptx", office.deck([("封面", ["一"], ""), ("预算", ["采购麒麟服务器"], "")])),
        bench.write("乙.pdf", pdf([[], [(60, 400, 12, "凤凰计划的第二页。")]])),
        bench.write("丙.txt", "第一段。\n\n第二段说貔貅。\n"),
        bench.write("丁.csv", "问题,答案\n饕餮是什么？,一种神兽。\n"),
    )
    found = {}
    for query in ("麒麟", "凤凰", "貔貅", "饕餮"):
        hit = (await bench.library.search(["库"], query))[0]
        found[query] = (hit.place, hit.page, where(asdict(hit), "zh"), where(asdict(hit), "en"))
    assert found["麒麟"] == (Place(paragraph=3, slide=2), None, ["第 2 张幻灯片", "预算"], ["slide 2", "预算"])
    assert found["凤凰"] == (Place(paragraph=1), 2, ["第 2 页"], ["page 2"])
    # The first chunk of a short file holds both paragraphs: it begins with the first.
    assert found["貔貅"] == (Place(paragraph=1), None, ["第 1 段"], ["paragraph 1"])
    assert found["饕餮"] == (Place(paragraph=1, row=2), None, ["第 2 行"], ["row 2"])
    page = (await bench.library.search(["库"], "凤凰"))[0]
    assert page.box and page.box[0] == pytest.approx(60, abs=3) and 395 < page.box[1] < page.box[3] < 415


def test_a_sheet_that_is_also_a_heading_is_named_once() -> None:
    assert where({"place": {"sheet": "差旅", "row": 3}, "headings": ["差旅", "住宿"]}) == ["差旅!3", "住宿"]
    assert where({"page": None, "headings": [], "place": None}) == []


async def test_a_question_is_one_passage_and_can_be_known_again(bench: Bench) -> None:
    answer = "先在系统里填单，再交给财务。" * 30
    await bench.put(
        "问.jsonl",
        json.dumps({"question": "怎么报销？", "answer": answer}, ensure_ascii=False)
        + "\n"
        + '{"question": "几天到账？", "answer": "三天。"}',
    )
    assert [len(text) for text in bench.embedder.passages] == [len("怎么报销？\n" + answer), len("几天到账？\n三天。")]
    with closing(sqlite3.connect(bench.folder / "knowledge" / "库" / FILE)) as connection:
        rows = connection.execute("SELECT kind, lead FROM blocks ORDER BY n").fetchall()
    assert rows == [("qa", "[0, 5]"), ("qa", f"[{len(answer) + 8}, {len(answer) + 13}]")]
    hit = (await bench.library.search(["库"], "怎么报销？"))[0]
    assert hit.text == f"怎么报销？\n{answer}" and hit.lead == ""


# ---- the splitter ----


def _table(n: int) -> ParsedDocument:
    text = "\n".join(["名称 | 数量", *(f"物品{i:03} | {i}" for i in range(n))])
    return ParsedDocument(text, [Block("table", 0, len(text), (), lead=(0, 7))])


def test_each_further_part_of_a_table_is_read_with_its_header_within_the_limit() -> None:
    document = _table(60)
    first, *others = split(document, 100)
    assert first.lead is None and document.text[first.start :].startswith("名称")
    assert others and {chunk.lead for chunk in others} == {(0, 7)}
    for chunk in others:
        text = document.text[chunk.start : chunk.end]
        assert text.startswith("物品") and text[-1].isdigit()
        assert len(passage((), text, document.text[0:7])) <= 100


def test_a_header_that_is_too_long_is_repeated_in_part() -> None:
    header = "很长的列名" * 60
    assert len(passage((), "值", header)) <= 125
    text = f"{header}\n" + "\n".join(f"值{i}" for i in range(99))
    chunks = split(ParsedDocument(text, [Block("table", 0, len(text), (), lead=(0, len(header)))]), 100)
    assert all(chunk.end - chunk.start <= 100 for chunk in chunks)


def test_a_long_answer_is_cut_and_led_by_its_question() -> None:
    text = "问题是什么？\n" + "答案的一句话。" * 60
    block = Block("qa", 0, len(text), (), lead=(0, 6))
    (whole,) = split(ParsedDocument(text, [block]), 220)
    assert (whole.start, whole.end, whole.lead) == (0, len(text), None)
    first, *others = split(ParsedDocument(text, [block]), 100)
    assert first.lead is None and {chunk.lead for chunk in others} == {(0, 6)}


def test_nothing_is_packed_with_a_question() -> None:
    text = "甲？\n乙。\n\n丙？\n丁。\n\n散文。"
    blocks = [Block("qa", 0, 5, (), lead=(0, 2)), Block("qa", 7, 12, (), lead=(7, 9)), Block("paragraph", 14, 17)]
    assert [(chunk.start, chunk.end) for chunk in split(ParsedDocument(text, blocks))] == [(0, 5), (7, 12), (14, 17)]


# ---- old bases ----


async def _first_schema(bench: Bench, texts: dict[str, str]) -> None:
    """A base as the first schema had it: documents of one block and one chunk, which holds their last 40 characters."""
    path = bench.folder / "knowledge" / "库" / FILE
    for left in path.parent.glob(f"{FILE}*"):
        left.unlink()
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(f"{schema.MIGRATIONS[0]} PRAGMA user_version = 1;")
        connection.execute("INSERT INTO base VALUES ('库', '', 'hash', 512, '2026-01-01T00:00:00+00:00', 7)")
        for n, (name, text) in enumerate(texts.items(), start=1):
            start, sha = max(0, len(text) - 40), sha256(text.encode()).hexdigest()
            (path.parent / "files" / sha).write_text(text)
            key, (vector,) = digest(text[start:]), await bench.embedder.embed([text[start:]], "passage")
            connection.execute("INSERT INTO documents VALUES (?, ?, NULL)", (f"d{n}", name))
            connection.execute(
                "INSERT INTO versions VALUES (?, ?, ?, ?, ?, ?, ?, NULL, '[]', '2026-01-01T00:00:00+00:00')",
                (n, f"d{n}", sha, len(text.encode()), name, text, len(text)),
            )
            connection.execute("UPDATE documents SET version_id = ? WHERE id = ?", (n, f"d{n}"))
            connection.execute("INSERT INTO blocks VALUES (?, 0, 'paragraph', 0, ?, '[]', NULL, NULL)", (n, len(text)))
            connection.execute("INSERT INTO chunks VALUES (?, ?, ?, ?, '[]', ?)", (n, n, start, len(text), key))
            connection.execute("INSERT OR IGNORE INTO vectors VALUES (?, ?)", (key, vector.astype("<f4").tobytes()))
            cut = " ".join(words(text[start:]))
            connection.execute("INSERT INTO words (rowid, title, body) VALUES (?, ?, ?)", (n, "", cut))
        connection.commit()


async def test_a_base_of_the_first_schema_is_brought_up_to_date_with_all_that_it_holds(bench: Bench) -> None:
    long = "第一百条 规定的一句话，𠮷野家也在里面。\n\n" * 7_000 + "最后说一句麒麟。"
    assert len(long) > 2 * TEXT_PART
    await _first_schema(bench, {"短.txt": "年假五天。", "长.txt": long})
    hit = (await bench.library.search(["库"], "年假"))[0]
    assert (hit.text, hit.lead, hit.place) == ("年假五天。", "", Place(paragraph=1))
    with closing(sqlite3.connect(bench.folder / "knowledge" / "库" / FILE)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone()[0] == len(schema.MIGRATIONS)
    assert bench.library.text("库", "d2")["text"] == long
    end = (await bench.library.search(["库"], "麒麟"))[0]
    assert end.text == long[-40:] == long[end.start : end.end]
    report = await bench.add(bench.write("表.csv", "名,值\n甲,1\n"), bench.write("短.txt", "年假五天。"))
    assert [file.status for file in report.files] == ["added", "unchanged"]
    bench.library.remove_document("库", "d2")
    assert "麒麟" not in "".join(hit.text for hit in await bench.library.search(["库"], "麒麟"))


@given(text=st.text(alphabet="中a\n𠮷", max_size=60), data=st.data())
def test_spans_are_read_across_the_parts_of_a_text(text: str, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, len(text)))
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.execute("CREATE TABLE texts (version_id, start, text)")
        for at in range(0, len(text), 7):
            connection.execute("INSERT INTO texts VALUES (1, ?, ?)", (at, text[at : at + 7]))
            connection.execute("INSERT INTO texts VALUES (2, ?, ?)", (at, "另一份"))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("mofang.knowledge.store.TEXT_PART", 7)
            assert span(connection, 1, start, end) == text[start:end]
