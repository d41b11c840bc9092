"""A real model behind the real HTTP layer: calls that must be made, schemas, stop words, tokens, both new APIs."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import httpx
import httpx2
import openai
import pytest
from served import Gateway, serving

from mofang.models.store import ModelStore
from mofang.server.backend import LocalBackend
from mofang.settings import Settings

pytestmark = pytest.mark.model

WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "查询一个城市的天气",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "description": "城市名"}},
            "required": ["city"],
        },
    },
}
ADD: Any = {
    "type": "function",
    "function": {"name": "add", "description": "两个数相加", "parameters": {"type": "object"}},
}
ASK: Any = [{"role": "user", "content": "上海今天天气怎么样？"}]


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory, qwen: Path, smollm2: Path) -> Iterator[Gateway]:
    settings = Settings(home=tmp_path_factory.mktemp("home"), port=0, n_ctx=1024, n_slots=2)
    store = ModelStore(settings)
    store.add(qwen, "qwen")
    store.add(smollm2, "smollm2")
    with serving(LocalBackend(settings, models=store)) as gateway:
        yield gateway


@pytest.fixture
def client(real: Gateway) -> Iterator[openai.OpenAI]:
    http = httpx.Client(trust_env=False, timeout=120)
    options: Any = {"_strict_response_validation": True, "http_client": http, "max_retries": 0}
    with openai.OpenAI(base_url=f"{real.url}/v1", api_key="none", **options) as made:
        yield made


def test_a_call_that_must_be_made_is_made(client: openai.OpenAI) -> None:
    fields: Any = {"model": "qwen", "messages": ASK, "tools": [ADD, WEATHER], "temperature": 0, "max_tokens": 60}
    named: Any = {"type": "function", "function": {"name": "get_weather"}}
    whole = client.chat.completions.create(**fields, tool_choice=named)
    (call,) = whole.choices[0].message.tool_calls or ()
    assert call.type == "function" and call.function.name == "get_weather"
    assert json.loads(call.function.arguments) == {"city": "上海"}
    assert whole.choices[0].finish_reason == "tool_calls" and not whole.choices[0].message.content
    with client.chat.completions.stream(**fields, tool_choice=named) as stream:
        streamed = stream.get_final_completion().choices[0].message.tool_calls
    assert streamed and json.loads(streamed[0].function.arguments) == {"city": "上海"}
    required = client.chat.completions.create(**fields, tool_choice="required").choices[0].message
    assert required.tool_calls and required.tool_calls[0].function.name in ("get_weather", "add")  # type: ignore[union-attr]


def test_tools_that_the_template_would_drop_are_refused(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="smollm2", messages=ASK, tools=[WEATHER])
    assert caught.value.code == "no_tools" and caught.value.param == "tools"


def test_the_same_call_through_the_other_apis(client: openai.OpenAI, real: Gateway) -> None:
    tool: Any = {"type": "function", **WEATHER["function"], "strict": False}
    answer: Any = client.responses.create(
        model="qwen",
        input="上海今天天气怎么样？",
        tools=[tool],
        tool_choice={"type": "function", "name": "get_weather"},
        temperature=0,
        max_output_tokens=60,
    )
    assert json.loads(answer.output[0].arguments) == {"city": "上海"}
    http = httpx2.Client(trust_env=False, timeout=120)
    with anthropic.Anthropic(base_url=real.url, api_key="none", http_client=http, max_retries=0) as other:
        spec: Any = {"name": "get_weather", "input_schema": WEATHER["function"]["parameters"]}
        choice: Any = {"type": "tool", "name": "get_weather"}
        message: Any = other.messages.create(
            model="qwen", max_tokens=60, messages=ASK, tools=[spec], tool_choice=choice, extra_body={"temperature": 0}
        )
        stopped = other.messages.create(
            model="smollm2",
            max_tokens=20,
            messages=[{"role": "user", "content": "Count: 1, 2, 3, 4, 5, 6, 7, 8"}],
            stop_sequences=[" ", "e"],
        )
    assert message.content[0].input == {"city": "上海"} and message.stop_reason == "tool_use"
    assert stopped.stop_reason == "stop_sequence" and stopped.stop_sequence in (" ", "e")


def test_pieces_of_half_characters(real: Gateway) -> None:
    with real.http() as http:
        cut = http.post("/v1/tokenize", json={"model": "qwen", "text": "龘🙂", "with_pieces": True}).json()
        back = http.post("/v1/detokenize", json={"model": "qwen", "tokens": cut["tokens"]}).json()
        beyond = http.post("/v1/detokenize", json={"model": "qwen", "tokens": [1 << 30]})
        alive = http.post("/v1/detokenize", json={"model": "qwen", "tokens": cut["tokens"]})
    assert b"".join(bytes(one["bytes"]) for one in cut["pieces"]).decode() == back["text"] == "龘🙂"
    assert None in [one["piece"] for one in cut["pieces"]], "a token that is half a character has no text"
    assert beyond.status_code == 400 and alive.status_code == 200


def test_what_is_counted_is_what_is_read(client: openai.OpenAI, real: Gateway) -> None:
    body = {"model": "qwen", "messages": ASK, "tools": [WEATHER]}
    with real.http() as http:
        counted = http.post("/v1/chat/completions/input_tokens", json=body).json()["input_tokens"]
        shown = http.post("/v1/apply-template", json=body).json()
        wrong = http.post("/v1/chat/completions", json={**body, "tools": None, "n": 3})
    answer = client.chat.completions.create(model="qwen", messages=ASK, tools=[WEATHER], max_tokens=1)
    assert answer.usage and answer.usage.prompt_tokens == counted == shown["input_tokens"]
    assert "get_weather" in shown["prompt"]
    assert wrong.status_code == 400 and wrong.json()["error"]["param"] == "n", "more answers than slots"


def test_an_answer_begins_as_told_and_goes_on_where_it_was_cut(real: Gateway) -> None:
    asked: Any = {
        "model": "qwen",
        "messages": [{"role": "user", "content": "从一数到二十，用汉字，用顿号隔开，不要说别的。"}],
        "temperature": 0,
    }

    with real.client() as client:

        def said(**fields: Any) -> dict[str, Any]:
            shape = client.generate({**asked, **fields})
            list(client.follow_generation(shape["id"]))
            return client.generation(shape["id"])

        whole, cut = said(max_tokens=30), said(max_tokens=12)
        assert cut["finish_reason"] == "length" and whole["content"].startswith(cut["content"])
        on = said(max_tokens=18, prefix=cut["content"])
        assert on["content"] == whole["content"], "as if nothing had been cut"
        assert on["usage"]["prompt_tokens"] == cut["usage"]["prompt_tokens"] + 12
        assert said(max_tokens=8, prefix="二十、十九、")["content"].startswith("二十、十九、十八")


def test_probabilities_after_the_samplers_are_llama_cpps(real: Gateway) -> None:
    """What our arithmetic says, held against what llama.cpp's own chain of samplers leaves."""
    prompt = "中国的首都是"
    for wanted in (
        {"temperature": 0.7, "top_k": 40, "top_p": 0.9, "min_p": 0.02},
        {"temperature": 1.6, "top_k": 0, "top_p": 0.6, "min_p": 0.0},
        {"temperature": 0.4, "top_k": 5, "top_p": 1.0, "min_p": 0.0},
    ):

        async def theirs(wanted: dict[str, Any] = wanted) -> Any:
            asked = {"prompt": prompt, "n_predict": 1, "n_probs": 10, "post_sampling_probs": True, **wanted}
            async with real.backend.engines.use("qwen", "chat") as engine:
                return await engine._post("/completion", asked)

        answer = asyncio.run_coroutine_threadsafe(theirs(), real.loop).result(120)
        reference = {one["id"]: one["prob"] for one in answer["completion_probabilities"][0]["top_probs"]}
        with real.client() as client:
            found = client.next_token(prompt, "qwen", n_top=10, sampling=wanted)
        ours = {one["token_id"]: one["sampled"] for one in found["top"] if one["sampled"]}
        assert ours.keys() <= reference.keys() and len(ours) == min(10, found["n_kept"])
        assert {token: reference[token] for token in ours} == pytest.approx(ours, abs=2e-3)
        assert sum(reference.values()) == pytest.approx(sum(ours.values()), abs=5e-3)


def test_a_continuation_tells_ids_and_bytes(real: Gateway) -> None:
    with real.http() as http:
        body = {"model": "qwen", "prompt": "从前有座山，", "max_tokens": 12, "temperature": 0, "logprobs": 5}
        whole = http.post("/v1/completions", json=body, timeout=120).json()["choices"][0]
        first = http.post("/v1/next_token", json={"model": "qwen", "prompt": body["prompt"], "n_top": 5}).json()["top"]
    content = whole["logprobs"]["content"]
    assert b"".join(bytes(one["bytes"]) for one in content).decode() == whole["text"]
    assert [one["id"] for one in content[0]["top_logprobs"]] == [one["token_id"] for one in first]
    assert (
        content[0]["logprob"] == pytest.approx(first[0]["logprob"], abs=1e-2) and len(content[0]["top_logprobs"]) == 5
    )


def test_neighbours_of_a_real_vocabulary(real: Gateway) -> None:
    with real.client(timeout_s=120) as client:  # a whole matrix is read, on a machine that may be busy
        near = [one["piece"] for one in client.neighbours("qwen", "北京", 8)["data"]]
        assert {"上海", "北京市"} <= set(near)
        assert " queen" in [one["piece"] for one in client.neighbours("smollm2", " king", 8)["data"]]


def test_a_conversation_goes_on_from_the_result_of_its_tool(real: Gateway) -> None:
    question = {"role": "user", "content": "用工具算出 123 乘 457 等于多少。"}
    named = {"type": "function", "function": {"name": "calculate"}}
    with real.client() as client:
        home = client.create_conversation(
            model="qwen", tools=["calculate"], sampling={"temperature": 0, "max_tokens": 80}
        )["id"]
        shape = client.generate(
            {"conversation_id": home, "messages": [question], "tools": ["calculate"], "tool_choice": named}
        )
        assert list(client.follow_generation(shape["id"]))[-1]["finish_reason"] == "tool_calls"
        [call] = client.generation(shape["id"])["tool_calls"]
        assert json.loads(call["function"]["arguments"]).keys() == {"expression"}
        result = client.decide_call(home, shape["message_id"], call["id"], "run")
        assert result["content"] == "56211", call
        shape = client.generate({"conversation_id": home, "parent_id": result["id"]})
        list(client.follow_generation(shape["id"]))
        assert "56211" in client.generation(shape["id"])["content"].replace(",", "")
