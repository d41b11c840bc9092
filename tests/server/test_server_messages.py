"""/v1/messages as Anthropic's official client sees it, strict validation on."""

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import httpx2
import pytest
from served import Gateway, serving, wait_until

from fakes import TIMINGS, FakeLibrary, FakePool, ScriptedEngine, spoken
from mofang.errors import Busy, EngineFailed
from mofang.messages import Delta, Progress, Usage
from mofang.server.backend import LocalBackend
from mofang.settings import Settings

HI: Any = [{"role": "user", "content": "你好🙂"}]
TOOL: Any = {"name": "天气", "description": "查天气", "input_schema": {"type": "object"}}
CALLS = [
    Delta(progress=Progress("prompt", 9, 9, "tokens")),
    Delta(reasoning="查天气"),
    Delta("好"),
    Delta(tool_calls=[{"index": 0, "id": "c1", "type": "function", "function": {"name": "天气", "arguments": ""}}]),
    Delta(tool_calls=[{"index": 0, "function": {"arguments": '{"城市":'}}]),
    Delta(tool_calls=[{"index": 0, "function": {"arguments": '"上海"}'}}]),
    Delta(tool_calls=[{"index": 1, "id": "c2", "type": "function", "function": {"name": "天气", "arguments": "{}"}}]),
    Delta(finish_reason="tool_calls", usage=Usage(9, 8, 3), timings=TIMINGS),
]


def official(gateway: Gateway, key: str = "none") -> anthropic.Anthropic:
    options: Any = {"_strict_response_validation": True, "http_client": httpx2.Client(trust_env=False, timeout=20)}
    return anthropic.Anthropic(base_url=gateway.url, api_key=key, max_retries=0, **options)


@pytest.fixture
def client(gateway: Gateway) -> Iterator[anthropic.Anthropic]:
    with official(gateway) as made:
        yield made


def test_a_text(client: anthropic.Anthropic, engine: ScriptedEngine) -> None:
    system: Any = [{"type": "text", "text": "简短", "cache_control": {"type": "ephemeral"}}]
    answer = client.messages.create(
        model="echo", max_tokens=9, system=system, messages=HI, extra_body={"temperature": 0.5}
    )
    assert [block.text for block in answer.content] == ["你好🙂"]  # type: ignore[union-attr]
    assert (answer.role, answer.model, answer.stop_reason, answer.stop_sequence) == (
        "assistant",
        "echo",
        "end_turn",
        None,
    )
    assert (answer.usage.cache_read_input_tokens, answer.usage.output_tokens) == (3, 3)
    messages, sampling = engine.asked[0]
    assert [(m.role, m.text) for m in messages] == [("system", "简短"), ("user", "你好🙂")]
    assert (sampling.max_tokens, sampling.temperature) == (9, 0.5)


def test_blocks_of_thoughts_words_and_calls(client: anthropic.Anthropic, engine: ScriptedEngine) -> None:
    engine.script = CALLS
    thinking: Any = {"type": "enabled", "budget_tokens": 1024}
    answer: Any = client.messages.create(model="echo", max_tokens=2048, messages=HI, tools=[TOOL], thinking=thinking)
    assert [block.type for block in answer.content] == ["thinking", "text", "tool_use", "tool_use"]
    assert answer.content[0].thinking == "查天气" and answer.content[2].input == {"城市": "上海"}
    assert answer.stop_reason == "tool_use" and answer.usage.input_tokens == 6
    options = engine.asked[0][1].options
    assert options["reasoning_budget_tokens"] == 1024 and options["chat_template_kwargs"] == {"enable_thinking": True}
    assert options["tools"][0]["function"] == {
        "name": "天气",
        "description": "查天气",
        "parameters": {"type": "object"},
    }


def test_a_stream_is_the_same_message(client: anthropic.Anthropic, engine: ScriptedEngine) -> None:
    engine.script = CALLS
    raw = list(client.messages.create(model="echo", max_tokens=99, messages=HI, tools=[TOOL], stream=True))
    block = ["content_block_start", "content_block_delta", "content_block_stop"]
    call = [block[0], block[1], block[1], block[2]]
    assert [event.type for event in raw] == [
        "message_start",
        *block * 2,
        *call,
        *block,
        "message_delta",
        "message_stop",
    ]
    assert raw[0].message.usage.input_tokens == 9  # type: ignore[union-attr]
    with client.messages.stream(model="echo", max_tokens=99, messages=HI, tools=[TOOL]) as stream:
        streamed: Any = stream.get_final_message()
    whole: Any = client.messages.create(model="echo", max_tokens=99, messages=HI, tools=[TOOL])
    # The client gives the blocks of a stream types of its own.
    assert [block.to_dict() for block in streamed.content] == [
        block.to_dict(exclude_unset=True) for block in whole.content
    ]
    assert (streamed.stop_reason, streamed.usage.output_tokens) == (whole.stop_reason, whole.usage.output_tokens)


def test_which_stop_word_it_was(client: anthropic.Anthropic, engine: ScriptedEngine) -> None:
    engine.script = [Delta("一"), Delta(finish_reason="stop", stopped_by="。", usage=Usage(1, 1))]
    answer = client.messages.create(model="echo", max_tokens=9, messages=HI, stop_sequences=["。", "！"])
    assert (answer.stop_reason, answer.stop_sequence) == ("stop_sequence", "。")
    assert engine.asked[0][1].stop == ("。", "！")
    engine.script = spoken("一", finish="length")
    assert client.messages.create(model="echo", max_tokens=1, messages=HI).stop_reason == "max_tokens"


def test_a_tools_result_comes_before_what_is_said_beside_it(
    client: anthropic.Anthropic, engine: ScriptedEngine
) -> None:
    turns: Any = [
        *HI,
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "想", "signature": ""},
                {"type": "text", "text": "我查"},
                {"type": "tool_use", "id": "c1", "name": "天气", "input": {"城市": "上海"}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "快"},
                {
                    "type": "tool_result",
                    "tool_use_id": "c1",
                    "content": [{"type": "text", "text": "断网"}],
                    "is_error": True,
                },
            ],
        },
    ]
    client.messages.create(model="echo", max_tokens=9, messages=turns, tools=[TOOL])
    _, said, told, asked = engine.asked[0][0]
    assert (said.content, said.reasoning_content) == ("我查", "想")
    assert json.loads(said.tool_calls[0]["function"]["arguments"]) == {"城市": "上海"}
    assert (told.role, told.tool_call_id, told.text) == ("tool", "c1", "Error:断网")
    assert (asked.role, asked.content) == ("user", "快")


@pytest.mark.parametrize(
    ("choice", "wanted"),
    [
        ({"type": "auto", "disable_parallel_tool_use": True}, ("auto", False)),
        ({"type": "any"}, ("required", None)),
        ({"type": "none"}, ("none", None)),
        ({"type": "tool", "name": "天气"}, ({"type": "function", "function": {"name": "天气"}}, None)),
    ],
)
def test_tool_choice(client: anthropic.Anthropic, engine: ScriptedEngine, choice: Any, wanted: Any) -> None:
    client.messages.create(model="echo", max_tokens=9, messages=HI, tools=[TOOL], tool_choice=choice)
    options = engine.asked[0][1].options
    assert (options["tool_choice"], options.get("parallel_tool_calls")) == wanted


def test_count_tokens(client: anthropic.Anthropic) -> None:
    counted = client.messages.count_tokens(model="echo", messages=HI, system="简短", tools=[TOOL])
    assert counted.input_tokens == len("<tool>天气<system>简短<user>你好🙂")


def test_errors_have_anthropics_shape(client: anthropic.Anthropic, engine: ScriptedEngine, pool: FakePool) -> None:
    with pytest.raises(anthropic.NotFoundError) as missing:
        client.messages.create(model="nope", max_tokens=9, messages=HI)
    body: Any = missing.value.body
    assert (body["type"], body["error"]["type"], body["error"]["code"]) == (
        "error",
        "not_found_error",
        "model_not_found",
    )
    pool.busy = Busy("engine.queue_full", waiting=3, model="echo", retry_after_s=2)
    with pytest.raises(anthropic.RateLimitError) as busy:
        client.messages.create(model="echo", max_tokens=9, messages=HI)
    assert busy.value.response.headers["retry-after"] == "2"
    pool.busy = None
    engine.script = [Delta("一"), EngineFailed("server.cut_answer", model="echo")]
    with (
        pytest.raises(anthropic.APIStatusError) as broken,
        client.messages.stream(model="echo", max_tokens=9, messages=HI) as stream,
    ):
        stream.until_done()
    assert broken.value.body["error"]["code"] == "cut_answer"  # type: ignore[index]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"extra_body": {"temperature": 1.5}}, "temperature"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"thinking": {"type": "enabled"}}, "thinking"),
        ({"tools": [{"type": "bash_20250124", "name": "bash", "input_schema": {}}]}, "tools.0.type"),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "a", "x": 1}]}]},
            "messages.0.content.0.x",
        ),
        (
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [{"type": "image", "source": {"type": "url", "url": "http://example.com/a.png"}}],
                    }
                ]
            },
            "messages.0.content.0.source.type",
        ),
        ({"container": "c"}, "container"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(
    client: anthropic.Anthropic, fields: dict[str, Any], param: str
) -> None:
    with pytest.raises(anthropic.BadRequestError) as caught:
        client.messages.create(**{"model": "echo", "max_tokens": 9, "messages": HI, **fields})
    assert caught.value.body["error"]["param"] == param  # type: ignore[index]


def test_a_client_that_leaves_stops_it(gateway: Gateway, engine: ScriptedEngine) -> None:
    engine.script = [Delta("一"), gateway.event()]
    body = {"max_tokens": 9, "messages": HI, "stream": True}
    with gateway.http() as http, http.stream("POST", "/v1/messages", json=body) as answer:
        assert next(answer.iter_lines()) == "event: message_start"
    wait_until(lambda: engine.open == 0 and engine.closed_early == 1)


def test_the_key_is_taken_from_x_api_key(home: Any) -> None:
    settings = Settings(home=home, port=0, ui_port=8643, api_key="秘密".encode().hex())  # type: ignore[arg-type]
    backend = LocalBackend(settings, engines=FakePool(ScriptedEngine()), library=FakeLibrary())
    with serving(backend) as gateway:
        with official(gateway, settings.api_key.get_secret_value()) as client:  # type: ignore[union-attr]
            assert client.messages.create(model="echo", max_tokens=9, messages=HI).stop_reason == "end_turn"
        with official(gateway, "wrong") as client, pytest.raises(anthropic.AuthenticationError) as caught:
            client.messages.create(model="echo", max_tokens=9, messages=HI)
        assert caught.value.body["error"]["code"] == "wrong_key"  # type: ignore[index]
