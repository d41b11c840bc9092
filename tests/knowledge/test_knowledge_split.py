"""The sentence splitter's own promises: sentence ends, headings, whole tables."""

from mofang.knowledge.base import Block, ParsedDocument
from mofang.knowledge.split.sentence import split


def _document(*blocks: tuple[str, str, tuple[str, ...]]) -> ParsedDocument:
    text, made = "", []
    for kind, body, headings in blocks:
        made.append(Block(kind, len(text), len(text) + len(body), headings))  # type: ignore[arg-type]
        text += body + "\n\n"
    return ParsedDocument(text, made)


def _texts(document: ParsedDocument, limit: int = 350) -> list[str]:
    return [document.text[chunk.start : chunk.end] for chunk in split(document, limit)]


def test_cuts_only_at_sentence_ends_and_evenly() -> None:
    sentence = "这一句话正好二十个字加上一个句号而已呢。"
    texts = _texts(_document(("paragraph", sentence * 11, ())), limit=150)
    assert all(text.endswith("。") and text.startswith("这") for text in texts)
    assert max(map(len, texts)) - min(map(len, texts)) <= 2 * len(sentence), "no full chunks with a scrap at the end"


def test_a_closing_quote_stays_with_its_sentence() -> None:
    texts = _texts(_document(("paragraph", "他说：“走吧。”她说：“好。”" * 6, ())), limit=30)
    assert all(not text.startswith(("”", "。")) for text in texts)


def test_a_heading_stays_with_what_follows_it() -> None:
    document = _document(
        ("heading", "总则", ()), ("heading", "一", ("总则",)), ("paragraph", "文。", ("总则", "一")), ("heading", "二", ("总则",)),
        ("paragraph", "又。", ("总则", "二")),
    )  # fmt: skip
    assert _texts(document, limit=12) == ["总则\n\n一\n\n文。", "二\n\n又。"]
    assert [chunk.headings for chunk in split(document, 12)] == [("总则", "一"), ("总则", "二")]


def test_short_sections_are_one_chunk_under_the_headings_that_they_share() -> None:
    document = _document(
        ("heading", "按钮", ()), ("heading", "确定", ("按钮",)), ("paragraph", "保存并关闭。", ("按钮", "确定")),
        ("heading", "取消", ("按钮",)), ("paragraph", "放弃并关闭。", ("按钮", "取消")),
    )  # fmt: skip
    assert [(chunk.headings, chunk.start, chunk.end) for chunk in split(document)] == [
        (("按钮",), 0, len(document.text) - 2)
    ]
    assert len(split(document, len(document.text) - 3)) == 2, "not when they are too long together"


def test_sections_are_not_joined_when_a_heading_would_be_lost_or_they_share_none() -> None:
    rest = ("paragraph", "很长的一段。" * 5, ("甲", "一"))
    document = _document(
        ("heading", "甲", ()), ("heading", "一", ("甲",)), rest, rest, ("heading", "二", ("甲",)), ("paragraph", "短。", ("甲", "二"))
    )  # fmt: skip
    chunks = split(document, 45)
    assert [chunk.headings for chunk in chunks][-2:] == [("甲", "一"), ("甲", "二")], "what ends 一 does not say 一"
    apart = _document(
        ("heading", "甲", ()), ("paragraph", "文。", ("甲",)), ("heading", "乙", ()), ("paragraph", "文。", ("乙",))
    )
    assert [chunk.headings for chunk in split(apart)] == [("甲",), ("乙",)]


def test_a_table_that_fits_is_whole_and_one_that_does_not_is_cut_between_rows() -> None:
    rows = "\n".join(f"行{i} | 值{i}。有句号" for i in range(12))
    before = ("paragraph", "前。" * 40, ())
    assert rows in _texts(_document(before, ("table", rows, ())), limit=len(rows))
    for text in _texts(_document(("table", rows, ())), limit=60):
        assert text.startswith("行") and text.endswith("有句号")


def test_a_sentence_without_end_is_cut_after_a_comma_then_anywhere() -> None:
    clauses = "这里有一个很长的分句，" * 20
    assert all(text.endswith("，") for text in _texts(_document(("paragraph", clauses, ())), limit=50)[:-1])
    assert [len(text) for text in _texts(_document(("paragraph", "字" * 100, ())), limit=40)] == [40, 40, 20]


def test_emoji_are_not_parted() -> None:
    family = "👨\u200d👩\u200d👧"
    for text in _texts(_document(("paragraph", family * 30, ())), limit=23):
        assert not text.startswith("\u200d") and not text.endswith("\u200d")


def test_what_stands_under_no_heading_is_led_by_the_first_sentence() -> None:
    text = "本页说明如何插入脚注。" + "脚注在页面底部，尾注在文档末尾。" * 30
    chunks = split(ParsedDocument(text, [Block("paragraph", 0, len(text))]), 100)
    assert chunks[0].lead is None and len(chunks) > 3
    assert {text[slice(*chunk.lead)] for chunk in chunks[1:] if chunk.lead} == {"本页说明如何插入脚注。"}
    assert all(chunk.lead for chunk in chunks[1:])
    under = [Block("heading", 0, 11), Block("paragraph", 11, len(text), ("本页说明如何插入脚注。",))]
    assert all(chunk.lead is None for chunk in split(ParsedDocument(text, under), 100))
    table = [Block("table", 0, len(text))]
    assert all(chunk.lead is None for chunk in split(ParsedDocument(text, table), 100))
