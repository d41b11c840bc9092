"""Long prompts that outlive their model's stay in memory: the files, and with real models the whole way."""

import asyncio
import os
import stat
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mofang.engine.llama import slot_files, slots
from mofang.engine.llama.provider import Launch
from mofang.engine.llama.slot_files import Folder
from mofang.engine.pool import Pool
from mofang.messages import Message, Sampling, Usage
from mofang.models.base import ModelRef
from mofang.models.store import ModelStore
from mofang.settings import load as load_settings

# ---- files ----


def _put(folder: Folder, content: bytes) -> slot_files.Saved:
    folder.place.mkdir(parents=True, exist_ok=True)
    (folder.place / "part-0.bin").write_bytes(content)
    return folder.adopt("part-0.bin", len(content))


def test_files_are_found_again_newest_first_and_others_go(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "a")
    assert folder.read() == []
    old, new, other = _put(folder, b"old"), _put(folder, b"newer"), _put(folder, b"left out")
    folder.write([old, replace(new, saved_at=old.saved_at + 9)])
    assert [one.file for one in Folder(folder.place).read()] == [new.file, old.file]
    assert all(folder.check(one) for one in folder.read())
    assert not (folder.place / other.file).exists()


@pytest.mark.parametrize("damage", [b"olD", b"ol", b"", None])
def test_a_damaged_file_is_deleted_and_told(tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: Any) -> None:
    folder = Folder(tmp_path / "a")
    one = _put(folder, b"old")
    folder.write([one])
    path = folder.place / one.file
    if damage is None:
        path.unlink()
    else:
        path.write_bytes(damage)
    assert not folder.check(one) and not path.exists()
    assert (one.file in caplog.text) == (damage is not None)


@pytest.mark.parametrize("text", ["", "[{}]", "{", '[{"file": 1}]', "[7]", "\x00"])
def test_a_damaged_index_is_no_index(tmp_path: Path, caplog: pytest.LogCaptureFixture, text: str) -> None:
    folder = Folder(tmp_path / "a")
    one = _put(folder, b"old")
    (folder.place / slot_files.INDEX).write_text(text)
    assert folder.read() == [] and not (folder.place / one.file).exists()
    assert "damaged" in caplog.text
    assert folder.read() == []


def test_what_was_used_longest_ago_goes_first(tmp_path: Path) -> None:
    folders = [Folder(tmp_path / name) for name in "ab"]
    files = [_put(folders[number % 2], bytes([number]) * 100) for number in range(4)]
    for number, one in enumerate(files):
        os.utime(folders[number % 2].place / one.file, (1000 + number, 1000 + number))
    assert folders[0].check(files[0]), "used just now"
    slot_files.prune(tmp_path, 250)
    left = [number for number, one in enumerate(files) if (folders[number % 2].place / one.file).exists()]
    assert left == [0, 3]
    slot_files.prune(tmp_path, 50)
    assert not list(tmp_path.glob("*/*.bin"))


def test_another_file_build_or_context_is_another_folder(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"one")
    ref, launch = ModelRef("m", path, "gguf", "chat", 3), Launch(str(path), "m", "k", 2048, 2, 256, 2)
    here = slots.prepare(tmp_path, ref, launch, "p 1")
    assert stat.S_IMODE(here.stat().st_mode) == stat.S_IMODE(here.parent.stat().st_mode) == 0o700
    assert slots.folder(tmp_path, ref, replace(launch, key="other", n_threads=9, n_slots=4), "p 1") == here
    others = [
        slots.folder(tmp_path, ref, replace(launch, n_ctx=4096), "p 1"),
        slots.folder(tmp_path, ref, replace(launch, adapters=("a.gguf",)), "p 1"),
        slots.folder(tmp_path, replace(ref, sha256="1" * 64), launch, "p 1"),
        slots.folder(tmp_path, ref, launch, "p 2"),
        slots.folder(tmp_path, replace(ref, sha256="2" * 64), launch, "p 1"),
    ]
    path.write_bytes(b"two!")
    others.append(slots.folder(tmp_path, ref, launch, "p 1"))
    others.append(slots.folder(tmp_path, replace(ref, sha256="1" * 64), launch, "p 1"))
    assert len({here, *others}) == 8, "also where the manifest knows nothing of the change"


def test_only_the_last_long_prompts_are_remembered() -> None:
    memory = slots.Memory(2)

    def ask(*texts: str, n: int = 1000, **more: Any) -> None:
        memory.add("/chat", {"messages": list(texts), **more}, n)

    def remembered() -> list[Any]:
        return [asked.body["messages"] for asked in memory.newest]

    ask("甲" * 300)
    ask("短", n=20)
    ask("不" * 300, cache_prompt=False)
    ask("换" * 300, lora=[{"id": 0, "scale": 1.0}])
    assert remembered() == [["甲" * 300]]
    ask("甲" * 300, "答", "再问")
    assert remembered() == [["甲" * 300, "答", "再问"]], "the next turn takes the place of the last"
    ask("乙" * 300)
    ask("丙" * 300)
    assert remembered() == [["丙" * 300], ["乙" * 300]]


# ---- with real models ----

Make = Callable[..., Pool]


@pytest.fixture
async def make(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Make]:
    folder = tmp_path / "models"
    folder.mkdir()
    (folder / "m.gguf").symlink_to(request.getfixturevalue(request.param))
    pools: list[Pool] = []

    def made(**settings: Any) -> Pool:
        chosen = load_settings(**{"model_path": str(folder), "n_ctx": 2048, "n_slots": 2, **settings})
        pools.append(Pool(chosen, ModelStore(chosen)))
        return pools[-1]

    yield made
    for pool in pools:
        await pool.close()


DOCUMENT = "".join(f"第{number}条：本办法自公布之日起施行，由有关部门负责解释。" for number in range(18))
"""About 300 tokens for Qwen, 860 for SmolLM2, which knows little Chinese."""
SHORT = DOCUMENT[:260]
"""Long enough to be saved with SmolLM2."""


async def _ask(pool: Pool, text: str, *, keep_alive: float | None = None) -> tuple[str, Usage]:
    sampling = Sampling(max_tokens=6, temperature=0)
    messages = [Message("system", "你是助手。"), Message("user", text)]
    async with pool.use("m", "chat", keep_alive=keep_alive) as engine:
        pieces = [delta async for delta in engine.chat(messages, sampling)]  # type: ignore[attr-defined]
    usage = pieces[-1].usage
    assert usage
    return "".join(piece.content for piece in pieces), usage


def _files(home: Path) -> list[Path]:
    return list(slots.root(home).glob("*/*.bin"))


@pytest.mark.model
@pytest.mark.parametrize(
    ("make", "document"),
    [("smollm2", SHORT), pytest.param("qwen", DOCUMENT, marks=pytest.mark.soak)],
    indirect=["make"],
)
async def test_a_long_document_survives_an_unload(make: Make, document: str, home: Path) -> None:
    pool = make()
    _, cold = await _ask(pool, document + "问：第三条说什么？")
    assert cold.cached_tokens < 50 and cold.prompt_tokens > 256
    _, same = await _ask(pool, document + "问：第五条说什么？")
    assert same.cached_tokens > 0.95 * same.prompt_tokens, "another question on the same document"
    for text in ("你好", "再见", "谢谢"):  # which push the document out of its slot
        _, other = await _ask(pool, text)
        assert 0 < other.cached_tokens < other.prompt_tokens, "the system prompt is shared"
    await _ask(pool, "你好", keep_alive=0)
    for _ in range(400):
        if _files(home):
            break
        await asyncio.sleep(0.05)
    assert len(_files(home)) == 1, "one long prompt, one file"
    _, warm = await _ask(pool, document + "问：第五条说什么？")
    assert warm.cached_tokens >= 0.95 * warm.prompt_tokens
    await pool.close()

    successor = make()
    _, next_day = await _ask(successor, document + "问：第三条说什么？")
    print(
        f"\n{cold.prompt_tokens} tokens: cold {cold.cached_tokens}, warm {warm.cached_tokens}, {next_day.cached_tokens}"
    )
    assert next_day.cached_tokens >= 0.95 * next_day.prompt_tokens, "and the end of the gateway"


@pytest.mark.model
@pytest.mark.parametrize("make", ["smollm2"], indirect=True)
async def test_damaged_and_foreign_states_are_not_used(
    make: Make, home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pool = make()
    said, _ = await _ask(pool, SHORT)
    await pool.unload("m")
    (file,) = _files(home)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0xFF
    file.write_bytes(content)
    again, usage = await _ask(pool, SHORT)
    assert (again, usage.cached_tokens) == (said, 0) and "checksum" in caplog.text
    await pool.unload("m")
    assert len(_files(home)) == 1, "and it is saved again"
    _, usage = await _ask(make(n_ctx=1024), SHORT)
    assert usage.cached_tokens == 0, "another context, another folder"


@pytest.mark.model
@pytest.mark.parametrize("make", ["smollm2"], indirect=True)
async def test_what_llama_cpp_cannot_read_is_deleted_and_the_model_loads(
    make: Make, home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A file whose checksum is right and whose content is not, as another build might have written it."""
    pool = make()
    await pool.load("m")
    (place,) = slots.root(home).iterdir()
    await pool.unload("m")
    folder = Folder(place)
    folder.write([_put(folder, b"not a state" * 1000)])
    _, usage = await _ask(pool, "你好")
    assert usage.prompt_tokens and not _files(home) and "is deleted" in caplog.text


@pytest.mark.model
@pytest.mark.parametrize("make", ["smollm2"], indirect=True)
async def test_nothing_is_written_where_that_is_off(make: Make, home: Path) -> None:
    pool = make(save_slots=False)
    await _ask(pool, SHORT)
    await pool.unload("m")
    assert not slots.root(home).exists()
