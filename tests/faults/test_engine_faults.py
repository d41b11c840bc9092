"""What goes wrong with a real child: killed in mid-stream, a parent that is killed, bad files, a stop in a long prompt."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from mofang.engine import children
from mofang.engine.llama import child as child_module
from mofang.engine.llama import process as process_module
from mofang.engine.llama import provider, wheel
from mofang.engine.llama.engine import LlamaChat
from mofang.engine.pool import Pool
from mofang.engine.profile import Choices
from mofang.errors import EngineFailed, Invalid, MissingSystem, MofangError
from mofang.messages import Message, Sampling
from mofang.models.store import ModelStore
from mofang.platform import is_alive
from mofang.settings import load as load_settings

LONG = Sampling(max_tokens=400, temperature=0, options={"ignore_eos": True})
HELLO = [Message("user", "你好")]


@pytest.fixture
async def pool(smollm2: Path, tmp_path: Path) -> AsyncIterator[Pool]:
    """A pool whose models are those of one folder: "m" is SmolLM2."""
    folder = tmp_path / "models"
    folder.mkdir()
    (folder / "m.gguf").symlink_to(smollm2)
    settings = load_settings(model_path=str(folder), n_ctx=2048, n_slots=2, queue_limit=2)
    pool = Pool(settings, ModelStore(settings))
    yield pool
    children = psutil.Process().children(recursive=True)
    await pool.close()
    assert not [child for child in children if is_alive(child.pid)], "a child outlived its pool"


async def _some(engine: Any, sampling: Sampling = Sampling(max_tokens=3)) -> str:
    return "".join([delta.content async for delta in engine.chat(HELLO, sampling)])


async def _free(engine: Any) -> bool:
    return not any(slot["is_processing"] for slot in await engine._process.request("GET", "/slots"))


async def _seconds_until_free(engine: Any, limit_s: float) -> float:
    began = time.monotonic()
    while not await _free(engine):
        assert time.monotonic() - began < limit_s, "the slot is still busy"
        await asyncio.sleep(0.01)
    return time.monotonic() - began


@pytest.mark.model
async def test_a_child_killed_in_mid_stream_is_told_and_the_next_request_answered(pool: Pool) -> None:
    said = []
    with pytest.raises(EngineFailed) as caught:
        async with pool.use("m", "chat") as engine:
            pid = engine.info().pid
            assert pid
            async for delta in engine.chat(HELLO, LONG):  # type: ignore[attr-defined]
                said.append(delta.content)
                if len("".join(said)) > 5:
                    os.kill(pid, signal.SIGKILL)
    assert caught.value.code == "engine_died" and caught.value.values["exit_code"] == -9
    assert "model loaded" in str(caught.value), "the last lines of the log are in the message"
    async with pool.use("m", "chat") as engine:
        assert engine.info().pid != pid and await _some(engine)


@pytest.mark.model
async def test_a_child_killed_while_nobody_asks_is_replaced_unseen(pool: Pool) -> None:
    info = await pool.load("m")
    os.kill(info.pid, signal.SIGKILL)  # type: ignore[arg-type]
    for _ in range(200):
        if not pool.loaded():
            break
        await asyncio.sleep(0.01)
    assert pool.loaded() == []
    async with pool.use("m", "chat") as engine:
        assert await _some(engine)


@pytest.mark.model
async def test_two_loads_at_once_are_one_child(pool: Pool) -> None:
    infos = await asyncio.gather(*(pool.load("m") for _ in range(3)))
    assert len({info.pid for info in infos}) == 1
    children = [child for child in psutil.Process().children() if "mofang.engine.llama.child" in child.cmdline()]
    assert len(children) == 1
    line, environment = " ".join(children[0].cmdline()), str(children[0].environ())
    key = pool._places["m"].engine._launch.key  # type: ignore[union-attr]
    assert key not in line and key not in environment and str(load_settings().home) not in line


@pytest.mark.model
async def test_the_child_answers_nobody_else(pool: Pool) -> None:
    import httpx

    await pool.load("m")
    engine: Any = pool._places["m"].engine
    address = str(engine._process._http.base_url)
    assert address.startswith("http://127.0.0.1:")
    async with httpx.AsyncClient(base_url=address, trust_env=False) as stranger:
        answer = await stranger.post("/v1/chat/completions", json={"messages": []})
        assert answer.status_code == 401
        page = await stranger.get("/health", headers={"Origin": "http://evil.example"})
        assert page.headers.get("Access-Control-Allow-Origin") not in ("*", "http://evil.example")
        assert (await stranger.get("/")).status_code in (401, 404), "no page of llama.cpp's own"


@pytest.mark.model
async def test_leaving_in_a_long_prompt_frees_the_slot_after_one_batch(pool: Pool) -> None:
    async with pool.use("m", "chat") as engine:
        whole = [Message("user", "天地玄黄宇宙洪荒" * 60)]
        async with aclosing(engine.chat(whole, LONG)) as deltas:  # type: ignore[attr-defined]
            reading = (await anext(deltas)).progress
            assert reading and reading.done < reading.total and reading.total > 600
        began = time.monotonic()
        async with aclosing(engine.chat(HELLO, LONG)) as deltas:  # type: ignore[attr-defined]
            async for delta in deltas:
                if delta.content:
                    break
        await _seconds_until_free(engine, 60)
        first = time.monotonic() - began

        async with aclosing(engine.chat([Message("user", "日月盈昃" * 90)], LONG)) as deltas:  # type: ignore[attr-defined]
            began = time.monotonic()
            async for delta in deltas:
                if delta.content:
                    break
            prompt_s = time.monotonic() - began
        assert first < prompt_s, f"{first:.2f} s to be free and answer again, a whole prompt takes {prompt_s:.2f} s"


@pytest.mark.model
async def test_closing_ends_an_answer_with_an_error(pool: Pool) -> None:
    with pytest.raises(EngineFailed) as caught:
        async with pool.use("m", "chat") as engine:
            async for delta in engine.chat(HELLO, LONG):  # type: ignore[attr-defined]
                if delta.content:
                    await pool.close()
    assert caught.value.code == "closed"


@pytest.mark.model
@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"grammar": "root ::= ["}, "你好"),
        ({"n": 9}, "你好"),
        ({"response_format": {"type": "?"}}, "你好"),
        ({}, "\ud83d"),
    ],
    ids=["grammar", "n", "format", "half an emoji"],
)
async def test_what_llama_cpp_refuses_is_the_callers_fault(pool: Pool, options: dict[str, Any], text: str) -> None:
    async with pool.use("m", "chat") as engine:
        with pytest.raises(Invalid) as caught:
            await anext(engine.chat([Message("user", text)], Sampling(max_tokens=2, options=options)))  # type: ignore
        assert caught.value.code == "refused" and caught.value.values["why"]
        assert await _some(engine), "and the engine goes on"


@pytest.mark.model
async def test_two_answers_at_once_have_one_end_each(pool: Pool) -> None:
    async with pool.use("m", "chat") as engine:
        sampling = Sampling(max_tokens=3, options={"n": 2, "ignore_eos": True})
        pieces = [delta async for delta in engine.chat(HELLO, sampling)]  # type: ignore[attr-defined]
    ends = [piece for piece in pieces if piece.finish_reason]
    assert sorted(end.index for end in ends) == [0, 1] and pieces[-1] is ends[-1]
    assert ends[0].usage is None and ends[1].usage.completion_tokens == 6


@pytest.mark.parametrize("kind", ["random", "magic", "truncated"])
async def test_a_bad_file_is_one_clear_error(kind: str, smollm2: Path, tmp_path: Path) -> None:
    """Through the whole way, and past our own header check, too."""
    folder = tmp_path / "坏"
    folder.mkdir()
    file = folder / "坏.gguf"
    with smollm2.open("rb") as source:
        whole = {"random": os.urandom(100_000), "magic": b"GGUF" + os.urandom(50_000)}
        file.write_bytes(whole.get(kind) or source.read(8_000_000))
    settings = load_settings(model_path=str(folder), n_ctx=256)
    pool = Pool(settings, ModelStore(settings))
    with pytest.raises(MofangError) as caught:
        await pool.load("坏")
    assert caught.value.status in (404, 422) and caught.value.hint()
    launch = provider.Launch(str(file), "坏", "k", 256, 1, 256, 1)
    log = tmp_path / "logs" / "engine-坏.log"
    with pytest.raises(EngineFailed) as failed:
        await process_module.LlamaProcess.start(
            "坏", launch, wheel.Wheel(), log=log, timeout_s=60, report=lambda _: None
        )
    assert failed.value.code == "load_failed" and "failed to load" in failed.value.values["why"]
    assert not psutil.Process().children()
    await pool.close()


@pytest.mark.model
async def test_a_load_that_takes_too_long_or_is_cancelled_leaves_no_child(smollm2: Path, tmp_path: Path) -> None:
    launch = provider.Launch(str(smollm2), "m", "k", 256, 1, 256, 1)

    async def start(timeout_s: float) -> Any:
        log = tmp_path / "logs" / "m.log"
        return await process_module.LlamaProcess.start(
            "m", launch, wheel.Wheel(), log=log, timeout_s=timeout_s, report=lambda _: None
        )

    with pytest.raises(EngineFailed) as caught:
        await start(0.05)
    assert caught.value.code == "load_timeout"
    task = asyncio.create_task(start(60))
    await asyncio.sleep(0.1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not [child for child in psutil.Process().children() if is_alive(child.pid)]


PARENT = """
    import asyncio, sys
    from mofang.engine.llama.process import LlamaProcess
    from mofang.engine.llama.provider import Launch
    from mofang.engine.llama.wheel import Wheel
    from pathlib import Path

    async def main():
        launch = Launch(sys.argv[1], "m", "k", 256, 1, 256, 1)
        process = await LlamaProcess.start(
            "m", launch, Wheel(), log=Path(sys.argv[2]), timeout_s=100, report=lambda _: None
        )
        print(process.pid, flush=True)
        await asyncio.sleep(100)

    asyncio.run(main())
"""


def _parent(model: Path, log: Path) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", textwrap.dedent(PARENT), str(model), str(log)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def _gone_within(pids: list[int], seconds: float) -> bool:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if not any(is_alive(pid) for pid in pids):
            return True
        time.sleep(0.02)
    return False


@pytest.mark.model
def test_the_child_ends_with_a_parent_that_is_killed(smollm2: Path, tmp_path: Path) -> None:
    with _parent(smollm2, tmp_path / "m.log") as parent:
        assert parent.stdout
        pid = int(parent.stdout.readline())
        assert is_alive(pid)
        parent.kill()
        assert _gone_within([pid], 2.0)


@pytest.mark.model
def test_the_child_ends_with_its_parent_while_it_loads(qwen: Path, tmp_path: Path) -> None:
    """llama.cpp holds the interpreter's lock for the whole load; the kernel ends the child all the same."""
    with _parent(qwen, tmp_path / "m.log") as parent:
        log, children = tmp_path / "m.log", []
        for _ in range(2000):
            children = psutil.Process(parent.pid).children()
            if log.exists() and "loading model" in log.read_text(errors="replace"):
                break
            time.sleep(0.01)
        (child,) = children
        assert "model loaded" not in log.read_text(errors="replace")
        parent.kill()
        assert _gone_within([child.pid], 2.0)
        assert "model loaded" not in log.read_text(errors="replace"), "it ended amid the load, not after it"


@pytest.mark.parametrize(
    ("name", "value", "code", "cure"),
    [
        ("has_avx2", lambda: False, "no_avx2", ""),
        ("has_library", lambda soname: False, "no_libgomp", "apt-get install libgomp1"),
        ("importlib", None, "no_wheel", "pip install xllamacpp"),
    ],
)
def test_what_the_machine_lacks_is_said_with_its_cure(
    name: str, value: Any, code: str, cure: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "importlib":
        monkeypatch.setattr("importlib.util.find_spec", lambda library: None)
    else:
        monkeypatch.setattr(wheel, name, value)
    with pytest.raises(MissingSystem) as caught:
        wheel.Wheel().check()
    assert caught.value.code == code and cure in caught.value.hint()


def test_the_log_stays_small_under_a_writer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(children, "LOG_BYTES", 100)
    log = tmp_path / "engine-m.log"
    with log.open("ab", buffering=0) as writer:
        writer.write(b"old\n" * 50)
        children.trim(log)
        writer.write(b"new\n")
        children.trim(log)
    assert log.read_text() == "new\n"
    assert (tmp_path / "engine-m.log.1").read_text() == "old\n" * 50


def test_the_wheel_knows_every_parameter() -> None:
    """xllamacpp's attributes move with llama.cpp: here, and not at a user's, it is found out."""
    import xllamacpp

    plain = provider.Launch("m", "m", "k", 256, 1, 256, 1)
    tuned = Choices("off", 2, 3, 256, "q8_0", "ngram-simple:8:24")
    for launch in (
        replace(plain, choices=tuned, slot_folder="/tmp/slots"),
        replace(plain, embedding=True),
        replace(plain, reranking=True),
    ):
        told = {**wheel.parameters(launch), **wheel.parameters(launch, cpu_only=True)}
        params = child_module.configured(xllamacpp, json.loads(json.dumps(told)))
    params = child_module.configured(xllamacpp, wheel.parameters(replace(plain, choices=tuned)))
    assert params.flash_attn_type == xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    assert params.cache_type_k == params.cache_type_v == xllamacpp.ggml_type.GGML_TYPE_Q8_0
    ngram = xllamacpp.common_speculative_type.COMMON_SPECULATIVE_TYPE_NGRAM_SIMPLE
    assert params.speculative.types == [ngram] and params.speculative.ngram_simple.size_n == 8
    assert params.hostnames == ["127.0.0.1"] and params.api_keys == ["k"] and params.model_alias == {"m"}
    assert int(xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_RANK) == provider.POOLING_RANK
    assert LlamaChat.kind == "chat"
