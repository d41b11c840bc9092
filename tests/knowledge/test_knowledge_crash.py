"""kill -9 in the middle of an add: the base stays whole, each document old or new, and the next add finishes the work."""

import json
import random
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from killed_writer import FILES_FROM, GRAPH_FROM
from knowledge_bench import Bench

from mofang.knowledge import ingest
from mofang.knowledge.index import snapshot
from mofang.knowledge.legs import Legs
from mofang.knowledge.store import FILE, Store
from mofang.knowledge.stores import builtin
from mofang.settings import Settings

WRITER = Path(__file__).parent / "killed_writer.py"
N_FILES = 12
Kill = Callable[[Path, Path], None]
"""Start the writer on a home and a folder of files, and see that it dies by SIGKILL."""


def _text(i: int, version: str, scale: int) -> str:
    """Every sentence has a word of its own, so that a chunk can be asked for by name."""
    return "".join(f"第{i}份文件的{version}内容，编号{version}{i}k{n}。" for n in range((5 + i % 5 * 60) * scale))


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in the child: an index in files, with a graph, and more than one batch."""
    monkeypatch.setattr(builtin, "FILES_FROM", FILES_FROM)
    monkeypatch.setattr(builtin, "GRAPH_FROM", GRAPH_FROM)
    monkeypatch.setattr(ingest, "BATCH", 64)


async def _check(bench: Bench, kill: Kill, scale: int = 1) -> None:
    folder = bench.folder / "files"
    folder.mkdir()
    files = [(f"{i:02}.txt", folder / f"{i:02}.txt") for i in range(N_FILES)]
    for i, (_, path) in enumerate(files):
        path.write_text(_text(i, "v", scale), encoding="utf-8")
    await bench.add(*files[: N_FILES // 2])
    for i, (_, path) in enumerate(files):
        path.write_text(_text(i, "w", scale), encoding="utf-8")

    kill(bench.library.folder, folder)

    _is_whole(bench)
    _index_agrees(bench)
    documents = {d.name: d for d in bench.library.documents("库")}
    assert set(documents) >= {name for name, _ in files[: N_FILES // 2]}, "no old document is lost"
    new = set()
    for i, (name, _) in enumerate(files):
        if name in documents:
            text = bench.library.text("库", documents[name].id)["text"]
            assert text in ((_text(i, "v", scale), _text(i, "w", scale)) if i < N_FILES // 2 else (_text(i, "w", scale),))
            new |= {name} if text == _text(i, "w", scale) else set()

    report = await bench.add(*files)
    assert report.failed == []
    assert {file.name for file in report.files if file.status == "unchanged"} == new, "it goes on where it stopped"
    _is_whole(bench)
    _index_agrees(bench)
    _is_tidy(bench)
    assert len(bench.library.documents("库")) == N_FILES, "nothing doubled"
    for i in (0, N_FILES - 1):
        best = (await bench.library.search(["库"], f"编号w{i}k3"))[0]
        assert best.title == f"{i:02}.txt" and f"编号w{i}k3。" in best.text


def _is_whole(bench: Bench) -> None:
    connection = sqlite3.connect(bench.library.folder / "库" / FILE)
    assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
    rows = connection.execute(
        """
        SELECT (SELECT count(*) FROM documents) = (SELECT count(*) FROM versions),
               (SELECT count(*) FROM documents WHERE version_id IS NULL),
               (SELECT count(*) FROM chunks) = (SELECT count(*) FROM words),
               (SELECT count(*) FROM chunks WHERE digest NOT IN (SELECT digest FROM vectors)),
               (SELECT count(*) FROM vectors WHERE digest NOT IN (SELECT digest FROM chunks))
        """
    ).fetchone()
    connection.close()
    assert rows == (1, 0, 1, 0, 0)
    for document in bench.library.documents("库"):
        assert bench.library.file("库", document.id).stat().st_size == document.size_bytes


def _index_agrees(bench: Bench) -> None:
    """Whoever opens the base now finds each chunk by a word that only it has, and by its vector, and nothing else."""
    store, legs, notices = Store(bench.library.folder / "库"), Legs(Settings()), []
    with store.read() as connection:
        query = """
            SELECT c.id, w.words, v.vector FROM chunks c
            JOIN words w ON w.chunk_id = c.id JOIN vectors v ON v.digest = c.digest
        """
        rows = {row[0]: (row[1], np.frombuffer(row[2], "<f4")) for row in connection.execute(query)}
        own = {one: re.findall(r"\b[vw]\d+k\d+\b", held) for one, (held, _) in rows.items()}
        holders: dict[str, list[int]] = {}
        for one, names in own.items():
            for name in names:
                holders.setdefault(name, []).append(one)
        for one, (_, vector) in rows.items():
            name = own[one][-1]
            found = legs.keywords(store, connection, [name], 10, None, notices)
            assert sorted(found.ids) == sorted(set(holders[name])), name
            assert found.n == len(rows)
            assert legs.cosines(store, connection, [one], vector)[one] == pytest.approx(1, abs=1e-3)
        _, vector = next(iter(rows.values()), (None, np.zeros(1)))
        everything = legs.dense(store, connection, vector, 10 * len(rows), None, notices) if rows else []
        assert sorted(everything) == sorted(rows), "no chunk is missing, and none is a ghost"
    assert notices == []
    legs.close()


def _is_tidy(bench: Bench) -> None:
    """Nothing lies about: an original for each document, and one index, of the state that the base has."""
    base = bench.library.folder / "库"
    assert list((base / "incoming").iterdir()) == []
    assert len(list((base / "files").iterdir())) == N_FILES
    about = json.loads((base / "index" / "current.json").read_text(encoding="utf-8"))
    assert {path.name for path in (base / "index").iterdir()} == {"current.json", about["folder"]}
    assert snapshot.GRAPH in about["files"]
    assert [path.name for path in bench.library.folder.iterdir()] == ["库"]


def _at(moment: str) -> Kill:
    def kill(home: Path, folder: Path) -> None:
        child = subprocess.run([sys.executable, str(WRITER), str(home), str(folder), moment], timeout=120)
        assert child.returncode == -signal.SIGKILL

    return kill


@pytest.mark.parametrize("moment", ["read:8", "embed:4", "commit:1", "commit:7", "moved:3", "index:3", "named:1", "swept:1"])
async def test_killed_in_the_middle(moment: str, bench: Bench) -> None:
    await _check(bench, _at(moment))


# ---- at random moments ----


def _run(home: Path, folder: Path, kill_after_s: float | None) -> tuple[bool, str, float]:
    """Whether it was killed, the last it said, and the seconds from its beginning to its end."""
    child = subprocess.Popen(
        [sys.executable, str(WRITER), str(home), str(folder), "never"], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "begin\n"
    began = time.monotonic()
    if kill_after_s is not None:
        time.sleep(kill_after_s)
        child.kill()
    said, _ = child.communicate(timeout=120)
    assert child.returncode in (0, -signal.SIGKILL)
    return child.returncode != 0, (said.splitlines() or ["begin"])[-1], time.monotonic() - began


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(20))
async def test_killed_at_random_moments(seed: int, bench: Bench, tmp_path: Path) -> None:
    """At any moment between the first file and the end of the index, by the clock, so inside of libraries too."""

    def kill(home: Path, folder: Path) -> None:
        before = tmp_path / "before"
        shutil.copytree(home, before)
        _, _, whole_s = _run(home, folder, None)
        share = random.Random(seed).random()
        while True:
            shutil.rmtree(home)
            shutil.copytree(before, home)
            killed, said, _ = _run(home, folder, share * whole_s)
            if killed:
                break
            share *= 0.9  # this time it was faster
        print(f"seed {seed}: killed after {share:.0%} of {whole_s:.1f} s, at {said!r}")

    await _check(bench, kill, scale=4)
