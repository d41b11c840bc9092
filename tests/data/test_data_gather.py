"""The text of documents for pre-training: what is kept, what is left out and said, and that nothing is half-written."""

import json
from pathlib import Path

import pytest

from mofang import api
from mofang.data.gather import gather
from mofang.data.readers import Layout, rows
from mofang.data.rows import Document
from mofang.errors import Conflict, Invalid, NotFound, Unreadable
from mofang.text.languages import is_in

MENU = "首页　产品　支持　关于我们　联系方式"
FIRST = "清洁设备前先拔掉电源，再用干布擦拭外壳，不要用酒精，也不要让水流进散热孔里。"
SECOND = "电池每充满一次要用四个小时，充电时指示灯是红色，充满之后变成绿色，可以一直插着。"
ENGLISH = "Unplug the device before cleaning it, and wipe it with a dry cloth; keep water away from its vents."


def lines(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_what_stands_in_an_earlier_document_is_left_out_but_short_words_are_not(tmp_path: Path) -> None:
    documents = [("甲", [MENU, "注意", FIRST]), ("乙", [MENU, "注意", SECOND]), ("丙", [MENU, FIRST])]
    counts = gather(documents, tmp_path / "文.jsonl")
    assert lines(tmp_path / "文.jsonl") == [
        {"text": f"{MENU}\n注意\n{FIRST}", "source": "甲"},
        {"text": f"注意\n{SECOND}", "source": "乙"},
    ]
    assert counts == {
        "n_documents": 2,
        "n_characters": len(MENU) + 2 * len("注意") + len(FIRST) + len(SECOND) + 3,
        "n_repeated": 3,
        "n_other": 0,
        "n_short": 1,
    }


@pytest.mark.parametrize(("language", "kept"), [("zh", [FIRST, SECOND]), ("en", [ENGLISH])])
def test_only_paragraphs_of_one_language(tmp_path: Path, language: str, kept: list[str]) -> None:
    counts = gather([("说明", [FIRST, ENGLISH, SECOND])], tmp_path / "文.jsonl", language=language)
    assert [row["text"] for row in lines(tmp_path / "文.jsonl")] == ["\n".join(kept)]
    assert counts["n_other"] == 3 - len(kept)


@pytest.mark.parametrize(
    ("text", "languages"),
    [
        ("用 apt install git 安装", {"zh"}),
        ("The character 的 is frequent in running text", {"en"}),
        ("3.14 —— 42", {"zh", "en"}),
    ],
)
def test_a_paragraph_is_in_the_language_that_it_is_written_in(text: str, languages: set[str]) -> None:
    assert {language for language in ("zh", "en") if is_in(text, language)} == languages


def test_documents_become_what_pretraining_reads_and_what_cannot_be_read_is_said(tmp_path: Path) -> None:
    folder = tmp_path / "文档"
    (folder / "深").mkdir(parents=True)
    (folder / "一.md").write_text(f"# 清洁\n\n{FIRST}\n", encoding="utf-8")
    (folder / "深" / "二.html").write_text(f"<html><body><p>{SECOND}</p></body></html>", encoding="utf-8")
    (folder / "坏.pdf").write_bytes(b"%PDF-1.7 cut short")
    (folder / "图.png").write_bytes(b"\x89PNG")
    told: list[tuple[int, int]] = []
    out = tmp_path / "集" / "文.jsonl"
    found = api.gather_text([folder], out, tell=lambda step: told.append((step["done"], step["total"])))
    assert [row.text for row in rows(out, Layout()) if isinstance(row, Document)] == [f"# 清洁\n{FIRST}", SECOND]
    assert [row["source"] for row in lines(out)] == ["一.md", "深/二.html"]
    assert found["skipped"] == [str(folder / "图.png")]
    assert [path for path, _ in found["unreadable"]] == [str(folder / "坏.pdf")]
    assert told[-1] == (3, 3)


def test_nothing_that_is_there_is_written_over(tmp_path: Path) -> None:
    source = tmp_path / "文.txt"
    source.write_text(FIRST, encoding="utf-8")
    with pytest.raises(Conflict) as taken:
        api.gather_text([source], source)
    assert taken.value.code == "out_taken"
    with pytest.raises(Invalid) as folder:
        api.gather_text([source], tmp_path)
    assert folder.value.code == "out_is_folder" and f"{tmp_path}/corpus.jsonl" in folder.value.hint()
    assert source.read_text(encoding="utf-8") == FIRST
    assert [path for path in tmp_path.iterdir() if path.is_file()] == [source]
    assert not list(tmp_path.parent.glob(".*.part"))


def test_bad_sources_leave_nothing_behind(tmp_path: Path) -> None:
    out = tmp_path / "文.jsonl"
    broken = tmp_path / "坏.pdf"
    broken.write_bytes(b"%PDF-1.7 cut short")
    (tmp_path / "空").mkdir()
    (tmp_path / "外").mkdir()
    (tmp_path / "外" / "a.txt").write_text("Nothing but English is written in this file.", encoding="utf-8")
    for sources, language, fault, code in (
        ([tmp_path / "没有"], "", NotFound, "no_such_file"),
        ([tmp_path / "空"], "", Unreadable, "no_documents"),
        ([broken], "", Unreadable, ""),
        (["~/坏.pdf"], "", Unreadable, ""),
        ([tmp_path], "fr", Invalid, "no_language"),
        ([tmp_path / "外"], "zh", Unreadable, "nothing_left"),
    ):
        with pytest.raises(fault) as caught:
            api.gather_text(sources, out, language=language)
        assert not code or caught.value.code == code
    assert not out.exists()
    assert [path.name for path in tmp_path.iterdir() if path.name.endswith(".part")] == []
