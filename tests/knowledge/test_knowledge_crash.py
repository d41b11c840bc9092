"""kill -9 in the middle of an add: the base stays whole, each document old or new, and the next add finishes the work."""

import random
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from knowledge_bench import Bench

from mofang.knowledge.store import FILE

WRITER = Path(__file__).parent / "killed_writer.py"
N_FILES = 12
N_BATCHES = 4
"""Of the embedder, for what the files below hold: a later moment would never come."""


def _text(i: int, word: str) -> str:
    return f"第{i}份文件的{word}内容。" * (1 + i % 5 * 20)


async def _check(bench: Bench, moment: str) -> None:
    folder = bench.folder / "files"
    folder.mkdir()
    files = [(f"{i:02}.txt", folder / f"{i:02}.txt") for i in range(N_FILES)]
    for i, (_, path) in enumerate(files):
        path.write_text(_text(i, "旧"), encoding="utf-8")
    await bench.add(*files[: N_FILES // 2])
    for i, (_, path) in enumerate(files):
        path.write_text(_text(i, "新"), encoding="utf-8")

    child = subprocess.run([sys.executable, str(WRITER), str(bench.library.folder), str(folder), moment], timeout=120)
    assert child.returncode == -signal.SIGKILL

    _is_whole(bench)
    documents = {d.name: d for d in bench.library.documents("库")}
    assert set(documents) >= {name for name, _ in files[: N_FILES // 2]}, "no old document is lost"
    for i, (name, _) in enumerate(files):
        if name in documents:
            text = bench.library.text("库", documents[name].id)["text"]
            assert text in ((_text(i, "旧"), _text(i, "新")) if i < N_FILES // 2 else (_text(i, "新"),))

    report = await bench.add(*files)
    assert report.failed == []
    _is_whole(bench)
    assert len(bench.library.documents("库")) == N_FILES, "nothing doubled"
    base = bench.library.folder / "库"
    assert len(list((base / "files").iterdir())) == N_FILES and list((base / "incoming").iterdir()) == []
    for i in (0, N_FILES - 1):
        best = (await bench.library.search(["库"], f"第{i}份文件的新内容"))[0]
        assert "新内容" in best.text and "旧" not in best.text


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


@pytest.mark.parametrize("moment", ["read:8", "embed:4", "commit:1", "commit:7"])
async def test_killed_in_the_middle(moment: str, bench: Bench) -> None:
    await _check(bench, moment)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(20))
async def test_killed_at_random_moments(seed: int, bench: Bench) -> None:
    rng = random.Random(seed)
    place, highest = rng.choice([("read", N_FILES), ("embed", N_BATCHES), ("commit", N_FILES)])
    await _check(bench, f"{place}:{rng.randint(1, highest)}")
