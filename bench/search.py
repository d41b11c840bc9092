"""Search at scale: p50 and p99 of a whole search, recall against exact, memory, at 10,000 and 1,000,000 chunks.

Texts are recombined from the sentences of real Chinese documents (bench/corpora), so that word frequencies are real;
vectors are real passages' vectors of multilingual-e5-small, two of them mixed and noise added, so that they lie as real
ones do and no two are the same. Queries are five words of one passage, three of them among the hundred most common that
are no stop words; their vectors are made likewise. Steps, each resumable and each under ten minutes on two cores:

    search.py embed          real vectors (a few a second), once
    search.py fill N DIR     a base of N chunks
    search.py index N DIR    its index files, as `mofang kb rebuild` makes them
    search.py measure N DIR  the numbers; --embedder embeds each query, as the library does
"""

import argparse
import asyncio
import os
import random
import re
import resource
import sqlite3
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mofang.engine.onnx.engine import load
from mofang.errors import Unreadable
from mofang.knowledge.centre import Centres
from mofang.knowledge.index import snapshot
from mofang.knowledge.legs import Legs
from mofang.knowledge.loaders import parse
from mofang.knowledge.passage import passage
from mofang.knowledge.retrieve import Asked, search
from mofang.knowledge.schema import TEXT_PART
from mofang.knowledge.split.sentence import split
from mofang.knowledge.store import Store
from mofang.models.base import ModelRef
from mofang.settings import Settings
from mofang.text.languages import language_of
from mofang.text.words import query_words, words

CORPORA = Path(__file__).parent / "corpora"
CACHE = CORPORA / "cache"
MODEL = Path(os.environ.get("MOFANG_CACHE", Path.home() / ".cache/mofang-tests")) / (
    "models/multilingual-e5-small-q4_0.gguf"
)
DIMENSIONS = 384
CHUNKS_A_DOCUMENT = 50
NOISE = 0.25
"""Length of the noise beside a mix of length 1."""


# ---- real texts and vectors ----


def passages() -> list[tuple[tuple[str, ...], str]]:
    """(headings, text) of real Chinese documents, in one fixed random order."""
    files = [
        *sorted((CORPORA / "libreoffice-help-zh-cn").rglob("*.html")),
        *sorted((CORPORA / "debian-reference-zh-cn").rglob("*.zh-cn.html")),
    ]
    if not files:
        sys.exit("bench/corpora is empty: bench/corpora/fetch.sh")
    random.Random(5).shuffle(files)
    found: list[tuple[tuple[str, ...], str]] = []
    for file in files:
        try:
            document = parse(file, file.name, limit_bytes=None)
        except Unreadable:
            continue  # a page that only frames others
        for chunk in split(document):
            text = document.text[chunk.start : chunk.end]
            if len(re.findall(r"[\u4e00-\u9fff]", text)) > 20:
                found.append((chunk.headings, text))
        if len(found) > 9_000:
            break
    random.Random(5).shuffle(found)
    return found


async def embedder() -> Any:
    ref = ModelRef("multilingual-e5-small", MODEL, "gguf", "embedding", MODEL.stat().st_size)
    return await load(ref, Settings(home=Path(tempfile.mkdtemp())), progress=lambda _: None)


async def embed(limit: int) -> None:
    engine = await embedder()
    began, out = time.monotonic(), []
    texts = [passage(*each) for each in passages()[:limit]]
    try:
        for i in range(0, len(texts), 64):
            out.append(await engine.embed(texts[i : i + 64], "passage"))
            print(f"\r{i} {i / (time.monotonic() - began):.1f}/s ", end="", file=sys.stderr)
    finally:
        await engine.close()
    CACHE.mkdir(exist_ok=True)
    np.save(CACHE / "search-vectors.npy", np.concatenate(out))


def mixed(real: Any, n: int, rng: Any) -> Any:
    """(n, d) vectors of length 1: two real ones in random shares, and noise."""
    share = rng.uniform(0.2, 0.8, (n, 1)).astype(np.float32)
    one, other = (real[rng.integers(0, len(real), n)] for _ in range(2))
    noise = rng.normal(scale=NOISE / np.sqrt(real.shape[1]), size=(n, real.shape[1])).astype(np.float32)
    vectors = share * one + (1 - share) * other
    vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True) + noise
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


# ---- the base ----


def sentences() -> list[tuple[str, str]]:
    """(sentence, its words) of the real texts."""
    every = [part for _, text in passages() for part in re.split(r"(?<=[。！？；\n])", text) if len(part.strip()) > 6]
    return [(part.strip(), " ".join(words(part))) for part in dict.fromkeys(every)]


def fill(n: int, folder: Path) -> None:
    """Straight into the tables that an ingest fills: reading and embedding are measured elsewhere."""
    real = np.load(CACHE / "search-vectors.npy")
    rng, choose = np.random.default_rng(n), random.Random(n)
    pool = sentences()
    store = Store.create(folder / "scale", title="", embedding_model="multilingual-e5-small")
    connection = sqlite3.connect(store.path, isolation_level=None)
    connection.execute("PRAGMA synchronous = OFF")
    connection.execute("PRAGMA cache_size = -1000000")
    connection.execute("BEGIN")
    connection.execute("UPDATE base SET dimensions = ?, version = 1", (DIMENSIONS,))
    for document in range(n // CHUNKS_A_DOCUMENT):
        vectors = mixed(real, CHUNKS_A_DOCUMENT, rng)
        texts, spans, cut, at = [], [], [], 0
        for _ in range(CHUNKS_A_DOCUMENT):
            some = choose.sample(pool, choose.randint(3, 7))
            text = "".join(sentence for sentence, _ in some)[:300]
            texts.append(text)
            spans.append((at, at + len(text)))
            at += len(text)
            cut.append(" ".join(inside for _, inside in some))
        name = f"{document % 10}/{document}.txt"
        connection.execute("INSERT INTO documents (id, name) VALUES (?, ?)", (f"{document:016x}", name))
        version = connection.execute(
            "INSERT INTO versions (document_id, sha256, size_bytes, title, text, n_chars, notes, added_at)"
            " VALUES (?, ?, 0, '', '', ?, '[]', '')",
            (f"{document:016x}", f"{document:064x}", at),
        ).lastrowid
        whole = "".join(texts)
        parts = [(version, start, whole[start : start + TEXT_PART]) for start in range(0, at, TEXT_PART)]
        connection.executemany("INSERT INTO texts VALUES (?, ?, ?)", parts)
        connection.execute("UPDATE documents SET version_id = ? WHERE name = ?", (version, name))
        first = document * CHUNKS_A_DOCUMENT + 1
        digests = [rng.bytes(32) for _ in texts]
        ids = range(first, first + CHUNKS_A_DOCUMENT)
        connection.executemany(
            "INSERT INTO chunks (id, version_id, start, \"end\", headings, digest) VALUES (?, ?, ?, ?, '[]', ?)",
            [(one, version, *span, digest) for one, span, digest in zip(ids, spans, digests, strict=True)],
        )
        connection.executemany(
            "INSERT INTO vectors VALUES (?, ?)", [(d, v.tobytes()) for d, v in zip(digests, vectors, strict=True)]
        )
        connection.executemany("INSERT INTO words VALUES (?, ?)", list(zip(ids, cut, strict=True)))
        if document % 200 == 0:
            print(f"\r{document * CHUNKS_A_DOCUMENT} ", end="", file=sys.stderr)
    connection.execute("INSERT INTO commits VALUES (1, 'made', ?)", (n,))
    connection.execute("COMMIT")
    connection.close()


def index(folder: Path) -> None:
    began = time.monotonic()
    Legs(Settings()).rebuild(
        Store(folder / "scale"), lambda done, total: print(f"\r{done}/{total} ", end="", file=sys.stderr)
    )
    print(f"\nrebuilt in {time.monotonic() - began:.0f} s, peak {_peak():,.0f} MB")
    for path in sorted((folder / "scale" / snapshot.FOLDER).rglob("*")):
        if path.is_file():
            print(f"  {path.name:20} {path.stat().st_size / 1e6:9,.1f} MB")


def _peak() -> float:
    """MB that this process held at most, mapped files among them."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000


# ---- measuring ----


def questions(store: Store, n: int) -> list[str]:
    """Five words each, three of the hundred most common."""
    choose = random.Random(11)
    with store.read() as connection:
        last = connection.execute("SELECT max(id) FROM chunks").fetchone()[0]
        rows = [
            connection.execute("SELECT words FROM words WHERE chunk_id = ?", (choose.randint(1, last),)).fetchone()[0]
            for _ in range(max(n, 2_000))
        ]
    each = [[word for word in query_words(" ".join(row.split())) if len(word) > 1] for row in rows]
    common = {word for word, _ in Counter(word for one in each for word in set(one)).most_common(100)}
    found = []
    for one in each:
        frequent, rare = [w for w in one if w in common], [w for w in one if w not in common]
        if len(frequent) >= 3 and len(rare) >= 2:
            found.append(" ".join(choose.sample(frequent, 3) + choose.sample(rare, 2)))
    return found[:n]


async def measure(n: int, folder: Path, with_embedder: bool, n_queries: int) -> None:
    store, rng = Store(folder / "scale"), np.random.default_rng(7)
    asked = questions(store, n_queries)
    real = np.load(CACHE / "search-vectors.npy")
    made = mixed(real, len(asked), rng)
    legs = Legs(Settings())
    began = time.monotonic()
    search([store], asked[0], {"multilingual-e5-small": Asked(made[0], made[0])}, k=10, legs=legs)
    print(f"first search of the process, opening the index: {time.monotonic() - began:.2f} s")
    engine, centres = await embedder() if with_embedder else None, Centres()
    times: dict[str, list[float]] = {"whole": [], "embedding": [], "keywords": [], "vectors": []}
    recalls = []
    with store.read() as connection:
        model = "multilingual-e5-small"
        for warm in (True, False):
            for query, vector in zip(asked[: 20 if warm else None], made, strict=False):
                t0 = time.perf_counter()
                direction = vector
                if engine is not None:
                    vector = (await engine.embed([query], "query"))[0]
                    direction = await centres.direction(vector, engine, language_of(query))
                t1 = time.perf_counter()
                hits = search([store], query, {model: Asked(vector, direction)}, k=10, legs=legs)
                t2 = time.perf_counter()
                if warm:
                    continue
                assert len(hits) == 10
                times["whole"].append(t2 - t0)
                times["embedding"].append(t1 - t0)
                legs.keywords(store, connection, query_words(query), 100, None, [])
                t3 = time.perf_counter()
                found = legs.dense(store, connection, direction, 100, None, [])
                times["keywords"].append(t3 - t2)
                times["vectors"].append(time.perf_counter() - t3)
                if len(recalls) < 100:
                    recalls.append((direction, found))
    if engine is not None:
        await engine.close()
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    own, mapped = (int(status[name].split()[0]) / 1000 for name in ("RssAnon", "RssFile"))
    print(f"{n:,} chunks, {len(times['whole'])} queries such as {asked[:3]}; load {os.getloadavg()[0]:.1f}")
    for name, values in times.items():
        if name != "embedding" or with_embedder:
            print(
                f"  {name:10} p50 {statistics.median(values) * 1e3:6.1f}  p99 {np.quantile(values, 0.99) * 1e3:6.1f} ms"
            )
    print(f"  memory: {own:,.0f} MB of the process's own, {mapped:,.0f} MB of mapped files in use")
    recall(store, recalls)


def recall(store: Store, found: Sequence[tuple[Any, list[int]]]) -> None:
    """Of the ten nearest by exact comparison, the share that the vector leg put first."""
    vectors = np.stack([vector for vector, _ in found])
    best = np.zeros((len(found), 0), np.float32)
    ids = np.zeros((len(found), 0), np.int64)
    with store.read() as connection:
        rows = connection.execute("SELECT c.id, v.vector FROM chunks c JOIN vectors v ON v.digest = c.digest")
        while some := rows.fetchmany(20_000):
            scores = vectors @ np.frombuffer(b"".join(row[1] for row in some), "<f4").reshape(len(some), -1).T
            best = np.concatenate([best, scores], axis=1)
            new = np.broadcast_to(np.array([row[0] for row in some]), scores.shape)
            ids = np.concatenate([ids, new], axis=1)
            order = np.argsort(-best, axis=1)[:, :10]
            best, ids = np.take_along_axis(best, order, 1), np.take_along_axis(ids, order, 1)
    at_10 = np.mean(
        [len(set(mine[:10]) & set(map(int, right))) / 10 for (_, mine), right in zip(found, ids, strict=True)]
    )
    among = np.mean([len(set(mine) & set(map(int, right))) / 10 for (_, mine), right in zip(found, ids, strict=True)])
    print(f"  recall@10 against exact {at_10:.3f} (among its 100 candidates {among:.3f}), {len(found)} queries")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=["embed", "fill", "index", "measure"])
    parser.add_argument("n", type=int, nargs="?", default=10_000)
    parser.add_argument("folder", type=Path, nargs="?", default=CACHE / "scale")
    parser.add_argument("--embedder", action="store_true", help="embed each query with the real model")
    parser.add_argument("--queries", type=int, default=300)
    parser.add_argument("--vectors", type=int, default=2_000, help="real vectors to make")
    choice = parser.parse_args()
    if choice.step == "embed":
        asyncio.run(embed(choice.vectors))
    elif choice.step == "fill":
        fill(choice.n, choice.folder)
    elif choice.step == "index":
        index(choice.folder)
    else:
        asyncio.run(measure(choice.n, choice.folder, choice.embedder, choice.queries))


if __name__ == "__main__":
    main()
