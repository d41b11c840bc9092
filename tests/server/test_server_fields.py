"""Every field is passed on or refused by its name, nested ones too; and the routes below the text."""

from typing import Any

import openai
import pytest
from pydantic import BaseModel
from served import Gateway
from test_server_openai import official

from fakes import FakePool, ScriptedEngine
from mofang.messages import Delta, Usage
from tool_caller import ToolCaller

HI: Any = [{"role": "user", "content": "你好"}]
TOOL: Any = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
PASSED: dict[str, Any] = {
    "typical_p": 0.9,
    "top_n_sigma": 1.5,
    "dynatemp_range": 0.2,
    "dynatemp_exponent": 1.5,
    "repeat_last_n": 64,
    "dry_multiplier": 0.8,
    "dry_base": 1.75,
    "dry_allowed_length": 2,
    "dry_penalty_last_n": 128,
    "dry_sequence_breakers": ["\n", "。"],
    "xtc_probability": 0.5,
    "xtc_threshold": 0.1,
    "mirostat": 2,
    "mirostat_tau": 5.0,
    "mirostat_eta": 0.1,
    "adaptive_target": 0.5,
    "adaptive_decay": 0.9,
    "min_keep": 1,
    "ignore_eos": True,
    "samplers": ["top_k", "temperature"],
    "cache_prompt": False,
    "logit_bias": {"3": -100.0},
    "n": 2,
}
CHAT_ONLY: dict[str, Any] = {
    "tools": [TOOL],
    "tool_choice": "required",
    "parallel_tool_calls": False,
    "response_format": {"type": "json_object"},
    "reasoning_effort": "low",
    "reasoning_budget_tokens": 64,
    "reasoning_format": "none",
    "chat_template_kwargs": {"a": None},
}


@pytest.mark.parametrize(
    ("route", "ask", "fields"),
    [
        ("/v1/chat/completions", {"messages": HI}, {**PASSED, **CHAT_ONLY}),
        ("/v1/chat/completions", {"messages": HI}, {"grammar": "root ::= x", "logit_bias": [["好", False], [3, 1.5]]}),
        ("/v1/completions", {"prompt": "x"}, {**PASSED, "json_schema": {"type": "object", "default": None}}),
    ],
)
def test_what_is_known_reaches_the_engine(
    gateway: Gateway, engine: ScriptedEngine, route: str, ask: Any, fields: dict[str, Any]
) -> None:
    with gateway.http() as http:
        assert http.post(route, json={**ask, **fields}).status_code == 200
    given = engine.asked[0][1].options
    assert {name: [list(one) for one in value] if name == "logit_bias" and isinstance(value, list) else value
            for name, value in given.items()} == fields  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"temperature": -0.1}, "temperature"),
        ({"top_p": 1.1}, "top_p"),
        ({"min_p": -1}, "min_p"),
        ({"mirostat": 3}, "mirostat"),
        ({"adaptive_decay": 1}, "adaptive_decay"),
        ({"dry_base": 0.5}, "dry_base"),
        ({"seed": 1 << 32}, "seed"),
        ({"samplers": ["top_k", "nope"]}, "samplers.1"),
        ({"stop": ["a", ""]}, "stop.1"),
        ({"n": 17}, "n"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"logit_bias": {"3": "x"}}, "logit_bias.3"),
        ({"store": True}, "store"),
        ({"reasoning_effort": "enormous"}, "reasoning_effort"),
        ({"modalities": ["audio"]}, "modalities.0"),
        ({"audio": {"voice": "alloy"}}, "audio"),
        ({"functions": []}, "functions"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"include_usages": True}}, "stream_options.include_usages"),
        ({"stream": True, "stream_options": {"include_obfuscation": True}}, "stream_options.include_obfuscation"),
        ({"tools": [{"type": "web_search"}]}, "tools.0.type"),
        ({"tools": [{**TOOL, "function": {"name": "f", "parameter": {}}}]}, "tools.0.function.parameter"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "g"}}}, "tool_choice"),
        ({"tools": [TOOL], "grammar": "root ::= x"}, "grammar"),
        ({"grammar": "root ::= x", "json_schema": {}}, "grammar"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a"}}},
            "response_format.json_schema.schema",
        ),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"enable_thinking": True, "chat_template_kwargs": {"enable_thinking": False}}, "enable_thinking"),
        ({"truncation": "middle"}, "truncation"),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "messages.0.content.0.type"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "content"),
        ({"messages": [{"role": "user", "content": "a", "weight": 1}]}, "messages.0.weight"),
    ],
)
def test_what_cannot_be_is_refused_by_name(gateway: Gateway, fields: dict[str, Any], param: str) -> None:
    with gateway.http() as http:
        answer = http.post("/v1/chat/completions", json={"messages": HI, **fields})
    assert answer.status_code == 400 and answer.json()["error"]["param"] == param


def test_numbers_that_json_does_not_have(gateway: Gateway) -> None:
    raw = b'{"messages": [{"role": "user", "content": "x"}], "temperature": NaN}'
    with gateway.http() as http:
        answer = http.post("/v1/chat/completions", content=raw, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400 and answer.json()["error"]["param"] == "temperature"


def test_thinking_switches(gateway: Gateway, engine: ScriptedEngine) -> None:
    body = {"messages": HI, "enable_thinking": False, "chat_template_kwargs": {"a": 1}}
    with gateway.http() as http:
        http.post("/v1/chat/completions", json=body)
    assert engine.asked[0][1].options == {"chat_template_kwargs": {"a": 1, "enable_thinking": False}}


def test_thoughts_are_counted_and_come_back(gateway: Gateway, engine: ScriptedEngine) -> None:
    engine.script = [Delta(reasoning="想想"), Delta("好"), Delta(finish_reason="stop", usage=Usage(3, 5))]
    with gateway.http() as http:
        answer = http.post("/v1/chat/completions", json={"messages": HI}).json()
        again = [*HI, answer["choices"][0]["message"], {"role": "user", "content": "再来"}]
        assert http.post("/v1/chat/completions", json={"messages": again}).status_code == 200
    assert answer["usage"]["completion_tokens_details"] == {"reasoning_tokens": 2}
    assert engine.asked[1][0][1].reasoning_content == "想想"


def test_as_many_log_probabilities_as_were_asked_for(gateway: Gateway, engine: ScriptedEngine) -> None:
    top = [{"token": token, "logprob": -1.0, "bytes": None} for token in "甲乙丙"]
    entry = {"token": "甲", "logprob": -1.0, "bytes": None, "top_logprobs": top}
    engine.script = [Delta("甲", logprobs={"content": [entry]}), Delta(finish_reason="stop", usage=Usage(1, 1))]
    with official(gateway) as client:
        for n_top, wanted in ((None, 0), (0, 0), (2, 2)):
            fields: Any = {} if n_top is None else {"top_logprobs": n_top}
            answer = client.chat.completions.create(model="echo", messages=HI, logprobs=True, **fields)
            assert len(answer.choices[0].logprobs.content[0].top_logprobs) == wanted  # type: ignore[union-attr, index]
        old = client.completions.create(model="echo", prompt="x", logprobs=0).choices[0].logprobs
    assert old and old.token_logprobs == [-1.0] and old.top_logprobs == [{}]
    assert engine.asked[0][1].options == {"logprobs": True, "top_logprobs": 1}


# ---- tools and schemas, by the official client ----


class Weather(BaseModel):
    """Look the weather up."""

    city: str
    days: int


@pytest.fixture
def pool() -> FakePool:
    return FakePool(ToolCaller("echo"))


@pytest.fixture
def engine(pool: FakePool) -> ScriptedEngine:
    return pool.engines["echo"]  # type: ignore[no-any-return]


def test_parse_and_tools_under_strict_validation(gateway: Gateway) -> None:
    ask: Any = [{"role": "user", "content": "weather in '上海' for 3 days"}]
    tool = openai.pydantic_function_tool(Weather)
    with official(gateway) as client:
        parsed = client.chat.completions.parse(model="echo", messages=ask, response_format=Weather)
        assert parsed.choices[0].message.parsed == Weather(city="上海", days=3)
        called = client.chat.completions.parse(model="echo", messages=ask, tools=[tool], tool_choice="required")
        (call,) = called.choices[0].message.tool_calls or ()
        assert call.function.parsed_arguments == Weather(city="上海", days=3)
        assert called.choices[0].finish_reason == "tool_calls"
        with client.chat.completions.stream(model="echo", messages=ask, tools=[tool]) as stream:
            kinds = [event.type for event in stream]
            final = stream.get_final_completion()
        assert "tool_calls.function.arguments.done" in kinds
        (streamed,) = final.choices[0].message.tool_calls or ()
        assert streamed.function.parsed_arguments == Weather(city="上海", days=3)
        told: Any = [*ask, called.choices[0].message, {"role": "tool", "tool_call_id": call.id, "content": "晴"}]
        assert client.chat.completions.create(model="echo", messages=told, tools=[tool]).choices[0].message.content


# ---- images ----

PNG = "data:image/png;base64,iVBORw0KGgo="


def _image(url: str) -> Any:
    return [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]


def test_images_reach_only_a_model_that_sees(gateway: Gateway, engine: ScriptedEngine) -> None:
    with gateway.http() as http:
        blind = http.post("/v1/chat/completions", json={"messages": _image(PNG)})
        assert (blind.status_code, blind.json()["error"]["code"]) == (400, "no_images")
        far = http.post("/v1/chat/completions", json={"messages": _image("http://127.0.0.1/a.png")})
        assert (far.status_code, far.json()["error"]["code"]) == (400, "remote_image")
        engine.images = True
        assert http.post("/v1/chat/completions", json={"messages": _image(PNG)}).status_code == 200
    assert engine.asked[-1][0][0].content == [{"type": "image_url", "image_url": {"url": PNG}}]


# ---- below the text ----


def test_tokens_and_back(gateway: Gateway) -> None:
    with gateway.http() as http:
        plain = http.post("/v1/tokenize", json={"text": "你好🙂"}).json()
        pieces = http.post("/v1/tokenize", json={"text": "你🙂", "with_pieces": True, "parse_special": False}).json()
        text = http.post("/v1/detokenize", json={"tokens": plain["tokens"]}).json()
        wrong = http.post("/v1/detokenize", json={"tokens": [1 << 30]})
    assert plain == {"model": "echo", "count": 3, "tokens": [ord(one) for one in "你好🙂"]}
    assert pieces["pieces"][1] == {"id": ord("🙂"), "piece": "🙂", "bytes": list("🙂".encode())}
    assert text["text"] == "你好🙂"
    assert wrong.status_code == 400 and wrong.json()["error"]["code"] == "no_such_token"


def test_the_prompt_and_its_length(gateway: Gateway, engine: ScriptedEngine) -> None:
    body = {"messages": HI, "tools": [TOOL]}
    with gateway.http() as http:
        shown = http.post("/v1/apply-template", json=body).json()
        counted = http.post("/v1/chat/completions/input_tokens", json=body).json()
    assert shown == {"model": "echo", "prompt": "<tool>f<user>你好", "input_tokens": len("<tool>f<user>你好")}
    assert counted == {"input_tokens": shown["input_tokens"]} and engine.asked == []
