"""Retrieval: MRR@10 and recall@10 of keywords, vectors and both fused, on Chinese help pages, Chinese and English titles.

Everything goes through the real rooms: pages are read, cut, indexed and searched by mofang.knowledge.library, vectors
come from multilingual-e5-small in the engine room. A page's place is that of its best passage. "plain RRF" fuses the
same two legs without weighing the keyword votes. Choose on the dev half, report the test half.
The first run embeds the pages (minutes); vectors are kept in bench/corpora/cache by the digest of model and text.
Needs bench/corpora (fetch.sh, libreoffice_beir.py).
"""

import argparse
import asyncio
import contextlib
import hashlib
import json
import os
import sqlite3
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mofang.engine.base import EngineInfo, Purpose, Vectors
from mofang.engine.onnx.engine import load
from mofang.knowledge.base import Hit
from mofang.knowledge.library import Library
from mofang.messages import Progress
from mofang.models.base import ModelRef
from mofang.settings import Settings

CORPORA = Path(__file__).parent / "corpora"
SET = CORPORA / "libreoffice"
MODEL = Path(os.environ.get("MOFANG_CACHE", Path.home() / ".cache/mofang-tests")) / (
    "models/multilingual-e5-small-q4_0.gguf"
)
DEPTH = 100
"""Passages of each leg that are looked at when a leg is scored by itself."""
K = 25
"""Passages asked of the fused search: enough for ten pages, few enough that its legs are as deep as in daily use."""
RRF_K = 60
VECTORS = b"onnxruntime int8, 1"
"""Of what vectors were made by: those of another way are made anew."""


# ---- vectors, remembered ----


class Remembered:
    """The engine room's embedder, started only for texts whose vectors are not in the cache."""

    dimensions = 384

    def __init__(self, model: Path, cache: Path, home: Path) -> None:
        self._ref = ModelRef(
            "multilingual-e5-small", model, "gguf", "embedding", model.stat().st_size, manifest={"normalizer": "nfkc"}
        )
        self._identity = hashlib.sha256(model.read_bytes() + VECTORS).digest()
        self._home = home
        self._engine: Any = None
        cache.mkdir(parents=True, exist_ok=True)
        self._rows = sqlite3.connect(cache / "vectors.sqlite", isolation_level=None)
        self._rows.execute("CREATE TABLE IF NOT EXISTS vectors (digest BLOB PRIMARY KEY, vector BLOB) WITHOUT ROWID")

    def info(self) -> EngineInfo:
        return EngineInfo("multilingual-e5-small", "onnx", "embedding", 512, 4, None, 0)

    async def tokenize(self, text: str) -> list[int]:
        return list(await (await self._started()).tokenize(text))

    async def embed(self, texts: Sequence[str], purpose: Purpose) -> Vectors:
        digests = [hashlib.sha256(self._identity + f"{purpose}\0{text}".encode()).digest() for text in texts]
        missing = [i for i, digest in enumerate(digests) if self._get(digest) is None]
        if missing:
            fresh = await (await self._started()).embed([texts[i] for i in missing], purpose)
            rows = [(digests[i], vector.tobytes()) for i, vector in zip(missing, fresh, strict=True)]
            self._rows.executemany("INSERT OR REPLACE INTO vectors VALUES (?, ?)", rows)
        return np.stack([np.frombuffer(self._get(digest) or b"", np.float32) for digest in digests])

    def alive(self) -> bool:
        return True

    async def close(self) -> None:
        self._rows.close()
        if self._engine is not None:
            await self._engine.close()

    def _get(self, digest: bytes) -> bytes | None:
        row = self._rows.execute("SELECT vector FROM vectors WHERE digest = ?", (digest,)).fetchone()
        return row[0] if row else None

    async def _started(self) -> Any:
        if self._engine is None:
            self._engine = await load(self._ref, Settings(home=self._home), progress=lambda _: None)
        return self._engine


# ---- the set ----


def lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def queries(half: str) -> list[tuple[str, str, str]]:
    """(language, query, id of the right page) of the "dev" or "test" half."""
    texts = {row["_id"]: row["text"] for row in lines(SET / "queries.jsonl")}
    pairs = [line.split("\t")[:2] for line in (SET / f"qrels/{half}.tsv").read_text(encoding="utf-8").splitlines()[1:]]
    return [(query.split(":")[0], texts[query], page) for query, page in pairs]


def name_of(page: str) -> str:
    """A document name that says nothing of the page."""
    return hashlib.sha256(page.encode()).hexdigest()[:16] + ".txt"


async def ingest(library: Library, folder: Path) -> None:
    files = []
    for row in lines(SET / "corpus.jsonl"):
        path = folder / name_of(row["_id"])
        path.write_text(row["text"], encoding="utf-8")
        files.append((path.name, path))
    library.create("help", embedding_model="multilingual-e5-small")
    start = time.monotonic()
    report = await library.add("help", files, progress=_show)
    info = library.info("help")
    print(f"{info.n_documents} pages, {info.n_chunks} passages, {time.monotonic() - start:.0f} s", file=sys.stderr)
    if report.failed:
        sys.exit(f"{len(report.failed)} pages failed: {report.failed[0]}")


def _show(progress: Progress) -> None:
    if progress.stage == "embed":
        print(f"\r{progress.stage} {progress.done}/{progress.total} {progress.rate:.1f}/s ", end="", file=sys.stderr)


# ---- scoring ----


def pages(hits: Iterable[Hit]) -> list[str]:
    """Documents by their best passage, at most ten."""
    return list(dict.fromkeys(hit.title for hit in hits))[:10]


def legs(hits: Sequence[Hit]) -> dict[str, list[str]]:
    """Rankings that can be read off a deep fused list: each leg by itself, and both without weights."""
    keyword = sorted((hit for hit in hits if (hit.bm25_rank or DEPTH + 1) <= DEPTH), key=lambda hit: hit.bm25_rank or 0)
    dense = sorted((hit for hit in hits if (hit.dense_rank or DEPTH + 1) <= DEPTH), key=lambda hit: hit.dense_rank or 0)
    votes: dict[int, float] = {}
    for leg in (dense, keyword):
        for rank, hit in enumerate(leg, start=1):
            votes[id(hit)] = votes.get(id(hit), 0.0) + 1 / (RRF_K + rank)
    plain = sorted((hit for hit in hits if id(hit) in votes), key=lambda hit: -votes[id(hit)])
    return {"BM25": pages(keyword), "dense": pages(dense), "plain RRF": pages(plain)}


ROWS = ("BM25", "dense", "plain RRF", "mofang")


async def score(library: Library, half: str, limit: int | None) -> dict[tuple[str, str], tuple[float, float]]:
    """(row, language) → (MRR@10, recall@10)."""
    places: dict[tuple[str, str], list[int | None]] = {}
    for language, query, page in queries(half)[:limit]:
        right = name_of(page)
        found = legs(await library.search(["help"], query, k=2 * DEPTH))
        found["mofang"] = pages(await library.search(["help"], query, k=K))
        for row in ROWS:
            place = found[row].index(right) + 1 if right in found[row] else None
            places.setdefault((row, language), []).append(place)
    return {
        key: (sum(1 / place for place in all_of_them if place) / len(all_of_them), _share(all_of_them))
        for key, all_of_them in places.items()
    }


def _share(places: Sequence[int | None]) -> float:
    return sum(place is not None for place in places) / len(places)


def table(scores: dict[str, dict[tuple[str, str], tuple[float, float]]]) -> str:
    columns = [(half, language) for half in scores for language in ("zh", "en")]
    out = ["| | " + " | ".join(f"{half}, {language} titles" for half, language in columns) + " |"]
    out.append("|---" * (len(columns) + 1) + "|")
    for row in ROWS:
        cells = [scores[half].get((row, language), (0.0, 0.0)) for half, language in columns]
        out.append(f"| {row} | " + " | ".join(f"{mrr:.3f} / {recall:.3f}" for mrr, recall in cells) + " |")
    return "\n".join(out)


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--half", choices=["dev", "test", "both"], default="both")
    parser.add_argument("--limit", type=int, help="only the first so many queries of each half (for a quick look)")
    parser.add_argument("--keep", type=Path, help="keep the knowledge base in this empty folder")
    choice = parser.parse_args()
    for path, cure in ((SET / "corpus.jsonl", "bench/corpora/fetch.sh; libreoffice_beir.py"), (MODEL, "make test")):
        if not path.is_file():
            sys.exit(f"{path} is missing: {cure}")
    with tempfile.TemporaryDirectory() as scratch:
        embedder = Remembered(MODEL, CORPORA / "cache", Path(scratch))

        @contextlib.asynccontextmanager
        async def opened(model: str) -> AsyncIterator[Any]:
            yield embedder

        try:
            library = Library(choice.keep or Path(scratch) / "knowledge", opened)
            (Path(scratch) / "pages").mkdir()
            await ingest(library, Path(scratch) / "pages")
            halves = ["dev", "test"] if choice.half == "both" else [choice.half]
            scores = {half: await score(library, half, choice.limit) for half in halves}
        finally:
            await embedder.close()
    print("MRR@10 / recall@10\n")
    print(table(scores))


if __name__ == "__main__":
    asyncio.run(main())
