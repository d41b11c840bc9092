"""Bases as folders: names, creation, removal, spans, damage."""

import sqlite3
from pathlib import Path

import pytest
from knowledge_bench import Bench

from mofang.errors import Conflict, Invalid, NotFound, Unreadable
from mofang.knowledge import schema
from mofang.knowledge.store import FILE


def test_create_list_remove(bench: Bench) -> None:
    info = bench.library.create("制度-2.0", title="公司制度", embedding_model="hash")
    assert (info.name, info.title, info.n_documents, info.dimensions) == ("制度-2.0", "公司制度", 0, None)
    assert info.created_at.endswith("+00:00")
    assert {one.name for one in bench.library.list()} == {"库", "制度-2.0"}
    bench.library.remove("库")
    assert [one.name for one in bench.library.list()] == ["制度-2.0"]
    assert [path.name for path in bench.library.folder.iterdir()] == ["制度-2.0"], "nothing is left of it"
    with pytest.raises(NotFound):
        bench.library.info("库")


def test_a_name_that_exists(bench: Bench) -> None:
    with pytest.raises(Conflict) as fault:
        bench.library.create("库", embedding_model="hash")
    assert fault.value.code == "knowledge_exists"
    assert [path.name for path in bench.library.folder.iterdir()] == ["库"], "nothing half-made is left"


@pytest.mark.parametrize("name", ["", "../外", "a/b", ".隐藏", "a\\b", "-x", "名 字", "a\n", "库" * 100, "con:", "x\0"])
def test_names_that_are_no_folder(name: str, bench: Bench) -> None:
    with pytest.raises(Invalid) as fault:
        bench.library.create(name, embedding_model="hash")
    assert fault.value.code == "bad_name"


@pytest.mark.parametrize("name", ["..", ".", "../knowledge/库", "/etc"])
async def test_no_method_leaves_the_folder(name: str, bench: Bench) -> None:
    for call in (bench.library.info, bench.library.remove, bench.library.documents):
        with pytest.raises(NotFound):
            call(name)
    with pytest.raises(NotFound):
        await bench.library.search([name], "问")


async def test_a_span_with_what_stands_around_it(bench: Bench) -> None:
    await bench.put("文.md", "# 甲\n\n第一句。第二句。第三句。\n")
    (document,) = bench.library.documents("库")
    start = "# 甲\n\n第一句。".__len__()
    found = bench.library.text("库", document.id, start, start + 4)
    assert found["text"] == "第二句。"
    assert found["before"].endswith("第一句。") and found["after"].startswith("第三句。")
    assert (list(found["headings"]), found["page"], found["start"], found["end"]) == (["甲"], None, start, start + 4)
    whole = bench.library.text("库", document.id)
    assert whole["text"] == "# 甲\n\n第一句。第二句。第三句。\n" and whole["before"] == whole["after"] == ""
    for span in ((-1, 3), (5, 4), (99, None)):
        with pytest.raises(Invalid) as fault:
            bench.library.text("库", document.id, *span)
        assert fault.value.code == "bad_span"
    with pytest.raises(NotFound):
        bench.library.text("库", "nobody")


async def test_a_page_is_found_for_a_span(bench: Bench) -> None:
    sample = Path(__file__).parent / "samples" / "员工手册.pdf"
    await bench.add(("员工手册.pdf", sample))
    hit = (await bench.library.search(["库"], "密码长度不得少于多少位"))[0]
    assert (hit.page, hit.headings[-1]) == (3, "第三章 信息安全")
    assert bench.library.text("库", hit.document_id, hit.start, hit.end)["page"] == 3
    assert bench.library.documents("库")[0].n_pages == 3


def test_a_damaged_file_is_said_with_its_path(bench: Bench) -> None:
    path = bench.library.folder / "库" / FILE
    path.write_bytes(b"not a database" * 500)
    with pytest.raises(Unreadable) as fault:
        bench.library.info("库")
    assert fault.value.code == "damaged" and str(path) in fault.value.hint("zh")


def test_a_file_of_a_newer_version_is_left_alone(bench: Bench) -> None:
    path = bench.library.folder / "库" / FILE
    with sqlite3.connect(path) as connection:
        connection.execute(f"PRAGMA user_version = {len(schema.MIGRATIONS) + 1}")
    connection.close()
    with pytest.raises(Conflict) as fault:
        bench.library.documents("库")
    assert fault.value.code == "newer_home"


def test_a_removed_base_does_not_come_back_empty(bench: Bench) -> None:
    store = bench.library._store("库")
    bench.library.remove("库")
    with pytest.raises(NotFound), store.write():
        pass
    assert not store.path.exists()


async def test_a_base_of_the_first_version_is_brought_up_to_date(bench: Bench) -> None:
    """Its words lay in FTS5's own tables; they are taken along, and nothing is embedded again."""
    text, vector = "年假五天，提前两周申请。", (await bench.embedder.embed(["年假五天，提前两周申请。"], "passage"))[0]
    folder = bench.library.folder / "旧"
    (folder / "files").mkdir(parents=True)
    (folder / "files" / "ab").write_text(text)
    connection = sqlite3.connect(folder / FILE)
    connection.executescript(schema.MIGRATIONS[0])
    connection.execute("PRAGMA user_version = 1")
    connection.execute("INSERT INTO base VALUES ('旧', '', 'hash', ?, '2026-01-01T00:00:00+00:00', 5)", (len(vector),))
    connection.execute("INSERT INTO documents VALUES ('d1', '假.txt', NULL)")
    connection.execute("INSERT INTO versions VALUES (1, 'd1', 'ab', 9, '', ?, ?, NULL, '[]', '')", (text, len(text)))
    connection.execute("UPDATE documents SET version_id = 1")
    connection.execute("INSERT INTO blocks VALUES (1, 0, 'paragraph', 0, ?, '[]', NULL, NULL)", (len(text),))
    connection.execute("INSERT INTO chunks VALUES (7, 1, 0, ?, '[]', x'01')", (len(text),))
    connection.execute("INSERT INTO vectors VALUES (x'01', ?)", (vector.tobytes(),))
    connection.execute("INSERT INTO words (rowid, title, body) VALUES (7, '假', '年假 五天 提前 两周 申请')")
    connection.commit()
    connection.close()
    embedded = len(bench.embedder.passages)
    (hit,) = await bench.library.search(["旧"], "年假")
    assert (hit.text, hit.bm25_rank, hit.dense_rank) == (text, 1, 1)
    assert len(bench.embedder.passages) == embedded
    assert bench.library.info("旧").store == "builtin"
    bench.library.remove_document("旧", "d1")
    assert await bench.library.search(["旧"], "年假") == []
