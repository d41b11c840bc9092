"""Whether a base is whole, its index right and its folder tidy, whatever happened to it; and texts that let one tell."""

import json
import re
import sqlite3

import numpy as np
import pytest
from knowledge_bench import Bench

from mofang.knowledge.index import snapshot
from mofang.knowledge.legs import Legs
from mofang.knowledge.store import FILE, Store
from mofang.settings import Settings


def text(i: int, version: str, scale: int = 1) -> str:
    """Every sentence has a word of its own, so that a chunk can be asked for by name."""
    return "".join(f"第{i}份文件的{version}内容，编号{version}{i}k{n}。" for n in range((5 + i % 5 * 60) * scale))


def is_whole(bench: Bench) -> None:
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


def index_agrees(bench: Bench) -> None:
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


def is_tidy(bench: Bench, n_files: int) -> None:
    """Nothing lies about: an original for each document, and one index, of the state that the base has."""
    base = bench.library.folder / "库"
    assert list((base / "incoming").iterdir()) == []
    assert len(list((base / "files").iterdir())) == n_files
    about = json.loads((base / "index" / "current.json").read_text(encoding="utf-8"))
    assert {path.name for path in (base / "index").iterdir()} == {"current.json", about["folder"]}
    assert snapshot.GRAPH in about["files"]
    assert [path.name for path in bench.library.folder.iterdir()] == ["库"]
