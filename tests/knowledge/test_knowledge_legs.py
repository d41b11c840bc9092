"""Bases whose store is elsewhere: they answer as the built-in one does, also when it is away, behind or lies."""

import logging
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from knowledge_bench import Bench
from pydantic import SecretStr
from test_knowledge_retrieve import PARAGRAPHS

from mofang.errors import Invalid, UnknownName, Unreachable
from mofang.knowledge import legs as legs_module
from mofang.knowledge import store as store_module
from mofang.knowledge.legs import Legs
from mofang.knowledge.stores import builtin
from mofang.knowledge.stores.builtin import Builtin
from mofang.knowledge.within import Filter
from mofang.settings import Settings
from store_places import PLACES

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]
QUERIES = ("年假有几天", "密码多久换一次", "laserjet m404 驱动", "员工", "谁来审批五千元以上的设备")


@pytest.fixture(params=PLACES)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def reached(kind: str, bench: Bench, tmp_path: Path) -> Iterator[Bench]:
    """The bench with a base "那边" in that store."""
    with ExitStack() as stack:
        settings = stack.enter_context(PLACES[kind](tmp_path))
        bench.library._legs = Legs(settings)
        stack.callback(lambda: bench.library._legs.close())
        bench.library.create("那边", embedding_model="hash", store=kind)
        yield bench


async def _fill(bench: Bench, base: str) -> None:
    await bench.add(*(bench.write(f"{name}.txt", text) for name, text in PARAGRAPHS.items()), base=base)


def _said(hits: Any) -> list[tuple[str, str]]:
    return [(hit.title, hit.text) for hit in hits]


async def test_it_answers_as_the_built_in_store_does(kind: str, reached: Bench) -> None:
    assert reached.library.info("那边").store == kind
    await _fill(reached, "库")
    await _fill(reached, "那边")
    for query in QUERIES:
        notices: list[str] = []
        there = await reached.library.search(["那边"], query, k=5, notices=notices)
        here = await reached.library.search(["库"], query, k=5)
        assert _said(there) == _said(here)
        assert [hit.cosine for hit in there] == pytest.approx([hit.cosine for hit in here], abs=1e-6)
        assert notices == []
    both = await reached.library.search(["库", "那边"], "年假有几天", k=4)
    assert [hit.title for hit in both[:2]] == ["年假.txt", "年假.txt"]


async def test_what_is_deleted_or_replaced_never_answers(kind: str, reached: Bench, monkeypatch: Any) -> None:
    await _fill(reached, "那边")
    # Also when the store was not told: it holds what was, and says that it holds what is.
    if kind != "builtin":
        monkeypatch.setattr(Legs, "settle", lambda *_, **__: None)
        monkeypatch.setattr(legs_module, "_behind", lambda *_: False)
    documents = {one.name: one.id for one in reached.library.documents("那边")}
    reached.library.remove_document("那边", documents["年假.txt"])
    await reached.put("密码.txt", "密码改为指纹。", base="那边")
    for query in ("年假有几天", "密码多久换一次", "每九十天更换一次"):
        hits = await reached.library.search(["那边"], query, k=20)
        assert "年假.txt" not in {hit.title for hit in hits}
        assert not any("九十天" in hit.text for hit in hits)


async def test_a_store_that_is_behind_catches_up_in_the_search(kind: str, reached: Bench, monkeypatch: Any) -> None:
    await _fill(reached, "那边")
    with monkeypatch.context() as away:
        away.setattr(Legs, "settle", lambda *_, **__: None)
        await reached.put("停车.txt", "停车位按季度抽签。", base="那边")
    notices: list[str] = []
    assert (await reached.library.search(["那边"], "停车位抽签", notices=notices))[0].title == "停车.txt"
    assert notices == []


async def test_too_far_behind_is_said_and_answered_exactly_until_a_rebuild(
    kind: str, reached: Bench, monkeypatch: Any
) -> None:
    if kind == "builtin":
        pytest.skip("it reads what it lacks, however much")
    monkeypatch.setattr(legs_module, "MAX_CATCH_UP", 3)
    with monkeypatch.context() as away:
        away.setattr(Legs, "settle", lambda *_, **__: None)
        await _fill(reached, "那边")
    notices: list[str] = []
    hits = await reached.library.search(["那边"], "年假有几天", notices=notices)
    assert hits[0].title == "年假.txt"
    assert len(notices) == 1 and kind in notices[0] and "mofang kb rebuild" in notices[0]
    assert await reached.library.rebuild("那边", progress=reached.progress.append) == len(PARAGRAPHS)
    assert reached.progress[-1].stage == "index" and reached.progress[-1].done == len(PARAGRAPHS)
    notices.clear()
    assert _said(await reached.library.search(["那边"], "年假有几天", notices=notices)) == _said(hits)
    assert notices == []


async def test_a_limited_search(kind: str, reached: Bench) -> None:
    await _fill(reached, "那边")
    await reached.put("规章/年假.md", "# 年假\n\n年假须提前两周申请。\n", base="那边")
    documents = {one.name: one.id for one in reached.library.documents("那边")}
    for within, titles in (
        (Filter(names=("规章/",)), {"规章/年假.md"}),
        (Filter(names=("*年假*",)), {"规章/年假.md", "年假.txt"}),
        (Filter(types=(".MD",)), {"规章/年假.md"}),
        (Filter(documents=(documents["班车.txt"], documents["体检.txt"])), {"班车.txt", "体检.txt"}),
        (Filter(documents=(documents["班车.txt"],), types=("md",)), set()),
        (Filter(names=("没有/",)), set()),
    ):
        notices: list[str] = []
        hits = await reached.library.search(["那边"], "年假有几天", k=20, within=within, notices=notices)
        assert {hit.title for hit in hits} == titles, within
        assert all(kind in one for one in notices) and (kind == "langchain" or not notices)
    with pytest.raises(Invalid):
        await reached.library.search(["那边"], "年假", within=Filter(names=(" ",)))


async def test_a_removed_base_leaves_nothing_in_the_store(kind: str, reached: Bench) -> None:
    await _fill(reached, "那边")
    reached.library.remove("那边")
    reached.library.create("那边", embedding_model="hash", store=kind)
    assert await reached.library.search(["那边"], "年假") == []


@pytest.mark.parametrize(
    ("store", "settings"),
    [
        ("chroma", {"chroma_url": SecretStr("http://127.0.0.1:9")}),
        ("pgvector", {"pgvector_dsn": SecretStr("postgresql://admin:geheim@127.0.0.1:9/db")}),
        ("opensearch", {"opensearch_url": SecretStr("http://admin:geheim@127.0.0.1:9")}),
        ("langchain", {}),
    ],
)
async def test_a_store_that_is_away_costs_no_answer(
    store: str, settings: dict[str, Any], bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    bench.library._legs = Legs(Settings(**settings))
    bench.library.create("那边", embedding_model="hash", store=store)
    caplog.set_level(logging.WARNING)
    await _fill(bench, "那边")
    assert "那边" in caplog.text, "said where it happened"
    notices: list[str] = []
    hits = await bench.library.search(["那边"], "年假有几天", notices=notices)
    assert hits[0].title == "年假.txt" and hits[0].dense_rank is not None
    assert len(notices) == 1 and store in notices[0]
    assert "geheim" not in caplog.text + "".join(notices)
    with pytest.raises((Unreachable, Invalid)):
        await bench.library.rebuild("那边", progress=lambda _: None)


def test_a_store_that_does_not_exist_is_refused_before_a_base_is_made(bench: Bench) -> None:
    with pytest.raises(UnknownName):
        bench.library.create("新", embedding_model="hash", store="chrome")
    assert [one.name for one in bench.library.list()] == ["库"]


async def test_large_bases_get_files_after_an_add_and_they_are_used(bench: Bench, monkeypatch: Any) -> None:
    monkeypatch.setattr(builtin, "FILES_FROM", 5)
    monkeypatch.setattr(builtin, "GRAPH_FROM", 8)
    await _fill(bench, "库")
    folder = bench.library.folder / "库" / "index"
    assert (folder / "current.json").is_file()
    first = _said(await bench.library.search(["库"], "年假有几天"))
    assert first[0][0] == "年假.txt"
    view = next(one._view for one in bench.library._legs._opened.values() if isinstance(one, Builtin))
    assert view is not None and view.on_disk and view.parts[0].segment.graph is not None
    # A restart reads them; a byte that changed does not; neither changes what is found.
    for change in (False, True):
        if change:
            (path,) = folder.rglob("matrix.npy")
            path.write_bytes(path.read_bytes()[:-4] + b"\0\0\0\0")
        bench.library._legs = Legs(Settings())
        assert _said(await bench.library.search(["库"], "年假有几天")) == first
    await bench.library.rebuild("库", progress=lambda _: None)
    assert _said(await bench.library.search(["库"], "年假有几天")) == first


async def test_searches_go_on_while_a_store_is_filled(kind: str, reached: Bench, monkeypatch: Any) -> None:
    await _fill(reached, "那边")
    monkeypatch.setattr(legs_module, "MAX_WAIT_S", 0.01)
    store = reached.library._store("那边")
    notices: list[str] = []
    with reached.library._legs._changing(store):
        hits = await reached.library.search(["那边"], "年假有几天", notices=notices)
    assert hits[0].title == "年假.txt"
    assert len(notices) == (kind != "builtin")


async def test_a_restored_backup_is_not_taken_for_what_was_searched_before(bench: Bench) -> None:
    await _fill(bench, "库")
    path, backup = bench.library.folder / "库" / "base.sqlite", bench.folder / "backup.sqlite"
    connection = sqlite3.connect(path)
    connection.execute("VACUUM INTO ?", (str(backup),))
    connection.close()
    for number in range(3):
        await bench.put(f"新{number}.txt", f"第{number}条新规定：停车位抽签。")
    assert (await bench.library.search(["库"], "停车位抽签"))[0].title.startswith("新")
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    shutil.copy(backup, path)
    assert "停车" not in "".join(hit.text for hit in await bench.library.search(["库"], "停车位抽签", k=20))
    # It counts on to the same version with other documents, whose chunks get the same ids.
    for number in range(3):
        await bench.put(f"另{number}.txt", f"第{number}条：宠物不得入内。")
    hits = await bench.library.search(["库"], "宠物不得入内", k=3)
    assert {hit.title for hit in hits} == {"另0.txt", "另1.txt", "另2.txt"}
    assert all(hit.bm25_rank and hit.dense_rank for hit in hits)


async def test_what_was_removed_is_not_remembered_for_ever(bench: Bench, monkeypatch: Any) -> None:
    monkeypatch.setattr(store_module, "MAX_REMOVED", 3)
    await _fill(bench, "库")
    store = bench.library._store("库")
    with store.read() as connection:
        held = store_module.commit(connection)
    for document in bench.library.documents("库")[:6]:
        bench.library.remove_document("库", document.id)
    with store.read() as connection:
        assert connection.execute("SELECT count(*) FROM removed").fetchone()[0] <= 3
        behind = store_module.changes(connection, held)
        assert behind.whole and behind.n_added == len(PARAGRAPHS) - 6, "a copy from before begins anew"
        last = store_module.changes(connection, store_module.commit(connection))
        assert (last.whole, list(last.removed), last.n_added) == (False, [], 0)
