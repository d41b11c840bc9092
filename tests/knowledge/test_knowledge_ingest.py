"""Taking documents in: what is embedded, what is kept, what fails alone; replacement and deletion."""

import asyncio
import random
import sqlite3
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
from knowledge_bench import Bench, CountingEmbedder

import ingested
from mofang.errors import Conflict, EngineFailed, NotFound
from mofang.knowledge import ingest
from mofang.knowledge.base import AddReport
from mofang.knowledge.ingest import Cut, Cutting, Ingest, clean_name, cut
from mofang.knowledge.store import FILE, StagedFile, Store
from mofang.messages import Progress


def _count(bench: Bench, table: str) -> int:
    with sqlite3.connect(bench.folder / "knowledge" / "库" / FILE) as connection:
        n: int = connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
    connection.close()
    return n


async def test_add_tells_what_it_did(bench: Bench) -> None:
    report = await bench.add(bench.write("甲.txt", "年假五天。"), bench.write("子/乙.md", "# 报销\n\n十五日内。"))
    assert [(f.name, f.status, f.n_chunks, f.n_embedded) for f in report.files] == [
        ("甲.txt", "added", 1, 1),
        ("子/乙.md", "added", 1, 1),
    ]
    assert bench.embedder.passages == ["年假五天。", "报销\n# 报销\n\n十五日内。"], (
        "headings are embedded with the text"
    )
    first, second = bench.library.documents("库")
    assert (first.name, first.title, first.n_chars, first.n_pages) == ("子/乙.md", "报销", 11, None)
    assert second.size_bytes == 15 and second.notes == ()
    info = bench.library.info("库")
    assert (info.n_documents, info.n_chunks, info.dimensions, info.embedding_model) == (2, 2, 512, "hash")
    assert bench.library.file("库", second.id).read_bytes() == "年假五天。".encode()


async def test_an_unchanged_file_costs_nothing(bench: Bench) -> None:
    file = bench.write("甲.txt", "年假五天。")
    await bench.add(file)
    bench.opened.clear()
    report = await bench.add(file)
    assert [f.status for f in report.files] == ["unchanged"]
    assert bench.opened == [], "the embedder is not even loaded"


async def test_unchanged_passages_keep_their_vectors(bench: Bench) -> None:
    old = "# 甲\n\n第一段。\n\n# 乙\n\n第二段。\n\n# 丙\n\n第三段。\n"
    await bench.put("文.md", old)
    bench.embedder.passages.clear()
    report = await bench.put("文.md", old.replace("第二段", "新的一段"))
    assert (report.files[0].status, report.files[0].n_chunks, report.files[0].n_embedded) == ("replaced", 3, 1)
    assert bench.embedder.passages == ["乙\n# 乙\n\n新的一段。"]
    assert _count(bench, "vectors") == 3, "the vector of the passage that is gone is gone"


async def test_a_new_version_keeps_the_document_and_replaces_all_of_the_old(bench: Bench) -> None:
    await bench.put("文.txt", "旧的内容：独角兽。")
    (before,) = bench.library.documents("库")
    await bench.put("文.txt", "新的内容：麒麟。")
    (after,) = bench.library.documents("库")
    assert before.id == after.id and before.sha256 != after.sha256
    assert [hit.text for hit in await bench.library.search(["库"], "独角兽")] == ["新的内容：麒麟。"]
    assert [_count(bench, table) for table in ("versions", "chunks", "words", "vectors", "blocks")] == [1] * 5
    assert len(list((bench.folder / "knowledge" / "库" / "files").iterdir())) == 1


async def test_a_deleted_document_never_answers_again(bench: Bench) -> None:
    await bench.add(bench.write("甲.txt", "独角兽住在森林里。"), bench.write("乙.txt", "报销须在十五日内。"))
    assert (await bench.library.search(["库"], "独角兽"))[0].title == "甲.txt"  # the vectors are in memory now
    document = next(d for d in bench.library.documents("库") if d.name == "甲.txt")
    bench.library.remove_document("库", document.id)
    assert [hit.title for hit in await bench.library.search(["库"], "独角兽住在森林里")] == ["乙.txt"]
    assert [_count(bench, table) for table in ("documents", "chunks", "words", "vectors")] == [1] * 4
    assert len(list((bench.folder / "knowledge" / "库" / "files").iterdir())) == 1
    with pytest.raises(NotFound):
        bench.library.text("库", document.id)
    with pytest.raises(NotFound):
        bench.library.remove_document("库", document.id)


async def test_the_same_text_under_two_names_is_embedded_once_and_outlives_one_of_them(bench: Bench) -> None:
    await bench.add(bench.write("甲.txt", "同样的话。"), bench.write("乙.txt", "同样的话。"))
    assert bench.embedder.passages == ["同样的话。"]
    first, second = bench.library.documents("库")
    bench.library.remove_document("库", first.id)
    assert bench.library.file("库", second.id).exists()
    assert [hit.title for hit in await bench.library.search(["库"], "同样的话")] == [second.name]
    assert (await bench.library.search(["库"], "同样的话。"))[0].cosine == pytest.approx(1.0, abs=1e-3)


async def test_what_cannot_be_read_fails_alone(bench: Bench, tmp_path: Path) -> None:
    report = await bench.add(
        bench.write("空.txt", ""),
        bench.write("程序.txt", b"\x7fELF\0\0\1" * 99),
        bench.write("好.txt", "好的内容。"),
        bench.write("合同.doc", b"PK\x03\x04"),
        bench.write("坏.pdf", "不是 PDF"),
        ("没有.txt", tmp_path / "nowhere.txt"),
        ("夹.txt", tmp_path),
    )
    assert [(f.status, f.code) for f in report.files] == [
        ("failed", "empty_file"),
        ("failed", "binary"),
        ("added", ""),
        ("failed", "format_later"),
        ("failed", "pdf_damaged"),
        ("failed", "file_missing"),
        ("failed", "file_missing"),
    ]
    assert all(f.error and f.hint for f in report.failed)
    assert len(bench.library.documents("库")) == 1
    assert list((bench.folder / "knowledge" / "库" / "incoming").iterdir()) == [], "nothing is left behind"


async def test_a_loader_that_breaks_fails_one_file(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(path: Path, name: str) -> None:
        raise KeyError("inside of a library")

    monkeypatch.setattr("mofang.knowledge.loaders.markdown.load", broken)
    report = await bench.add(bench.write("a.md", "文"), bench.write("b.txt", "文"))
    assert [(f.status, f.code) for f in report.files] == [("failed", "loader_failed"), ("added", "")]


async def test_a_failed_new_version_leaves_the_old_one(bench: Bench) -> None:
    await bench.put("文.txt", "旧的内容。")
    report = await bench.put("文.txt", b"\0\1\2" * 100)
    assert report.files[0].status == "failed"
    assert [hit.text for hit in await bench.library.search(["库"], "旧的内容")] == ["旧的内容。"]


async def test_an_embedder_that_fails_leaves_the_old_state(bench: Bench) -> None:
    await bench.put("文.txt", "旧的内容。")
    bench.embedder.fault = EngineFailed("engine.engine_died", model="hash", exit_code=1, why="test")
    report = await bench.add(bench.write("文.txt", "新的内容。"), bench.write("又.txt", "又一份。"))
    assert [f.code for f in report.files] == ["engine_died", "engine_died"]
    bench.embedder.fault = None
    assert [d.name for d in bench.library.documents("库")] == ["文.txt"]
    assert (await bench.library.search(["库"], "内容"))[0].text == "旧的内容。"


async def test_passages_too_long_for_the_embedder_are_cut_smaller_and_it_is_said(bench: Bench) -> None:
    bench.embedder.longest = 100
    report = await bench.add(bench.write("短.txt", "短。"), bench.write("长.txt", "这是一句不长不短的话。" * 60))
    short, long = report.files
    assert (short.status, short.notes) == ("added", ())
    assert long.status == "added" and "87" in long.notes[0]
    assert max(map(len, bench.embedder.passages)) <= 100
    assert bench.library.documents("库")[1].notes == long.notes


async def test_many_small_files_share_batches(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    embed = bench.embedder.embed

    async def counted(texts: list[str], purpose: str) -> np.ndarray:
        calls.append(len(texts))
        return await embed(texts, purpose)  # type: ignore[arg-type]

    monkeypatch.setattr(bench.embedder, "embed", counted)
    await bench.add(*(bench.write(f"{i}.txt", f"第{i}份文件。") for i in range(150)))
    assert calls == [64, 64, 22]
    assert bench.opened == ["hash"]


async def test_progress_has_two_stages_with_totals(bench: Bench) -> None:
    await bench.add(*(bench.write(f"{i}.txt", f"第{i}份。") for i in range(70)))
    read = [p for p in bench.progress if p.stage == "read"]
    embed = [p for p in bench.progress if p.stage == "embed"]
    assert [p.done for p in read] == list(range(1, 71)) and {p.total for p in read} == {70}
    assert [(p.done, p.total, p.unit) for p in embed] == [(64, 70, "passages"), (70, 70, "passages")]


async def test_another_embedder_is_refused(bench: Bench) -> None:
    await bench.put("甲.txt", "文。")
    bench.forced_name = "other"
    with pytest.raises(Conflict) as fault:
        await bench.put("乙.txt", "另一份。")
    assert fault.value.code == "other_embedding_model" and "hash" in fault.value.message("zh")
    with pytest.raises(Conflict):
        await bench.library.search(["库"], "文")
    bench.forced_name, bench.embedder.dimensions = "", 65
    with pytest.raises(Conflict) as fault:
        await bench.put("乙.txt", "另一份。")
    assert fault.value.code == "other_dimensions"
    assert len(bench.library.documents("库")) == 1


async def test_auto_becomes_the_model_of_the_first_vectors(bench: Bench) -> None:
    bench.library.create("自动", embedding_model="auto")
    bench.forced_name = "hash"
    await bench.put("甲.txt", "文。", base="自动")
    assert bench.library.info("自动").embedding_model == "hash"


async def test_cancelling_leaves_whole_documents_and_no_stray_files(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    embed = bench.embedder.embed
    calls = 0

    async def stuck(texts: list[str], purpose: str) -> np.ndarray:
        nonlocal calls
        calls += 1
        if calls == 2:
            await asyncio.sleep(3600)
        return await embed(texts, purpose)  # type: ignore[arg-type]

    monkeypatch.setattr(bench.embedder, "embed", stuck)
    files = [bench.write(f"{i:03}.txt", f"第{i}份文件。") for i in range(100)]
    task = asyncio.create_task(bench.add(*files))
    while calls < 2:
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(bench.library.documents("库")) == 64
    assert list((bench.folder / "knowledge" / "库" / "incoming").iterdir()) == []
    monkeypatch.setattr(bench.embedder, "embed", embed)
    report = await bench.add(*files)
    assert [f.status for f in report.files] == ["unchanged"] * 64 + ["added"] * 36


async def test_two_adds_at_once_do_not_disturb_each_other(bench: Bench) -> None:
    both = await asyncio.gather(
        bench.add(*(bench.write(f"甲{i}.txt", f"甲的第{i}份。") for i in range(20))),
        bench.add(*(bench.write(f"乙{i}.txt", f"乙的第{i}份。") for i in range(20))),
    )
    assert all(f.status == "added" for report in both for f in report.files)
    assert len(bench.library.documents("库")) == 40
    assert _count(bench, "words") == _count(bench, "chunks") == 40


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("../../etc/passwd.txt", "etc/passwd.txt"),
        ("C:\\文档\\甲.txt", "C:/文档/甲.txt"),
        ("/绝对/乙.txt", "绝对/乙.txt"),
        ("e\u0301.txt", "é.txt"),
        ("报告😀（终）.txt", "报告😀（终）.txt"),
        ("a\nb\u202e.txt", "ab.txt"),
        ("../..", ""),
    ],
)
def test_names_lead_nowhere(given: str, kept: str) -> None:
    assert clean_name(given) == kept


# ---- by many hands ----


class ManyHands(CountingEmbedder):
    """They do many things at a time and finish them in any order; a batch that holds `bad` fails."""

    n_files, n_batches = 8, 4

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.random = random.Random(seed)
        self.bad = "-"
        self.flying, self.most, self.opened = 0, 0, 0
        self.missing = False

    def open(self) -> None:
        self.opened += 1
        if self.missing:
            raise EngineFailed("engine.engine_died", model="hash", exit_code=1, why="nobody is there")

    async def read(self, path: Path, name: str, cutting: Cutting) -> Cut:
        await asyncio.sleep(self.random.random() / 50)
        return await asyncio.to_thread(cut, path, name, cutting)

    @asynccontextmanager
    async def embedder(self) -> AsyncIterator["ManyHands"]:
        yield self

    async def embed(self, texts: Sequence[str], purpose: str) -> np.ndarray:
        self.flying += 1
        self.most = max(self.most, self.flying)
        await asyncio.sleep(self.random.random() / 50)
        self.flying -= 1
        if any(self.bad in text for text in texts):
            raise EngineFailed("engine.engine_died", model="hash", exit_code=1, why="test")
        return await super().embed(texts, purpose)  # type: ignore[arg-type]


async def by(hands: ManyHands, bench: Bench, files: Sequence[tuple[str, Path]]) -> AddReport:
    store = Store(bench.folder / "knowledge" / "库")
    return await Ingest(store, hands, Cutting(), bench.progress.append).run(files)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches and windows, so that there are many."""
    monkeypatch.setattr(ingest, "BATCH", 8)
    monkeypatch.setattr(ingest, "WINDOW", 200)


@pytest.mark.parametrize("seed", range(3))
async def test_many_hands_make_the_base_that_one_pair_makes(seed: int, tmp_path: Path, small: None) -> None:
    one, many = Bench(tmp_path / "one"), Bench(tmp_path / "many")
    files = ingested.documents(tmp_path / "files")
    expected = await one.add(*files)
    hands = ManyHands(seed)
    assert (await by(hands, many, files)).files == expected.files
    bases = [bench.folder / "knowledge" / "库" for bench in (one, many)]
    ingested.same(*bases)
    ingested.is_whole(bases[1])
    assert ingested.order(bases[0]) == ingested.order(bases[1])
    assert sorted(hands.passages) == sorted(one.embedder.passages), "each passage once"
    assert hands.most == 4
    stages = [p for p in one.progress if p.stage in ("read", "embed")]
    assert [(p.stage, p.done, p.total) for p in many.progress] == [(p.stage, p.done, p.total) for p in stages]


async def test_a_batch_that_fails_among_others_costs_its_own_files(bench: Bench, small: None) -> None:
    files = [bench.write(f"{i}.txt", f"第{i}份文件。" * 80) for i in range(12)]
    hands = ManyHands()
    hands.bad = "第5份"
    report = await by(hands, bench, files)
    failed = [file.name for file in report.failed]
    assert "5.txt" in failed and len(failed) <= 5 and {file.code for file in report.failed} == {"engine_died"}
    ingested.is_whole(bench.folder / "knowledge" / "库")
    assert len(bench.library.documents("库")) == 12 - len(failed)
    hands.bad = "-"
    assert not (await by(hands, bench, files)).failed
    assert len(bench.library.documents("库")) == 12


async def test_passages_too_long_are_cut_smaller_while_others_are_under_way(bench: Bench, small: None) -> None:
    files = [bench.write(f"{i}.txt", f"第{i}份：这是一句不长不短的话。" * (60 if i % 4 == 2 else 3)) for i in range(16)]
    hands = ManyHands()
    hands.longest = 100
    report = await by(hands, bench, files)
    assert not report.failed
    assert [file.name for file in report.files if file.notes] == ["2.txt", "6.txt", "10.txt", "14.txt"]
    assert max(map(len, hands.passages)) <= 100
    ingested.is_whole(bench.folder / "knowledge" / "库")


async def test_hands_that_are_not_there_are_said_once(bench: Bench) -> None:
    hands = ManyHands()
    hands.missing = True
    files = [bench.write(f"{i}.txt", f"第{i}份文件。") for i in range(30)]
    with pytest.raises(EngineFailed, match="nobody is there"):
        await by(hands, bench, files)
    ingested.is_whole(bench.folder / "knowledge" / "库")
    await bench.add(*files)
    hands.opened = 0
    report = await by(hands, bench, files)
    assert {file.status for file in report.files} == {"unchanged"} and not hands.opened


async def test_leaving_in_the_middle_of_a_copy_leaves_no_copy(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, on, made, stage = threading.Event(), threading.Event(), threading.Event(), Store.stage

    def slow(store: Store, path: Path) -> StagedFile:
        begun.set()
        assert on.wait(20)
        try:
            return stage(store, path)
        finally:
            made.set()

    monkeypatch.setattr(Store, "stage", slow)
    adding = asyncio.create_task(by(ManyHands(), bench, [bench.write("一.txt", "第一份文件。")]))
    assert await asyncio.to_thread(begun.wait, 20)
    adding.cancel()
    asyncio.get_running_loop().call_later(0.1, on.set)
    with pytest.raises(asyncio.CancelledError):
        await adding
    assert await asyncio.to_thread(made.wait, 20)
    ingested.is_whole(bench.folder / "knowledge" / "库")


async def test_leaving_many_hands_leaves_whole_documents_and_no_stray_files(bench: Bench, small: None) -> None:
    files = ingested.documents(bench.folder / "files")
    hands, seen = ManyHands(), asyncio.Event()

    def tell(progress: Progress) -> None:
        if progress.stage == "embed" and progress.done > 300:
            seen.set()

    store = Store(bench.folder / "knowledge" / "库")
    task = asyncio.create_task(Ingest(store, hands, Cutting(), tell).run(files))
    await seen.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    ingested.is_whole(store.folder)
    assert 0 < len(bench.library.documents("库")) < len(files)
    assert not (await by(hands, bench, [file for file in files if file[0].endswith(".md")])).failed
