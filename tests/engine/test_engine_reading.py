"""A text read whole by a file in a child process: the same figures as token by token through the engine."""

from pathlib import Path

import pytest

import tiny_llama
from mofang import api
from mofang.engine import ENGINES
from mofang.engine.llama import reading
from mofang.errors import Unreadable
from mofang.measure import text
from mofang.measure.engine import OverEngine
from mofang.models.store import ModelStore
from mofang.settings import Settings

TEXT = "模坊 is a workshop.\n\n你好🙂\n"


@pytest.fixture
def store(home: Path, tmp_path: Path) -> ModelStore:
    store = ModelStore(Settings(home=home, n_ctx=512, n_slots=1))
    store.add(tiny_llama.write_gguf(tiny_llama.make(tmp_path / "tiny"), tmp_path / "tiny.gguf"), "tiny")
    return store


async def test_what_a_file_expects_is_what_its_engine_says(store: ModelStore) -> None:
    ref, told = store.get("tiny"), []
    assert reading.can_read(ref)
    read = await reading.read(
        ref, store.settings, TEXT, n_tokens=30, tell=lambda done, total: told.append((done, total))
    )
    engine = await ENGINES.get("llama")(ref, store.settings, progress=lambda progress: None)
    try:
        slowly = await text.read(OverEngine(engine), TEXT, n_tokens=30)
    finally:
        await engine.close()
    assert len(read.forced) == len(slowly.nexts) == 28 and told[-1] == (29, 29)  # the 30th would end inside a character
    assert read.n_bytes == len(TEXT.encode()[:29]) - 1  # one of a character's bytes is predicted from nothing
    assert read.forced == pytest.approx([step.forced for step in slowly.nexts], abs=0.05)
    assert text.bits_per_byte(read.forced, read.n_bytes) == pytest.approx(slowly.bits_per_byte, rel=0.05)


async def test_windows_are_read_from_their_beginnings(store: ModelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model was trained for 512 tokens: two windows, whose first tokens nobody expects."""
    long = "the quick brown fox " * 50
    read = await reading.read(store.get("tiny"), store.settings, long, n_tokens=900, tell=lambda done, total: None)
    assert read.n_bytes >= len(read.forced) and len(read.forced) == 900 - 2


async def test_a_damaged_file_is_said_in_this_process(store: ModelStore) -> None:
    ref = store.get("tiny")
    data = ref.path.read_bytes()
    ref.path.write_bytes(data[: len(data) // 2])
    with pytest.raises(Unreadable) as raised:
        await reading.read(ref, store.settings, TEXT, n_tokens=30, tell=lambda done, total: None)
    assert raised.value.code == "library_refused" and "tiny.gguf" in raised.value.message()


def test_eval_reads_a_local_file_without_its_engine(
    store: ModelStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "own.txt"
    path.write_text(TEXT * 20, encoding="utf-8")
    monkeypatch.setattr(api.OverGateway, "next_token", None)
    told: list[tuple[str, int, int]] = []
    (score,) = api.evaluate("tiny", [str(path)], n_tokens=200, tell=lambda *one: told.append(one))
    assert (score.set, score.metric) == ("own", "bits_per_byte") and 190 < score.n < 200
    assert 3 < score.value < 30 and told[-1] == ("own", score.n + 1, score.n + 1)
