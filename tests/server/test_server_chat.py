"""/v1/chat/completions as the official client sees it, strict validation on."""

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from served import Gateway, wait_until

from fakes import FakeLibrary, FakePool, ScriptedEngine, engine_died, spoken
from mofang.errors import Busy, EngineFailed, Invalid
from mofang.messages import Delta, Progress, Usage

ASK: Any = [{"role": "system", "content": "请简短回答。"}, {"role": "user", "content": "你好，模坊🙂！ｆｕｌｌ"}]
SAID = "你好，模坊🙂！ｆｕｌｌ"


def official(gateway: Gateway, **options: Any) -> openai.OpenAI:
    return openai.OpenAI(
        base_url=f"{gateway.url}/v1",
        api_key=gateway.key or "none",
        _strict_response_validation=True,
        http_client=httpx.Client(trust_env=False, timeout=20),
        max_retries=0,
        **options,
    )


def test_an_answer(gateway: Gateway) -> None:
    with official(gateway) as client:
        answer = client.chat.completions.create(model="echo", messages=ASK)
    assert answer.choices[0].message.content == SAID
    assert answer.choices[0].finish_reason == "stop"
    assert answer.model == "echo" and answer.id.startswith("chatcmpl-") and answer.object == "chat.completion"
    assert answer.usage and answer.usage.completion_tokens == len(SAID)
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.usage.prompt_tokens_details and answer.usage.prompt_tokens_details.cached_tokens == 3
    assert answer.system_fingerprint and answer.system_fingerprint.startswith("mofang-")


def test_auto_is_the_default_model(gateway: Gateway) -> None:
    with official(gateway) as client:
        assert client.chat.completions.create(model="auto", messages=ASK).model == "echo"


def test_a_stream_with_usage_ends_with_a_chunk_without_choices(gateway: Gateway) -> None:
    with official(gateway) as client:
        chunks = list(
            client.chat.completions.create(
                model="echo", messages=ASK, stream=True, stream_options={"include_usage": True}
            )
        )
    assert "".join(c.choices[0].delta.content or "" for c in chunks[:-1]) == SAID
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [c.choices[0].finish_reason for c in chunks[:-1]] == [None] * (len(chunks) - 2) + ["stop"]
    assert chunks[-1].choices == [] and chunks[-1].usage and chunks[-1].usage.completion_tokens == len(SAID)
    assert all(c.usage is None for c in chunks[:-1])
    assert len({c.id for c in chunks}) == 1
    assert chunks[-1].timings["predicted_per_second"] == 50.0  # type: ignore[attr-defined]


def test_without_include_usage_no_chunk_has_any(gateway: Gateway) -> None:
    with official(gateway) as client:
        chunks = list(client.chat.completions.create(model="echo", messages=ASK, stream=True))
    assert all(c.choices and c.usage is None for c in chunks)
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_the_bytes_of_a_stream(gateway: Gateway) -> None:
    body = {"model": "echo", "messages": [{"role": "user", "content": "好"}], "stream": True}
    with gateway.http() as http, http.stream("POST", "/v1/chat/completions", json=body) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert answer.headers["cache-control"] == "no-cache"
        lines = list(answer.iter_lines())
    assert lines[-2:] == ["data: [DONE]", ""]
    assert '"content":"好"' in lines[2], "Chinese is sent as Chinese"


async def test_the_async_client(gateway: Gateway) -> None:
    async with openai.AsyncOpenAI(
        base_url=f"{gateway.url}/v1",
        api_key="none",
        _strict_response_validation=True,
        http_client=httpx.AsyncClient(trust_env=False),
    ) as client:
        whole, stream = await asyncio.gather(
            client.chat.completions.create(model="echo", messages=ASK),
            client.chat.completions.create(model="echo", messages=ASK, stream=True),
        )
        text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
    assert whole.choices[0].message.content == text == SAID


def test_the_stream_helper_and_raw_responses(gateway: Gateway) -> None:
    with official(gateway) as client:
        with client.chat.completions.stream(model="echo", messages=ASK) as stream:
            for _ in stream:
                pass
            assert stream.get_final_completion().choices[0].message.content == SAID
        raw = client.chat.completions.with_raw_response.create(model="echo", messages=ASK)
        assert raw.headers["x-request-id"].startswith("req-")
        assert raw.parse().choices[0].message.content == SAID


def test_what_the_engine_is_given(gateway: Gateway, engine: ScriptedEngine) -> None:
    tools: Any = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    with official(gateway) as client:
        client.chat.completions.create(
            model="echo",
            messages=ASK,
            temperature=0.5,
            seed=7,
            stop=["。", "\n"],
            max_completion_tokens=11,
            tools=tools,
            tool_choice="auto",
            logprobs=True,
            top_logprobs=2,
            n=2,
            logit_bias={"3": -100},
            extra_body={"top_k": 5, "min_p": 0.1, "typical_p": 0.5},
        )
        client.chat.completions.create(model="echo", messages=ASK)
    messages, sampling = engine.asked[0]
    assert [m.role for m in messages] == ["system", "user"] and messages[1].text == SAID
    assert (sampling.temperature, sampling.seed, sampling.stop, sampling.max_tokens) == (0.5, 7, ("。", "\n"), 11)
    assert (sampling.top_k, sampling.min_p) == (5, 0.1)
    assert sampling.options == {
        "tools": tools,
        "tool_choice": "auto",
        "logprobs": True,
        "top_logprobs": 2,
        "n": 2,
        "logit_bias": {"3": -100},
        "typical_p": 0.5,
    }
    assert engine.asked[1][1].max_tokens == 2048, "no endless answer when the request names no length"


def test_several_answers_at_once(gateway: Gateway, engine: ScriptedEngine) -> None:
    engine.script = [*spoken("甲", finish="length"), *spoken("乙乙", index=1)]
    with official(gateway) as client:
        answer = client.chat.completions.create(model="echo", messages=ASK, n=2)
        stream = client.chat.completions.create(
            model="echo", messages=ASK, n=2, stream=True, stream_options={"include_usage": True}
        )
        chunks = list(stream)
    assert [(c.index, c.message.content, c.finish_reason) for c in answer.choices] == [
        (0, "甲", "length"),
        (1, "乙乙", "stop"),
    ]
    assert answer.usage and (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (7, 3)
    finished = {c.choices[0].index: c.choices[0].finish_reason for c in chunks if c.choices}
    assert finished == {0: "length", 1: "stop"}


def test_tool_calls_in_pieces_become_one(gateway: Gateway, engine: ScriptedEngine) -> None:
    first = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "天气", "arguments": '{"城'}}
    engine.script = [
        Delta(tool_calls=[first]),
        Delta(tool_calls=[{"index": 0, "function": {"arguments": '市": "上海"}'}}]),
        Delta(finish_reason="tool_calls", usage=Usage(5, 9)),
    ]
    with official(gateway) as client:
        answer = client.chat.completions.create(model="echo", messages=ASK)
        chunks = list(client.chat.completions.create(model="echo", messages=ASK, stream=True))
    call: Any = (answer.choices[0].message.tool_calls or [])[0]
    assert (call.id, call.function.name, json.loads(call.function.arguments)) == ("call_1", "天气", {"城市": "上海"})
    assert answer.choices[0].message.content is None and answer.choices[0].finish_reason == "tool_calls"
    pieces = [c.choices[0].delta.tool_calls for c in chunks if c.choices[0].delta.tool_calls]
    assert "".join(p[0].function.arguments for p in pieces if p and p[0].function) == '{"城市": "上海"}'


def test_reasoning_and_logprobs(gateway: Gateway, engine: ScriptedEngine) -> None:
    entry = {"token": "对", "logprob": -0.5, "bytes": [229, 175, 185], "top_logprobs": []}
    engine.script = [
        Delta(reasoning="想一想"),
        Delta("对", logprobs={"content": [entry]}),
        Delta("吗", logprobs={"content": [{**entry, "token": "吗"}]}),
        Delta(finish_reason="stop", usage=Usage(1, 3)),
    ]
    with official(gateway) as client:
        answer = client.chat.completions.create(model="echo", messages=ASK)
    assert answer.choices[0].message.reasoning_content == "想一想"  # type: ignore[attr-defined]
    logprobs = answer.choices[0].logprobs
    assert logprobs and logprobs.content and [token.token for token in logprobs.content] == ["对", "吗"]


# ---- the truth about failures ----


def test_an_error_before_the_first_token_is_a_status(gateway: Gateway, engine: ScriptedEngine) -> None:
    engine.script = [
        Delta(progress=Progress("prompt", 1, 9)),
        Invalid("server.unsupported_field", param="messages", field="messages"),
    ]
    for stream in (False, True):
        with official(gateway) as client, pytest.raises(openai.BadRequestError) as caught:
            client.chat.completions.create(model="echo", messages=ASK, stream=stream)
        assert caught.value.param == "messages" and caught.value.code == "unsupported_field"
    assert engine.open == 0


def test_an_engine_that_dies_in_the_middle(gateway: Gateway, engine: ScriptedEngine) -> None:
    engine.script = [Delta("半"), Delta("句"), engine_died()]
    with gateway.http() as http:
        body = {"model": "echo", "messages": ASK, "stream": True}
        with http.stream("POST", "/v1/chat/completions", json=body) as answer:
            assert answer.status_code == 200
            lines = [line for line in answer.iter_lines() if line]
    events = [json.loads(line[6:]) for line in lines]  # no [DONE], which is no JSON
    assert events[-1]["error"]["code"] == "cut_answer" and "chunk" not in json.dumps(events[-1])
    assert "".join(e["choices"][0]["delta"].get("content", "") for e in events[:-1]) == "半句"
    engine.script = None
    with official(gateway) as client:
        assert client.chat.completions.create(model="echo", messages=ASK).choices[0].message.content == SAID


def test_the_official_client_raises_on_an_error_event(gateway: Gateway, engine: ScriptedEngine) -> None:
    engine.script = [Delta("半"), engine_died()]
    with official(gateway) as client, pytest.raises(openai.APIError) as caught:
        for _ in client.chat.completions.create(model="echo", messages=ASK, stream=True):
            pass
    assert caught.value.code == "cut_answer"


def test_an_answer_that_breaks_off_is_no_answer(gateway: Gateway, engine: ScriptedEngine) -> None:
    engine.script = [Delta("没说完")]
    with official(gateway) as client, pytest.raises(openai.InternalServerError) as caught:
        client.chat.completions.create(model="echo", messages=ASK)
    assert caught.value.status_code == EngineFailed.status == 502


def test_unknown_model_wrong_kind_and_a_full_queue(gateway: Gateway, pool: FakePool) -> None:
    with official(gateway) as client:
        with pytest.raises(openai.NotFoundError) as missing:
            client.chat.completions.create(model="没有的", messages=ASK)
        assert missing.value.code == "model_not_found"
        with pytest.raises(openai.BadRequestError) as wrong:
            client.chat.completions.create(model="hash", messages=ASK)
        assert wrong.value.param == "model"
        pool.busy = Busy("core.unexpected", why="full", log="-", retry_after_s=2.2)
        with pytest.raises(openai.RateLimitError) as busy:
            client.chat.completions.create(model="echo", messages=ASK, stream=True)
    assert busy.value.response.headers["retry-after"] == "3"


# ---- a client that leaves ----


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_stops_its_answer(gateway: Gateway, engine: ScriptedEngine, stream: bool) -> None:
    never = gateway.event()
    engine.script = [Delta("一"), Delta("二"), never]
    body = {"model": "echo", "messages": ASK, "stream": stream}
    http = gateway.http()
    if stream:
        with http.stream("POST", "/v1/chat/completions", json=body) as answer:
            lines = answer.iter_lines()  # kept: a generator that is collected closes the connection
            next(lines)
            wait_until(lambda: engine.open == 1)
    else:
        with pytest.raises(httpx.ReadTimeout):
            http.post("/v1/chat/completions", json=body, timeout=0.5)
    http.close()
    wait_until(lambda: engine.open == 0)
    assert engine.closed_early == 1


def test_a_client_that_leaves_during_the_prompt(gateway: Gateway, engine: ScriptedEngine) -> None:
    engine.script = [Delta(progress=Progress("prompt", 1, 9)), gateway.event()]
    with gateway.http() as http, pytest.raises(httpx.ReadTimeout):
        http.post("/v1/chat/completions", json={"messages": ASK, "stream": True}, timeout=0.5)
    wait_until(lambda: engine.open == 0 and engine.closed_early == 1)


def test_many_clients_that_come_and_go(gateway: Gateway, engine: ScriptedEngine) -> None:
    engine.script = [*[step for char in "说到一半" for step in (Delta(char), 0.02)], *spoken("完")]

    async def visit(number: int) -> None:
        async with (
            httpx.AsyncClient(base_url=gateway.url, trust_env=False, timeout=20) as http,
            http.stream("POST", "/v1/chat/completions", json={"messages": ASK, "stream": True}) as answer,
        ):
            seen = 0
            async for line in answer.aiter_lines():
                seen += line.startswith("data:")
                if number % 2 and seen == 2:
                    return
            assert line == "" and seen > 4

    async def all_of_them() -> None:
        await asyncio.gather(*(visit(number) for number in range(32)))

    asyncio.run(all_of_them())
    wait_until(lambda: engine.open == 0)
    assert engine.closed_early == 16


# ---- answers from documents ----


def test_sources_of_a_grounded_answer(gateway: Gateway, engine: ScriptedEngine, library: FakeLibrary) -> None:
    library.create("手册", embedding_model="hash")
    for number, text in enumerate(["模坊在本机运行", "另一页：运行"]):
        path = library.originals or None
        assert path
        path.mkdir(exist_ok=True)
        (path / f"{number}.txt").write_text(text, encoding="utf-8")
        asyncio.run(library.add("手册", [(f"{number}.txt", path / f"{number}.txt")], progress=lambda _: None))
    engine.script = spoken("在本机[1]。")
    ask: Any = {"messages": [{"role": "user", "content": "模坊在哪里运行"}], "knowledge": ["手册"], "max_tokens": 96}
    with gateway.http() as http:
        whole = http.post("/v1/chat/completions", json=ask).json()
        with http.stream(
            "POST", "/v1/chat/completions", json={**ask, "stream": True, "stream_options": {"include_usage": True}}
        ) as answer:
            last = [json.loads(line[6:]) for line in answer.iter_lines() if line.startswith("data: {")][-1]
        with http.stream("POST", "/v1/chat/completions", json={**ask, "stream": True}) as answer:
            plain = [json.loads(line[6:]) for line in answer.iter_lines() if line.startswith("data: {")]
    assert [(s["number"], s["title"], s["cited"]) for s in whole["sources"]] == [
        (1, "0.txt", True),
        (2, "1.txt", False),
    ]
    assert whole["notices"] == [{"code": "knowledge", "message": f"room:{4096 - 96}"}]
    assert last["choices"] == [] and last["sources"] == whole["sources"] and last["usage"]
    assert plain[-1]["choices"][0]["finish_reason"] == "stop" and plain[-1]["sources"] == whole["sources"]
    assert all("sources" not in chunk for chunk in plain[:-1])
    messages, _ = engine.asked[-1]
    assert messages[0].role == "system" and "[1] 模坊在本机运行" in messages[0].text


def test_marks_that_the_model_forgot_are_added_and_said(
    gateway: Gateway, engine: ScriptedEngine, library: FakeLibrary, tmp_path: Path
) -> None:
    library.create("手册", embedding_model="hash")
    (tmp_path / "端口.txt").write_text("端口被占用时换一个端口，设置 MOFANG_PORT 即可。", encoding="utf-8")
    asyncio.run(library.add("手册", [("端口.txt", tmp_path / "端口.txt")], progress=lambda _: None))
    ask: Any = {"messages": [{"role": "user", "content": "端口被占用"}], "knowledge": ["手册"]}
    with gateway.http() as http:
        engine.script = spoken("端口被占用时换一个端口。")
        whole = http.post("/v1/chat/completions", json=ask).json()
        engine.script = spoken("端口被占用时换一个端口 [1]。")
        marked = http.post("/v1/chat/completions", json=ask).json()
        engine.script = spoken("端口被占用时换一个端口。")
        formed = http.post("/v1/chat/completions", json={**ask, "response_format": {"type": "json_object"}}).json()
    assert whole["choices"][0]["message"]["content"] == "端口被占用时换一个端口。[1]"
    assert whole["sources"][0]["cited"] and whole["sources"][0]["spans"] == [[0, 30]]
    assert "marks_added" in [notice["code"] for notice in whole["notices"]]
    assert marked["choices"][0]["message"]["content"] == "端口被占用时换一个端口 [1]。"
    assert formed["choices"][0]["message"]["content"] == "端口被占用时换一个端口。"


@pytest.mark.parametrize(
    ("said", "warned"),
    [
        ("请联系杭州的工厂办理。", True),
        ("端口被占用时换一个端口。", False),
        ("端口被占用时换一个端口[1]。", False),
        ("资料中没有找到。", False),
        ("端口被占用时就换一个端口。", False),
    ],
)
def test_an_answer_that_no_source_holds_is_said_to_be_one(
    gateway: Gateway, engine: ScriptedEngine, library: FakeLibrary, tmp_path: Path, said: str, warned: bool
) -> None:
    library.create("手册", embedding_model="hash")
    (tmp_path / "端口.txt").write_text("端口被占用时换一个端口，设置 MOFANG_PORT 即可。", encoding="utf-8")
    asyncio.run(library.add("手册", [("端口.txt", tmp_path / "端口.txt")], progress=lambda _: None))
    ask: Any = {"messages": [{"role": "user", "content": "端口被占用"}], "knowledge": ["手册"]}
    engine.script = spoken(said)
    with gateway.http() as http:
        answer = http.post("/v1/chat/completions", json=ask).json()
    assert ("unsupported" in [notice["code"] for notice in answer["notices"]]) is warned
