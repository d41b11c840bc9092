"""Half a character is never sent: whatever the pieces that an engine gives, every event is whole text, and together
they are the answer, on every route that streams."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from served import Gateway

from fakes import ScriptedEngine
from mofang.engine.llama.answer import Answer
from mofang.messages import Delta, Usage

TEXT = st.text('长城龘🙂👩‍👩‍👧é\u2028\x85"\\\n ａa', min_size=1, max_size=30)
PIECES = st.tuples(TEXT, st.lists(st.integers(1, 4), max_size=30)).map(lambda made: list(_cut(*made)))


def _cut(text: str, sizes: list[int]) -> Iterator[str]:
    for size in sizes:
        if text:
            yield text[:size]
        text = text[size:]
    if text:
        yield text


def _data(answer: bytes) -> list[dict[str, Any]]:
    """Each event's data, decoded strictly and event by event: half a character would fail here."""
    lines = [line for event in answer.split(b"\n\n") for line in event.split(b"\n") if line.startswith(b"data: ")]
    texts = [line.removeprefix(b"data: ").decode("utf-8", "strict") for line in lines]
    return [json.loads(text) for text in texts if text != "[DONE]"]


def _chat(events: list[dict[str, Any]]) -> list[str]:
    return [event["choices"][0]["delta"].get("content") or "" for event in events]


def _calls(events: list[dict[str, Any]]) -> list[str]:
    calls = [event["choices"][0]["delta"].get("tool_calls") or [] for event in events]
    return [call[0]["function"]["arguments"] for call in calls if call]


ROUTES: dict[str, tuple[dict[str, Any], Any]] = {
    "/v1/chat/completions": ({"messages": [{"role": "user", "content": "x"}]}, _chat),
    "/v1/completions": ({"prompt": "x"}, lambda events: [event["choices"][0]["text"] for event in events]),
    "/v1/responses": (
        {"input": "x"},
        lambda events: [e["delta"] for e in events if e["type"] == "response.output_text.delta"],
    ),
    "/v1/messages": (
        {"messages": [{"role": "user", "content": "x"}], "max_tokens": 99},
        lambda events: [e["delta"]["text"] for e in events if e["type"] == "content_block_delta"],
    ),
}
same_gateway = settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.mark.parametrize("route", ROUTES)
@same_gateway
@given(pieces=PIECES)
def test_the_events_are_whole_text(gateway: Gateway, engine: ScriptedEngine, route: str, pieces: list[str]) -> None:
    body, texts_of = ROUTES[route]
    engine.script = [*map(Delta, pieces), Delta(finish_reason="stop", usage=Usage(1, len(pieces)))]
    with gateway.http() as http:
        answer = http.post(route, json={**body, "stream": True})
    assert "".join(texts_of(_data(answer.content))) == "".join(pieces)


@same_gateway
@given(pieces=PIECES)
def test_so_are_the_arguments_of_calls(gateway: Gateway, engine: ScriptedEngine, pieces: list[str]) -> None:
    calls = [Delta(tool_calls=[{"index": 0, "id": "c", "function": {"name": "f", "arguments": one}}]) for one in pieces]
    engine.script = [*calls, Delta(finish_reason="tool_calls", usage=Usage(1, 1))]
    body = {"messages": [{"role": "user", "content": "x"}], "stream": True}
    with gateway.http() as http:
        answer = http.post("/v1/chat/completions", json=body)
    assert "".join(_calls(_data(answer.content))) == "".join(pieces)


@given(pieces=PIECES)
def test_what_llama_cpp_said_is_passed_on_unchanged(pieces: list[str]) -> None:
    answer = Answer()
    events = [{"choices": [{"index": 0, "delta": {"content": piece}}]} for piece in pieces]
    said = [delta.content for event in events for delta in answer.read(event)]
    assert said == pieces
