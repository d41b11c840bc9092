"""What is taken in by several, and what of a base must be the same whoever did it: rows, without what is drawn at random."""

import json
import sqlite3
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

import office
from fakes import install_model

SAMPLES = Path(__file__).parent / "knowledge" / "samples"
SLOW = """
import asyncio, os
from pathlib import Path
from mofang.engine.hashed import HashEmbedder

class Slow(HashEmbedder):
    def __init__(self, ref):
        super().__init__(ref.name)
        self.log = Path(ref.manifest["log"])

    async def embed(self, texts, purpose):
        with self.log.open("a") as log:
            log.write(f"{os.getpid()} {len(texts)}\\n")
        await asyncio.sleep(0.1)
        return await super().embed(texts, purpose)

async def load(ref, settings, *, progress):
    return Slow(ref)
"""
"""An embedder that takes its time, and tells in which process it embedded how many passages."""


def plugin(folder: Path) -> Path:
    """The engine "slow", as a third party's package; a folder for PYTHONPATH."""
    about = folder / "slow_engine-1.dist-info"
    about.mkdir(parents=True)
    (folder / "slow_engine.py").write_text(SLOW)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: slow-engine\nVersion: 1\n")
    (about / "entry_points.txt").write_text("[mofang.engine]\nslow = slow_engine:load\n")
    return folder


def install(home: Path) -> Path:
    """The model "hash" with that engine; returns its log."""
    log = home / "embedded.log"
    log.touch()
    install_model(home, "hash", kind="embedding", engine="slow", log=str(log))
    return log


def embedded(log: Path) -> int:
    """Passages that were given to the model, in whatever process."""
    return sum(int(line.split()[1]) for line in log.read_text().splitlines())


def documents(folder: Path) -> list[tuple[str, Path]]:
    """Some forty small files of many formats; some share passages, some cannot be read."""
    folder.mkdir(parents=True, exist_ok=True)
    made: dict[str, str | bytes] = {}
    for i in range(18):
        sentences = "".join(f"第{i}份文件说到编号{i}之{n}的事情，细节见附录第{n}条。" for n in range(100 + i % 6 * 160))
        made[f"文/{i:02}.txt"] = sentences
    for i in range(8):
        parts = "\n\n".join(f"## 第{n}节\n\n这一节讲第{i}章的第{n}个问题。" * 4 for n in range(9))
        made[f"章/{i}.md"] = f"# 第{i}章\n\n{parts}\n"
    rows = "".join(f"怎样办理第{n}项手续？,到{n}号窗口，带上证件。\n" for n in range(30))
    table = [["品名", "数量"], *([f"第{n}种", n] for n in range(40))]
    pairs = "".join(
        json.dumps({"question": f"{n}加{n}？", "answer": f"{2 * n}。"}, ensure_ascii=False) + "\n" for n in range(20)
    )
    word = office.word(title="规定")
    for n in range(12):
        word.add_paragraph(f"第{n}条规定：应当在{n}日之内办完，逾期的另行处理。")
    made |= {
        "办事.csv": f"问题,答案\n{rows}", "库存.xlsx": office.workbook({"库存": table}), "算术.jsonl": pairs,
        "规定.docx": office.saved(word), "页.html": "<h1>页</h1><p>网页上的一段话，讲网络。</p><table><tr><td>甲</td></tr></table>",
        "国标.txt": "国标编码的文件。".encode("gbk"), "手册.pdf": (SAMPLES / "员工手册.pdf").read_bytes(),
        "压缩.zip": office.zipped({"里/一.txt": "压缩包里的第一份。", "里/二.md": "# 二\n\n压缩包里的第二份。", "里/图.png": b"x"}),
        "同文.txt": made["文/00.txt"], "空.txt": "", "坏.pdf": "不是 PDF", "坏.docx": b"PK\x03\x04" + b"x" * 50,
        "旧.doc": b"\xd0\xcf", "坏.zip": "不是压缩包", "程序.txt": b"\x7fELF\0\0\1" * 99,
    }  # fmt: skip
    files = []
    for name, content in made.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        files.append((name, path))
    return [*files, ("没有.txt", folder / "没有.txt")]


ROWS = {
    "versions": "SELECT d.name, v.sha256, v.size_bytes, v.title, v.n_chars, v.n_pages, v.notes FROM versions v",
    "texts": "SELECT d.name, x.start, x.text FROM texts x JOIN versions v ON v.id = x.version_id",
    "blocks": """
        SELECT d.name, b.n, b.kind, b.start, b."end", b.headings, b.page, b.box, b.place, b.lead
        FROM blocks b JOIN versions v ON v.id = b.version_id
    """,
    "chunks": """
        SELECT d.name, c.start, c."end", c.headings, hex(c.digest), c.lead, w.words
        FROM chunks c JOIN words w ON w.chunk_id = c.id JOIN versions v ON v.id = c.version_id
    """,
}


def rows(base: Path) -> dict[str, list[Any]]:
    """Everything of a base but random ids, times and vectors."""
    connection = sqlite3.connect(base / "base.sqlite")
    found = {
        table: sorted(connection.execute(f"{query} JOIN documents d ON d.version_id = v.id").fetchall(), key=repr)
        for table, query in ROWS.items()
    }
    found["originals"] = sorted(path.name for path in (base / "files").iterdir())
    found["model"] = connection.execute("SELECT embedding_model, dimensions FROM base").fetchall()
    connection.close()
    return found


def order(base: Path) -> list[Any]:
    """Documents and chunks by the numbers that they got."""
    connection = sqlite3.connect(base / "base.sqlite")
    query = "SELECT c.id, v.id, d.name, c.start FROM chunks c JOIN versions v ON v.id = c.version_id JOIN documents d ON d.id = v.document_id"
    found = connection.execute(f"{query} ORDER BY c.id").fetchall()
    connection.close()
    return found


def vectors(base: Path) -> dict[bytes, Any]:
    connection = sqlite3.connect(base / "base.sqlite")
    found = {key: np.frombuffer(row, "<f4") for key, row in connection.execute("SELECT digest, vector FROM vectors")}
    connection.close()
    return found


def is_whole(base: Path) -> None:
    """Every chunk has its words and its vector, no vector is nobody's, no document is there twice or half."""
    connection = sqlite3.connect(base / "base.sqlite")
    assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    query = """
        SELECT (SELECT count(*) FROM documents) = (SELECT count(*) FROM versions),
               (SELECT count(*) FROM documents WHERE version_id IS NULL),
               (SELECT count(*) FROM chunks) = (SELECT count(*) FROM words),
               (SELECT count(*) FROM chunks WHERE digest NOT IN (SELECT digest FROM vectors)),
               (SELECT count(*) FROM vectors WHERE digest NOT IN (SELECT digest FROM chunks))
    """
    assert connection.execute(query).fetchone() == (1, 0, 1, 0, 0)
    connection.close()
    assert list((base / "incoming").glob("*")) == [], "nothing lies about"


def same(one: Path, other: Path) -> None:
    """Row for row, and the vectors up to the error of float32."""
    ours, theirs = rows(one), rows(other)
    for table in ours:
        assert ours[table] == theirs[table], table
    left, right = vectors(one), vectors(other)
    assert left.keys() == right.keys()
    for key, vector in left.items():
        np.testing.assert_allclose(vector, right[key], atol=1e-6)


def doubled(base: Path) -> list[Any]:
    return [row for row, n in Counter(rows(base)["chunks"]).items() if n > 1]
