"""/v1/responses as the official client sees it, strict validation on: sync, async, streamed, parsed, with tools."""

import asyncio
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from pydantic import BaseModel
from served import Gateway, wait_until

from fakes import TIMINGS, FakePool, ScriptedEngine, spoken
from mofang.errors import EngineFailed
from mofang.messages import Delta, Progress, Usage
from mofang.server.dialects.responses import ResponsesRequest, to_chat

TOOL: Any = {"type": "function", "name": "天气", "parameters": {"type": "object"}, "strict": False}
CALLS = [
    Delta(progress=Progress("prompt", 9, 9, "tokens")),
    Delta(reasoning="查"),
    Delta(reasoning="天气"),
    Delta("好"),
    Delta(tool_calls=[{"index": 0, "id": "c1", "type": "function", "function": {"name": "天气", "arguments": ""}}]),
    Delta(tool_calls=[{"index": 0, "function": {"arguments": '{"城市":'}}]),
    Delta(tool_calls=[{"index": 1, "id": "c2", "type": "function", "function": {"name": "天气", "arguments": "{}"}}]),
    Delta(tool_calls=[{"index": 0, "function": {"arguments": '"上海"}'}}]),
    Delta(finish_reason="tool_calls", usage=Usage(9, 8, 3), timings=TIMINGS),
]


@pytest.fixture
def client(gateway: Gateway) -> Iterator[openai.OpenAI]:
    http = httpx.Client(trust_env=False, timeout=20)
    options: Any = {"_strict_response_validation": True, "http_client": http, "max_retries": 0}
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="none", **options) as made:
        yield made


def test_a_text(client: openai.OpenAI, engine: ScriptedEngine) -> None:
    answer = client.responses.create(model="echo", input="你好🙂", instructions="简短", metadata={"a": "b"})
    assert answer.output_text == "你好🙂" and answer.status == "completed" and answer.metadata == {"a": "b"}
    assert answer.usage and (answer.usage.output_tokens, answer.usage.input_tokens_details.cached_tokens) == (3, 3)
    assert [(m.role, m.text) for m in engine.asked[0][0]] == [("system", "简短"), ("user", "你好🙂")]


def test_thoughts_words_and_calls_are_items_of_their_own(client: openai.OpenAI, engine: ScriptedEngine) -> None:
    engine.script = CALLS
    answer: Any = client.responses.create(model="echo", input="上海天气？", tools=[TOOL])
    assert [item.type for item in answer.output] == ["reasoning", "message", "function_call", "function_call"]
    assert answer.output[0].content[0].text == "查天气" and answer.usage.output_tokens_details.reasoning_tokens == 3
    assert [(call.call_id, call.arguments) for call in answer.output[2:]] == [("c1", '{"城市":"上海"}'), ("c2", "{}")]


def test_the_events_in_their_order(client: openai.OpenAI, engine: ScriptedEngine) -> None:
    engine.script = CALLS
    events: list[Any] = list(client.responses.create(model="echo", input="上海？", tools=[TOOL], stream=True))
    kinds = [event.type.removeprefix("response.") for event in events]
    part = ["output_item.added", "content_part.added", "{}.delta", "{}.done", "content_part.done", "output_item.done"]
    thoughts = [kind.format("reasoning_text") for kind in (*part[:3], *part[2:])]
    words = [kind.format("output_text") for kind in part]
    call = "function_call_arguments"
    calls = ["output_item.added", f"{call}.delta", "output_item.added", f"{call}.delta", f"{call}.delta"]
    ends = [f"{call}.done", "output_item.done"] * 2
    assert kinds == ["created", "in_progress", *thoughts, *words, *calls, *ends, "completed"]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert [item.type for item in events[-1].response.output][1:] == ["message", "function_call", "function_call"]


def test_the_clients_own_accumulator_agrees(client: openai.OpenAI, engine: ScriptedEngine) -> None:
    class Shape(BaseModel):
        城市: str

    engine.script = spoken('{"城市": "上海"}')
    with client.responses.stream(model="echo", input="哪里？", text_format=Shape) as stream:
        for _ in stream:
            pass
        assert stream.get_final_response().output_parsed == Shape(城市="上海")
    parsed = client.responses.parse(model="echo", input="哪里？", text_format=Shape)
    assert parsed.output_parsed == Shape(城市="上海")
    wanted = engine.asked[-1][1].options["response_format"]
    assert wanted["type"] == "json_schema" and list(wanted["json_schema"]["schema"]["properties"]) == ["城市"]


def test_an_answer_that_is_cut_is_incomplete(client: openai.OpenAI, engine: ScriptedEngine) -> None:
    engine.script = spoken("一二", finish="length")
    answer = client.responses.create(model="echo", input="数数", max_output_tokens=2)
    assert answer.status == "incomplete" and answer.incomplete_details
    assert answer.incomplete_details.reason == "max_output_tokens"
    events = list(client.responses.create(model="echo", input="数数", stream=True))
    assert events[-1].type == "response.incomplete"


def test_a_failure_on_the_way_is_the_last_event(client: openai.OpenAI, engine: ScriptedEngine) -> None:
    engine.script = [Delta("一"), EngineFailed("server.cut_answer", model="echo")]
    events: list[Any] = list(client.responses.create(model="echo", input="数数", stream=True))
    assert events[-1].type == "response.failed" and "echo" in events[-1].response.error.message
    engine.script = [EngineFailed("server.cut_answer", model="echo")]
    with pytest.raises(openai.InternalServerError):
        client.responses.create(model="echo", input="数数", stream=True)


def test_log_probabilities(client: openai.OpenAI, engine: ScriptedEngine) -> None:
    entry = {"token": "好", "logprob": -0.5, "top_logprobs": [{"token": "好", "logprob": -0.5, "bytes": None}]}
    engine.script = [Delta("好", logprobs={"content": [entry]}), Delta(finish_reason="stop", usage=Usage(1, 1))]
    answer: Any = client.responses.create(model="echo", input="x", include=["message.output_text.logprobs"])
    (found,) = answer.output[0].content[0].logprobs
    assert (found.token, found.logprob, found.bytes, found.top_logprobs) == ("好", -0.5, [229, 165, 189], [])
    assert engine.asked[0][1].options == {"logprobs": True, "top_logprobs": 1}


async def test_async_and_several_at_once(gateway: Gateway) -> None:
    http = httpx.AsyncClient(trust_env=False, timeout=20)
    options: Any = {"_strict_response_validation": True, "http_client": http, "max_retries": 0}
    async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="none", **options) as client:
        texts = ["甲", "乙🙂", "丙丙"]
        answers = await asyncio.gather(*(client.responses.create(model="echo", input=text) for text in texts))
        assert [answer.output_text for answer in answers] == texts
        stream = await client.responses.create(model="echo", input="好🙂", stream=True)
        said = [event.delta async for event in stream if event.type == "response.output_text.delta"]
        assert said == ["好", "🙂"]


def test_a_client_that_leaves_stops_it(gateway: Gateway, engine: ScriptedEngine) -> None:
    engine.script = [Delta("一"), gateway.event()]
    body = {"input": "数", "stream": True}
    with gateway.http() as http, http.stream("POST", "/v1/responses", json=body) as answer:
        assert next(answer.iter_lines()) == "event: response.created"
    wait_until(lambda: engine.open == 0 and engine.closed_early == 1)


def test_the_items_of_an_answer_can_be_sent_back(client: openai.OpenAI, engine: ScriptedEngine, pool: FakePool) -> None:
    engine.script = CALLS
    first: Any = client.responses.create(model="echo", input="上海？", tools=[TOOL])
    engine.script = None
    results: Any = [{"type": "function_call_output", "call_id": f"c{n}", "output": "晴"} for n in (1, 2)]
    history = [{"role": "user", "content": "上海？"}, *first.output, *results]
    client.responses.create(model="echo", input=history, tools=[TOOL])
    user, said, *told = engine.asked[-1][0]
    assert (user.role, said.role, said.content, said.reasoning_content) == ("user", "assistant", "好", "查天气")
    assert [call["id"] for call in said.tool_calls] == [message.tool_call_id for message in told] == ["c1", "c2"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"store": True}, "store"),
        ({"background": True}, "background"),
        ({"tools": [{"type": "web_search"}]}, "tools.0.type"),
        ({"input": []}, "input"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input.0"),
        ({"input": [{"type": "message", "role": "user", "content": [{"type": "input_file"}]}]}, "input.0.content.0"),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format"),
        ({"reasoning": {"efort": "low"}}, "reasoning.efort"),
        ({"temperature": 9}, "temperature"),
        ({"conversation": "c"}, "conversation"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(client: openai.OpenAI, fields: dict[str, Any], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(**{"model": "echo", "input": "好", **fields})
    assert caught.value.param == param


def test_input_tokens(client: openai.OpenAI) -> None:
    counted = client.responses.input_tokens.count(model="echo", input="你好", tools=[TOOL])
    assert counted.input_tokens == len("<tool>天气<user>你好")


def test_a_message_before_thoughts_stays_one_of_its_own() -> None:
    items = [
        {"role": "assistant", "content": "一"},
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "想"}]},
        {"role": "assistant", "content": "二"},
    ]
    chat = to_chat(ResponsesRequest.model_validate({"input": items}))
    assert [(m.content, m.reasoning_content) for m in chat.messages] == [("一", None), ("二", "想")]
