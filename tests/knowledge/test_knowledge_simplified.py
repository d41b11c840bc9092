"""繁體 and 简体 find each other; a base from before they did is brought up to date, and its copies notice."""

import sqlite3
import unicodedata
from contextlib import closing
from pathlib import Path

import pytest
from knowledge_bench import Bench

from mofang.knowledge import recut, schema
from mofang.knowledge.rewrite import query_of
from mofang.knowledge.store import FILE, commit
from mofang.messages import Message

TRADITIONAL = "員工請假須於前一日提出書面申請，經部門主管核准後生效。"
SIMPLIFIED = "差旅费的报销须在十五日内提交。"


def _unsimplified(text: str) -> str:
    return unicodedata.normalize("NFKC", text).casefold()


@pytest.mark.parametrize(
    ("query", "found"),
    [("书面申请", TRADITIONAL), ("書面申請", TRADITIONAL), ("報銷", SIMPLIFIED), ("报销", SIMPLIFIED)],
)
async def test_either_finds_the_other_by_its_words(bench: Bench, query: str, found: str) -> None:
    await bench.put("請假.txt", TRADITIONAL)
    await bench.put("报销.txt", SIMPLIFIED)
    best = (await bench.library.search(["库"], query))[0]
    assert (best.text, best.bm25_rank) == (found, 1), "and it is shown as it was written"
    (by_name,) = [hit for hit in await bench.library.search(["库"], "请假") if hit.bm25_rank]
    assert by_name.title == "請假.txt"


async def test_either_is_embedded_in_simplified_characters(bench: Bench) -> None:
    await bench.put("請假.txt", TRADITIONAL)
    await bench.library.search(["库"], "書面申請")
    assert bench.embedder.passages == ["员工请假须于前一日提出书面申请，经部门主管核准后生效。"]
    assert "书面申请" in bench.embedder.queries


async def test_a_follow_up_in_traditional_is_known_for_one(bench: Bench) -> None:
    turns = [
        Message("user", "年假有幾天？"),
        Message("assistant", "五天。"),
        Message("user", "這樣的規定是從哪一年開始的呢？"),
    ]
    assert (await query_of(turns, None)).how == "joined"


async def _old_base(bench: Bench, monkeypatch: pytest.MonkeyPatch, *texts: str) -> Path:
    """The base as the third schema had it, its words unsimplified and in the index of a search."""
    with monkeypatch.context() as patch:
        patch.setattr("mofang.text.words.fold", _unsimplified)
        patch.setattr("mofang.knowledge.passage.simplified", str)
        for n, text in enumerate(texts):
            await bench.put(f"{n}.txt", text)
        await bench.library.search(["库"], "日")
    path = bench.library.folder / "库" / FILE
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("DROP INDEX blocks_of_pairs")
        connection.execute("PRAGMA user_version = 3")
    return path


async def test_words_of_an_old_base_are_cut_anew(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    path = await _old_base(bench, monkeypatch, TRADITIONAL, SIMPLIFIED)
    with closing(sqlite3.connect(path)) as connection:
        before = dict(connection.execute("SELECT chunk_id, words FROM words"))
        version = commit(_rows(connection)).version
    embedded = len(bench.embedder.passages)
    (hit,) = [hit for hit in await bench.library.search(["库"], "书面申请") if hit.bm25_rank]
    assert hit.text == TRADITIONAL, "also the index that was in memory noticed"
    assert len(bench.embedder.passages) == embedded, "vectors stay"
    with closing(sqlite3.connect(path)) as connection:
        after = dict(connection.execute("SELECT chunk_id, words FROM words"))
        assert commit(_rows(connection)).version == version + 1
    assert before.keys() == after.keys() and sum(before[one] != after[one] for one in after) == 1
    await bench.put("新.txt", TRADITIONAL)
    fresh = next(row for row in _words(path) if row.startswith("新 "))
    assert fresh.replace("新", "0") in after.values(), "as it is cut when it is added today"


async def test_an_old_base_without_traditional_text_keeps_its_copies(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = await _old_base(bench, monkeypatch, SIMPLIFIED)
    with closing(sqlite3.connect(path)) as connection:
        before = commit(_rows(connection))
    assert await bench.library.search(["库"], "報銷")
    with closing(sqlite3.connect(path)) as connection:
        assert commit(_rows(connection)) == before


async def test_a_migration_that_fails_changes_nothing(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    path = await _old_base(bench, monkeypatch, TRADITIONAL, "第二份：" + TRADITIONAL)
    before, calls = _words(path), 0
    real = recut._words

    def second_fails(connection: sqlite3.Connection, chunk_id: int) -> str:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise RuntimeError("killed")
        return real(connection, chunk_id)

    with monkeypatch.context() as patch:
        patch.setattr(recut, "_words", second_fails)
        with pytest.raises(RuntimeError, match="killed"):
            await bench.library.search(["库"], "书面申请")
    assert _words(path) == before
    assert all(hit.bm25_rank for hit in await bench.library.search(["库"], "书面申请"))


def test_a_step_that_another_process_has_taken_is_not_taken_again(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / FILE, isolation_level=None)) as connection:
        schema.migrate(connection, tmp_path / FILE)

        def never(_: sqlite3.Connection) -> None:
            raise AssertionError

        schema._run(connection, never, len(schema.MIGRATIONS))


def _rows(connection: sqlite3.Connection) -> sqlite3.Connection:
    connection.row_factory = sqlite3.Row
    return connection


def _words(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as connection:
        return [row[0] for row in connection.execute("SELECT words FROM words ORDER BY chunk_id")]
