"""Another server as an engine: what it says passes through, and each way in which it fails has a name."""

import asyncio
import json
from collections.abc import Callable, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mofang.engine import ENGINES, engine_name
from mofang.engine.base import COUNTED
from mofang.errors import Busy, EngineFailed, Invalid, MissingSystem, MofangError, NotFound, Unreachable
from mofang.messages import Delta, Message, Sampling, Usage
from mofang.models.base import ModelRef
from mofang.models.store import ModelStore
from mofang.settings import Settings

HELLO = [Message("user", "你好")]
END = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
COUNTS = {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 2}}


def _piece(text: str) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]}


class Server:
    """Answers by a script: (status, body) or a list of events, one a request; `asked` holds what came."""

    def __init__(self, *script: Any) -> None:
        self.script, self.asked = list(script), []
        self.left = asyncio.Event()
        """Somebody closed his connection amid an endless answer."""

    async def __aenter__(self) -> "Server":
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/v1"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        headers = dict(line.lower().split(": ", 1) for line in head.split("\r\n")[1:] if ": " in line)
        body = json.loads(await reader.readexactly(int(headers.get("content-length", 0))))
        self.asked.append((head.split(" ")[1], headers, body))
        step = self.script.pop(0) if self.script else (404, {})
        if step is not None:  # None: hang up
            await self._answer(writer, step)
        writer.close()

    async def _answer(self, writer: asyncio.StreamWriter, step: Any) -> None:
        if isinstance(step, tuple):
            status, body, *more = step
            lines = "".join(f"{name}: {value}\r\n" for name, value in (more[0] if more else {}).items())
            text = body if isinstance(body, str) else json.dumps(body)
            writer.write(f"HTTP/1.1 {status} X\r\n{lines}Connection: close\r\n\r\n{text}".encode())
            return
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n")
        try:
            for event in step:
                text = event if isinstance(event, str) else json.dumps(event)
                writer.write(f"data: {text}\n\n".encode())
                await writer.drain()
                await asyncio.sleep(0)
        except ConnectionError:
            self.left.set()


def _ref(url: str, kind: Any = "chat", **remote: Any) -> ModelRef:
    manifest = {"engine": "remote", "remote": {"base_url": url, "model": "there", **remote}}
    return ModelRef("here", Path(), "gguf", kind, 0, manifest=manifest)


async def _engine(ref: ModelRef, home: Path) -> Any:
    return await ENGINES.get(engine_name(ref))(ref, Settings(home=home), progress=lambda progress: None)


async def _chat(server: Server, home: Path, sampling: Sampling | None = None, **remote: Any) -> list[Delta]:
    engine = await _engine(_ref(server.url, **remote), home)
    try:
        return [delta async for delta in engine.chat(HELLO, sampling or Sampling())]
    finally:
        await engine.close()


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mofang.engine.remote.BACK_OFF_S", 0.001)


async def test_choices_and_answers_pass_through(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THEIR_KEY", "s3cret")
    call = {"choices": [{"index": 0, "delta": {"tool_calls": [{"index": 0, "id": "1"}]}, "finish_reason": None}]}
    thought = {"choices": [{"index": 0, "delta": {"reasoning_content": "想"}, "finish_reason": None}]}
    async with Server([thought, _piece("你"), _piece("好"), call, END, COUNTS, "[DONE]"]) as server:
        sampling = Sampling(max_tokens=9, temperature=0.5, stop=("x",), options={"tools": [{"type": "function"}]})
        pieces = await _chat(server, home, sampling, api_key_env="THEIR_KEY")
    path, headers, body = server.asked[0]
    assert (path, headers["authorization"]) == ("/v1/chat/completions", "bearer s3cret")
    assert body == {
        "model": "there",
        "messages": [{"role": "user", "content": "你好"}],
        "tools": [{"type": "function"}],
        "temperature": 0.5,
        "max_tokens": 9,
        "stop": ["x"],
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    assert [piece.content for piece in pieces] == ["", "你", "好", "", ""] and pieces[0].reasoning == "想"
    assert pieces[3].tool_calls == [{"index": 0, "id": "1"}]
    assert (pieces[-1].finish_reason, pieces[-1].usage) == ("stop", Usage(5, 2)) and pieces[-1].timings


async def test_usage_that_comes_with_every_event_counts_once(home: Path) -> None:
    counted = [{**_piece("你"), "usage": {"prompt_tokens": 5, "completion_tokens": n}} for n in (1, 2)]
    async with Server([*counted, END, COUNTS, "[DONE]"]) as server:
        assert (await _chat(server, home))[-1].usage == Usage(5, 2)


@pytest.mark.parametrize(
    ("answer", "error", "code", "told"),
    [
        ((401, {"error": {"message": "bad key"}}), EngineFailed, "remote_denied", "THEIR_KEY"),
        ((404, {"error": {"message": "no such model"}}), NotFound, "remote_not_found", "there"),
        ((429, {}, {"Retry-After": "7"}), Busy, "remote_busy", "7"),
        ((400, {"error": {"message": "no field x", "param": "x"}}), Invalid, "refused", "no field x"),
        ((500, "oh"), EngineFailed, "remote_failed", "oh"),
        ([_piece("你"), {"error": {"message": "lost"}}], EngineFailed, "remote_failed", "lost"),
        ([_piece("你"), "{{"], EngineFailed, "remote_nonsense", "{{"),
        ([_piece("你")], EngineFailed, "remote_cut", "here"),
    ],
)
async def test_each_fault_has_its_error(
    answer: Any, error: type[MofangError], code: str, told: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("THEIR_KEY", "s3cret")
    async with Server(answer) as server:
        with pytest.raises(error) as raised:
            await _chat(server, home, api_key_env="THEIR_KEY")
    assert raised.value.code == code and told in str(raised.value) and "s3cret" not in str(raised.value)
    assert len(server.asked) == 1, "what was answered is not asked again"
    if isinstance(raised.value, Busy):
        assert raised.value.retry_after_s == 7.0


@pytest.mark.parametrize(
    "fault",
    [
        {"code": "context_length_exceeded", "message": "maximum is 4096 tokens, however you asked for 5000 tokens"},
        {"type": "exceed_context_size_error", "message": "too long", "n_prompt_tokens": 5000, "n_ctx": 4096},
    ],
)
async def test_too_long_has_both_numbers(fault: dict[str, Any], home: Path) -> None:
    async with Server((400, {"error": fault})) as server:
        with pytest.raises(Invalid) as raised:
            await _chat(server, home)
    assert raised.value.code == "context_length_exceeded"
    assert raised.value.values == {"n_prompt": 5000, "n_ctx": 4096}


async def test_tried_again_only_before_the_first_byte(home: Path) -> None:
    async with Server((503, "wait"), None, [_piece("你"), END, COUNTS, "[DONE]"]) as server:
        assert (await _chat(server, home))[0].content == "你"
        assert len(server.asked) == 3
    async with Server((503, "a"), (503, "b"), (503, "c")) as server:
        with pytest.raises(Unreachable) as raised:
            await _chat(server, home)
        assert "c" in raised.value.message("zh")
    with pytest.raises(Unreachable) as raised:  # nobody listens there any more
        await _chat(server, home)
    assert raised.value.code == "remote_silent" and server.url in raised.value.message("en")


async def test_closing_our_stream_closes_theirs(home: Path) -> None:
    def endless() -> Iterator[Any]:
        while True:
            yield _piece("啊" * 5000)

    async with Server(endless()) as server:
        engine = await _engine(_ref(server.url), home)
        async with aclosing(engine.chat(HELLO, Sampling())) as deltas:
            assert (await anext(deltas)).content
        await asyncio.wait_for(server.left.wait(), 5)
        await engine.close()
        assert not engine.alive()


async def test_a_missing_key_is_said_before_anything_is_sent(home: Path) -> None:
    with pytest.raises(MissingSystem) as raised:
        await _engine(_ref("http://127.0.0.1:9/v1", api_key_env="NOT_SET"), home)
    assert "NOT_SET" in raised.value.message("zh")


async def test_embeddings_keep_their_order_and_their_count(home: Path) -> None:
    rows = [{"index": 1, "embedding": [0.0, 2.0]}, {"index": 0, "embedding": [3.0, 0.0]}]
    one = (200, {"data": [{"index": 0, "embedding": [1.0, 0.0]}], "usage": {"prompt_tokens": 1}})
    async with Server(one, (200, {"data": rows, "usage": {"prompt_tokens": 6}})) as server:
        engine = await _engine(_ref(server.url, "embedding"), home)
        assert engine.dimensions == 2
        vectors = await engine.embed(["甲", "乙"], "passage")
        np.testing.assert_allclose(vectors, [[1, 0], [0, 1]])
        assert COUNTED.get() == 6 and server.asked[1][2] == {"model": "there", "input": ["甲", "乙"]}
        await engine.close()


@pytest.mark.parametrize(
    ("path", "field", "found", "before"),
    [
        ("/v1/tokenize", "text", {"tokens": [1, 2]}, []),  # Mofang
        ("/tokenize", "content", {"tokens": [1, 2]}, [(404, {})]),  # llama.cpp
        ("/tokenize", "prompt", {"tokens": [1, 2]}, [(404, {}), (422, {})]),  # vLLM
    ],
)
async def test_tokens_as_the_server_counts_them(
    path: str, field: str, found: dict[str, Any], before: list[Any], home: Path
) -> None:
    async with Server(*before, (200, found), (200, found)) as server:
        engine = await _engine(_ref(server.url), home)
        assert await engine.tokenize("你好") == await engine.tokenize("你好") == [1, 2]
        assert len(server.asked) == len(before) + 2, "the way that worked is remembered"
        assert server.asked[-1][0] == path and server.asked[-1][2][field] == "你好"
        await engine.close()


@pytest.mark.parametrize(
    "ask",
    [
        lambda engine: engine.tokenize("a"),
        lambda engine: engine.count_tokens(HELLO),
        lambda engine: engine.render(HELLO),
        lambda engine: engine.next_token("a"),
    ],
)
async def test_what_openai_has_not_is_said(ask: Callable[[Any], Any], home: Path) -> None:
    async with Server() as server:
        engine = await _engine(_ref(server.url), home)
        with pytest.raises(Invalid) as raised:
            await ask(engine)
        assert raised.value.code == "remote_has_no"
        await engine.close()


def test_a_remote_model_is_written_down_without_its_key(home: Path) -> None:
    store = ModelStore(Settings(home=home))
    ref = store.add_remote("deep", "https://api.example.com/v1", "chat-1", api_key_env="DEEP_KEY", n_ctx=65536)
    assert ref.runnable and engine_name(ref) == "remote" and store.resolve("deep", "chat") == ref
    assert store.memory(ref, 8192, 2).weights == 0
    remote = {"base_url": "https://api.example.com/v1", "model": "chat-1", "api_key_env": "DEEP_KEY", "n_ctx": 65536}
    assert ref.manifest["remote"] == remote
    with pytest.raises(Invalid) as raised:
        store.add_remote("two", "https://api.example.com/v1", "chat-1", api_key_env="sk-abcdef")
    assert raised.value.code == "bad_variable" and "sk-abcdef" not in str(raised.value)
    with pytest.raises(Invalid) as raised:
        store.add_remote("two", "api.example.com", "chat-1")
    assert raised.value.code == "bad_base_url"
