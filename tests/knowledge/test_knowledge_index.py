"""The index: postings rank as BM25 does, whatever was pruned; files are trusted only when they are what was written."""

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mofang.knowledge.index import postings as p
from mofang.knowledge.index import segment, snapshot
from mofang.knowledge.stores import builtin
from mofang.knowledge.stores.base import Changes, Commit, Row
from mofang.knowledge.stores.builtin import Builtin, idf
from opensearch_stand_in import bm25

_WORDS = st.sampled_from(["甲", "乙", "丙丁", "utf-8", "c++", "年假", "a"])
_TEXTS = st.lists(st.lists(_WORDS, max_size=12).map(" ".join), max_size=40)


def _scored(texts: list[str], words: list[str], k: int, monkey_scan: int) -> dict[int, float]:
    made = p.build(texts)
    n = len(texts)
    weights = [(word, idf(n, len(made.of(word)[0]))) for word in words if len(made.of(word)[0])]
    mean = float(made.lengths.mean()) if n else 0.0
    before, p.SCAN = p.SCAN, monkey_scan
    try:
        rows, scores = p.top(made, weights, p.damping(made.lengths, mean), k, None)
    finally:
        p.SCAN = before
    return dict(zip(map(int, rows), map(float, scores), strict=True))


@given(
    _TEXTS, st.lists(_WORDS, min_size=1, max_size=5, unique=True), st.integers(1, 10), st.sampled_from([0, 3, 10**6])
)
def test_the_best_are_those_of_bm25_however_lists_are_pruned(
    texts: list[str], words: list[str], k: int, scan: int
) -> None:
    right = {int(one): score for one, score in bm25({str(i): t.split() for i, t in enumerate(texts)}, words).items()}
    found = _scored(texts, words, k, scan)
    assert sorted(found.values(), reverse=True) == pytest.approx(sorted(right.values(), reverse=True)[:k], rel=1e-4)
    assert all(right[row] == pytest.approx(score, rel=1e-4) for row, score in found.items())


@given(_TEXTS, st.integers(0, 40))
def test_joined_parts_are_what_one_building_makes(texts: list[str], cut: int) -> None:
    whole, joined = p.build(texts), p.merge([p.build(texts[:cut]), p.build(texts[cut:])])
    for name in ("hashes", "starts", "rows", "counts", "lengths"):
        assert np.array_equal(getattr(whole, name), getattr(joined, name)), name


def test_a_word_that_stands_often_and_one_that_stands_nowhere() -> None:
    made = p.build(["年假 " * 1000, "报销"])
    assert [array.tolist() for array in made.of("年假")] == [[0], [255]]
    assert made.of("没有")[0].size == 0
    assert made.lengths.tolist() == [1000, 1]


# ---- files ----


def _rows(n: int, first: int = 1) -> list[Row]:
    rng = np.random.default_rng(first)
    vectors = rng.normal(size=(n, 16)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return [Row(first + i, f"d{i % 5}", f"词{i % 11} 共同", vectors[i]) for i in range(n)]


def _changes(rows: list[Row], version: int = 1, *, whole: bool = True, removed: tuple[int, ...] = ()) -> Changes:
    return Changes(Commit(version, f"t{version}"), whole, removed, len(rows), iter([rows] if rows else []))


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files from the first chunk on, a graph from the hundredth."""
    monkeypatch.setattr(builtin, "FILES_FROM", 1)
    monkeypatch.setattr(builtin, "GRAPH_FROM", 100)


def _recall(store: Builtin, rows: list[Row], documents: set[str] | None = None) -> float:
    rng, found = np.random.default_rng(3), []
    inside = [row for row in rows if documents is None or row.document_id in documents]
    for _ in range(30):
        vector = rng.normal(size=16).astype(np.float32)
        right = [row.id for row in sorted(inside, key=lambda row: -float(row.vector @ vector))[:10]]
        found.append(len(set(store.dense(vector, 10, documents)) & set(right)) / 10)
    return float(np.mean(found))


@pytest.mark.usefixtures("small")
def test_files_hold_what_was_in_memory_and_the_graph_finds_it(tmp_path: Path) -> None:
    rows = _rows(3_000)
    Builtin(tmp_path).settle(_changes(rows), 16, lambda *_: None)
    store = Builtin(tmp_path, is_ours=lambda _: True)
    assert store.held() == Commit(1, "t1") and store.memory_bytes == 0
    view = store._view
    assert view is not None and view.parts[0].segment.graph is not None
    assert isinstance(view.parts[0].segment.matrix, np.memmap), "mapped, not copied"
    # Threads build the graph in another order each time: 4 of 300 were missed once.
    assert _recall(store, rows) >= 0.97
    assert _recall(store, rows, {"d1"}) >= 0.97, "through the graph"
    assert _recall(store, rows, {"d1"}) >= 0.97
    memory = Builtin(tmp_path / "other")
    memory.sync(_changes(rows))
    for words in (["词3"], ["共同", "词7"], ["共同"]):
        assert store.keywords(words, 20, None) == memory.keywords(words, 20, None)


@pytest.mark.usefixtures("small")
def test_changes_after_the_files_are_searched_too_and_the_graph_grows(tmp_path: Path) -> None:
    rows = _rows(2_000)
    Builtin(tmp_path).settle(_changes(rows), 16, lambda *_: None)
    store = Builtin(tmp_path, is_ours=lambda _: True)
    fresh, gone = _rows(150, first=5_000), tuple(row.id for row in rows[:120])
    store.sync(_changes(fresh, 2, whole=False, removed=gone))
    now = rows[120:] + fresh
    assert _recall(store, now) >= 0.97
    assert set(store.dense(rows[3].vector, 5_000, None)) == {row.id for row in now}
    assert not store.is_settled(len(now)), "13 % changed"
    store.settle(_changes(now, 2), 16, lambda *_: None)
    again = Builtin(tmp_path, is_ours=lambda _: True)
    assert again.held() == Commit(2, "t2") and again.is_settled(len(now))
    assert _recall(again, now) >= 0.97
    keys = np.asarray(again._view.parts[0].segment.graph.keys)  # type: ignore[union-attr]
    assert set(map(int, keys)) == {row.id for row in now}, "without what is gone, with what is new"
    assert len([one for one in (tmp_path / "index").iterdir() if one.is_dir()]) == 1, "the old files are gone"


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    "name", ["matrix.npy", "graph.usearch", "rows.npy", "hashes.npy", "ids.npy", "documents.json", "current.json"]
)
@pytest.mark.parametrize("damage", ["flip", "cut", "gone"])
def test_damaged_files_are_not_used(name: str, damage: str, tmp_path: Path) -> None:
    Builtin(tmp_path).settle(_changes(_rows(200)), 16, lambda *_: None)
    (path,) = (tmp_path / "index").rglob(name)
    raw = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        middle = len(raw) // 2
        path.write_bytes(
            raw[:middle] if damage == "cut" else raw[:middle] + bytes([raw[middle] ^ 4]) + raw[middle + 1 :]
        )
    store = Builtin(tmp_path, is_ours=lambda one: one == Commit(1, "t1"))
    assert store.held() is None
    store.sync(_changes(_rows(200)))
    assert _recall(store, _rows(200)) == 1.0, "exactly, from the base itself"


@pytest.mark.usefixtures("small")
def test_files_of_another_commit_are_not_used(tmp_path: Path) -> None:
    Builtin(tmp_path).settle(_changes(_rows(200), version=7), 16, lambda *_: None)
    assert Builtin(tmp_path, is_ours=lambda _: False).held() is None
    assert Builtin(tmp_path, is_ours=lambda one: one.token == "t7").held() == Commit(7, "t7")


@pytest.mark.usefixtures("small")
def test_whoever_is_killed_while_writing_leaves_the_old_files(tmp_path: Path) -> None:
    Builtin(tmp_path).settle(_changes(_rows(200)), 16, lambda *_: None)
    before = json.loads((tmp_path / "index" / "current.json").read_text())

    def dies(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Builtin(tmp_path).settle(_changes(_rows(300), version=2), 16, dies)
    (tmp_path / "index" / "left-by-a-kill").mkdir()
    assert json.loads((tmp_path / "index" / "current.json").read_text()) == before
    assert Builtin(tmp_path, is_ours=lambda _: True).held() == Commit(1, "t1")
    snapshot.sweep(tmp_path)
    assert {path.name for path in (tmp_path / "index").iterdir()} == {"current.json", before["folder"]}


@pytest.mark.usefixtures("small")
def test_few_of_many_are_compared_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [Row(row.id, "rare" if row.id % 100 == 0 else "d", row.words, row.vector) for row in _rows(2_000)]
    Builtin(tmp_path).settle(_changes(rows), 16, lambda *_: None)
    store = Builtin(tmp_path, is_ours=lambda _: True)

    def never(*_: object) -> None:
        raise AssertionError("the graph would look among the others")

    monkeypatch.setattr(segment.Segment, "_by_graph", never)
    assert _recall(store, rows, {"rare"}) == 1.0


def test_killed_at_any_moment_of_writing_the_old_files_stay(tmp_path: Path) -> None:
    """A child writes files over and over and is killed; what stands is whole, and of a commit that it finished."""
    program = f"""
import sys; sys.path[:0] = [{str(Path(__file__).parent)!r}, {str(Path(__file__).parent.parent)!r}]
from pathlib import Path
from test_knowledge_index import _changes, _rows
from mofang.knowledge.stores import builtin
builtin.FILES_FROM, builtin.GRAPH_FROM = 1, 100
for version in range(1, 10_000):
    builtin.Builtin(Path({str(tmp_path)!r})).settle(_changes(_rows(400), version), 16, lambda *_: None)
    print(version, flush=True)
"""
    for seconds in (0.05, 0.21, 0.43):
        child = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        assert child.stdout.readline().strip() == "1"
        time.sleep(seconds)
        child.kill()
        child.communicate()
        found = snapshot.read(tmp_path, lambda _: True, vectors=True)
        assert found is not None and len(found[1].ids) == 400
        builtin.snapshot.sweep(tmp_path)
        assert len([path for path in (tmp_path / "index").iterdir() if path.is_dir()]) == 1, "leftovers are swept"
