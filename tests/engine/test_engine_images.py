"""Pictures: a model with a projector beside it reads them, through real llama.cpp servers."""

import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

import tiny_eye
import tiny_llama
from mofang.engine.llama.engine import LlamaChat
from mofang.engine.pool import Pool
from mofang.messages import Message, Sampling
from mofang.models import projectors
from mofang.models.store import ModelStore
from mofang.settings import Settings

GREEDY = Sampling(temperature=0.0, max_tokens=12, options={"logprobs": True})
RED, BLUE = tiny_eye.picture(255, 0, 0), tiny_eye.picture(0, 0, 255)


def _about(picture: str | None) -> list[Message]:
    parts = [{"type": "text", "text": "What is this? "}]
    if picture:
        parts.append({"type": "image_url", "image_url": {"url": picture}})
    return [Message("user", parts)]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("eye")
    base = tiny_llama.make(folder / "hf")
    tiny_llama.write_gguf(base, folder / "tiny.gguf")
    tiny_eye.write(folder / "mmproj-tiny-f32.gguf")
    return folder


@pytest.fixture
async def pool(made: Path, home: Path, tmp_path: Path) -> AsyncIterator[Pool]:
    folder = tmp_path / "seeing"
    folder.mkdir()
    for name in ("tiny.gguf", "mmproj-tiny-f32.gguf"):
        shutil.copy(made / name, folder / name)
    settings = Settings(home=home, n_ctx=512, n_slots=2)
    store = ModelStore(settings)
    store.add(folder / "tiny.gguf", "tiny")
    pool = Pool(settings, store)
    yield pool
    await pool.close()


async def _said(engine: LlamaChat, messages: list[Message]) -> tuple[list[float], int, int]:
    """(log-probabilities of the answer's tokens, tokens of the prompt, of them cached)."""
    found, usage = [], None
    async for delta in engine.chat(messages, GREEDY):
        found += [entry["logprob"] for entry in (delta.logprobs or {}).get("content") or ()]
        usage = delta.usage or usage
    assert usage
    return found, usage.prompt_tokens, usage.cached_tokens


async def test_a_picture_is_read(pool: Pool) -> None:
    async with pool.use("tiny", "chat") as engine:
        assert isinstance(engine, LlamaChat) and engine.info().images
        nothing, red, blue = [await _said(engine, _about(picture)) for picture in (None, RED, BLUE)]
        assert red[1] >= nothing[1] + tiny_eye.N_TOKENS, "the picture's own tokens are counted"
        assert nothing[0][0] != red[0][0] != blue[0][0], "and what it shows changes the answer"
        again = await _said(engine, _about(RED))
        assert again[0] == pytest.approx(red[0], abs=1e-3)
        assert await engine.count_tokens(_about(RED)) == red[1]
        assert await engine.count_tokens(_about(None)) == nothing[1]


async def test_text_alone_has_all_that_it_had(pool: Pool) -> None:
    """Cache, next token, and the state of a long prompt after it left memory, a picture within it or not."""
    async with pool.use("tiny", "chat") as engine:
        assert isinstance(engine, LlamaChat)
        text = [Message("user", "The same words, said twice, so that the second time they lie in the cache.")]
        first, second = await _said(engine, text), await _said(engine, text)
        assert second[0] == pytest.approx(first[0], abs=0.01) and second[2] > 0
        assert (await engine.next_token("abc", n_top=5)).top
    for long in ([Message("user", "A long text. " * 25)], [Message("user", "A long text. " * 22), *_about(RED)]):
        async with pool.use("tiny", "chat") as engine:
            first = await _said(engine, long)
        await pool.unload("tiny")
        async with pool.use("tiny", "chat") as engine:
            again = await _said(engine, long)
        assert again[2] >= 0.95 * again[1] > 256 and again[0] == pytest.approx(first[0], abs=0.01)


def test_the_projector_that_fits(made: Path, home: Path, tmp_path: Path) -> None:
    """Only one of the right width, and of those the one named like the model; damaged and foreign files are not taken."""
    folder = tmp_path / "many"
    folder.mkdir()
    shutil.copy(made / "tiny.gguf", folder / "tiny-1b-q4.gguf")
    store = ModelStore(Settings(home=home, model_path=str(folder)))

    def chosen() -> str | None:
        (ref,) = store.plain()
        found = projectors.of(ref, store.facts(ref))
        return found.name if found else None

    assert chosen() is None
    tiny_eye.write(folder / "mmproj-wide-f32.gguf", width=128)
    (folder / "mmproj-broken.gguf").write_bytes(b"GGUF but no more")
    shutil.copy(made / "tiny.gguf", folder / "mmproj-no-eye.gguf")
    assert chosen() is None
    tiny_eye.write(folder / "mmproj-other.gguf")
    assert chosen() == "mmproj-other.gguf"
    tiny_eye.write(folder / "mmproj-tiny-1b.gguf")
    assert chosen() == "mmproj-tiny-1b.gguf"


def test_memory_counts_the_projector(made: Path, home: Path, tmp_path: Path) -> None:
    settings = Settings(home=home)
    store = ModelStore(settings)
    seeing, blind = tmp_path / "seeing", tmp_path / "blind"
    for folder in (seeing, blind):
        folder.mkdir()
        shutil.copy(made / "tiny.gguf", folder / "tiny.gguf")
        store.add(folder / "tiny.gguf", folder.name)
    eye = tiny_eye.write(seeing / "mmproj.gguf")
    needs = [store.memory(store.get(name), 256, 1).total for name in ("seeing", "blind")]
    assert needs[0] - needs[1] == eye.stat().st_size
