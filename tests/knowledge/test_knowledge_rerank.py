"""A reranker in search: its order where it is named, the fused order where it is not or cannot be used."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from knowledge_bench import Bench, TokenCounter

import tiny_bert
from mofang.engine import ENGINES
from mofang.engine.base import EngineInfo
from mofang.errors import EngineFailed, NotFound
from mofang.knowledge.library import Library
from mofang.knowledge.rerank import RERANKED
from mofang.messages import Message
from mofang.models.base import ModelRef
from mofang.settings import Settings


class Longest:
    """A reranker that likes long documents, and remembers what it was shown."""

    def __init__(self) -> None:
        self.shown: list[list[str]] = []
        self.fault: Exception | None = None

    def info(self) -> EngineInfo:
        return EngineInfo("longest", "test", "reranker", 512, 1, None, 0)

    def alive(self) -> bool:
        return True

    async def tokenize(self, text: str) -> list[int]:
        return [ord(character) for character in text]

    async def close(self) -> None: ...

    async def rerank(self, query: str, documents: Sequence[str]) -> list[float]:
        if self.fault:
            raise self.fault
        self.shown.append(list(documents))
        return [float(len(document)) for document in documents]


class Shelf(Bench):
    """A bench whose library knows a reranker."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        super().__init__(folder)
        self.reranker = Longest()
        self.names: list[str] = []

        @asynccontextmanager
        async def opened(name: str) -> AsyncIterator[Any]:
            self.names.append(name)
            if name == "nobody":
                raise NotFound("models.model_not_found", name=name, cure="-")
            yield self.reranker

        self.library = Library(folder / "knowledge", self.open, settings=Settings(**settings), reranker=opened)


@pytest.fixture
async def shelf(tmp_path: Path) -> Shelf:
    made = Shelf(tmp_path)
    for n in range(6):
        await made.put(f"{n}.txt", "年假五天。" + "还有别的规定。" * n)
    return made


async def _order(shelf: Shelf, k: int | None = 3, **how: Any) -> list[str]:
    return [hit.title for hit in await shelf.library.search(["库"], "年假", k=k, **how)]


async def test_without_a_name_nothing_is_reranked(shelf: Shelf) -> None:
    hits = await shelf.library.search(["库"], "年假", k=3)
    assert hits[0].title == "0.txt" and not shelf.names
    assert [hit.rerank_score for hit in hits] == [None] * 3


async def test_a_named_reranker_orders_what_the_legs_found(shelf: Shelf) -> None:
    hits = await shelf.library.search(["库"], "年假", k=3, rerank="longest")
    assert [hit.title for hit in hits] == ["5.txt", "4.txt", "3.txt"], "also what stood below the first k"
    assert [hit.rerank_score for hit in hits] == [
        float(len(text)) for text in sorted(shelf.reranker.shown[0], key=len)[:2:-1]
    ]
    fused = {hit.title: hit.score for hit in await shelf.library.search(["库"], "年假", k=None)}
    assert all(hit.score == fused[hit.title] for hit in hits), "the fused score stays what it was"


async def test_only_the_head_is_read_and_nothing_is_lost(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path)
    lines = "\n\n".join(f"# 第{n}节\n\n年假的第{n}条规定。" for n in range(RERANKED + 20))
    await shelf.put("长.md", lines)
    plain = [(hit.start, hit.end) for hit in await shelf.library.search(["库"], "年假规定", k=None)]
    again = [(hit.start, hit.end) for hit in await shelf.library.search(["库"], "年假规定", k=None, rerank="longest")]
    assert sorted(plain) == sorted(again) and plain[RERANKED:] == again[RERANKED:]
    assert [len(shown) for shown in shelf.reranker.shown] == [RERANKED]
    assert all("年假" in text and "第" in text.split("\n")[0] for text in shelf.reranker.shown[0]), "with the headings"


async def test_the_setting_holds_for_searches_and_answers(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path, reranker_model="longest")
    await shelf.put("短.txt", "年假五天。")
    await shelf.put("长.txt", "年假的规定很长很长，另见附录。")
    assert await _order(shelf) == ["长.txt", "短.txt"]
    grounding = await shelf.library.ground(
        ["库"],
        [Message("user", "年假？")],
        engine=TokenCounter(),
        max_prompt_tokens=8000,  # type: ignore[arg-type]
    )
    assert grounding.sources[0].title == "长.txt"
    assert await _order(shelf, rerank="") == ["短.txt", "长.txt"], "a search can do without"


@pytest.mark.parametrize("name", ["nobody", "longest"])
async def test_one_that_cannot_be_used_is_said_and_harms_nothing(shelf: Shelf, name: str) -> None:
    shelf.reranker.fault = EngineFailed("engine.failed", model="longest", why="no memory")
    notices: list[str] = []
    plain = await _order(shelf)
    assert await _order(shelf, rerank=name, notices=notices) == plain
    assert len(notices) == 1 and name in notices[0]


async def test_where_nothing_is_found_none_is_opened(shelf: Shelf) -> None:
    shelf.library.create("空", embedding_model="hash")
    assert await shelf.library.search(["空"], "年假", rerank="longest") == [] and not shelf.names


async def test_a_real_cross_encoder(tmp_path: Path) -> None:
    """Tiny, with random weights, in llama.cpp: its scores decide, whatever they are."""
    path = tmp_path / "tiny.gguf"
    tiny_bert.write(path, reranker=True)
    ref = ModelRef("tiny", path, "gguf", "reranker", path.stat().st_size)
    engine = await ENGINES.get("llama")(ref, Settings(home=tmp_path), progress=lambda _: None)
    bench = Bench(tmp_path)

    @asynccontextmanager
    async def opened(name: str) -> AsyncIterator[Any]:
        yield engine

    try:
        library = Library(tmp_path / "knowledge", bench.open, reranker=opened)
        for name, text in (("a.txt", "天气 abc"), ("b.txt", "长城 def"), ("c.txt", "长城 天气")):
            await bench.put(name, text)
        hits = await library.search(["库"], "长城", rerank="tiny")
        assert [hit.rerank_score for hit in hits] == pytest.approx(
            sorted(await engine.rerank("长城", [hit.text for hit in hits]), reverse=True), abs=1e-4
        )
        assert len({hit.rerank_score for hit in hits}) == 3
    finally:
        await engine.close()
