"""Conversations longer than the context: refused with both numbers, or cut where that was asked for, and told."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from served import Gateway

from fakes import ScriptedEngine
from mofang.messages import Message
from mofang.server.truncate import cut_to

TEXT = st.text("长城ab🙂", max_size=12)
PLAIN = st.builds(Message, st.sampled_from(["system", "developer", "user", "assistant"]), TEXT)
CALLED = st.builds(
    lambda number, text: [
        Message("assistant", None, tool_calls=[{"id": f"c{number}", "function": {"name": "f", "arguments": "{}"}}]),
        Message("tool", text, tool_call_id=f"c{number}"),
    ],
    st.integers(0, 99),
    TEXT,
)
TALK = st.lists(st.one_of(PLAIN.map(lambda one: [one]), CALLED), min_size=1, max_size=12).map(
    lambda turns: [message for turn in turns for message in turn]
)


@given(TALK, st.integers(0, 200))
async def test_what_is_left_fits_in_order_and_nothing_more_is_dropped(talk: list[Message], room: int) -> None:
    engine = ScriptedEngine()
    cut = await cut_to(engine, talk, room)
    left = list(cut.messages)
    places = [next(place for place, one in enumerate(talk) if one is message) for message in left]
    assert places == sorted(places) and len(left) + cut.dropped_messages == len(talk)
    counted = [await engine.count_tokens(some) for some in (talk, left)]
    assert cut.dropped_tokens == counted[0] - counted[1]

    gone = [message for place, message in enumerate(talk) if place not in places]
    assert not any(message.role in ("system", "developer") for message in gone)
    asked = [place for place, message in enumerate(talk) if message.role == "user"]
    kept_from = asked[-1] if asked else 0
    assert all(place in places for place in range(kept_from, len(talk))), "the last question and what follows stays"
    answered = {message.tool_call_id for message in left if message.role == "tool"}
    called = {call["id"] for message in left for call in message.tool_calls or ()}
    assert answered == called, "a result stays with its call"

    droppable = [place for place in range(kept_from) if talk[place].role not in ("system", "developer")]
    first_left = next((place for place in droppable if place in places), None)
    if first_left is not None:
        assert counted[1] <= room, "as long as there is something to drop, it is made to fit"
        assert not any(place in places for place in droppable if place < first_left), "the oldest go first"
    if gone:
        assert counted[0] > room, "nothing is dropped without need"


LONG: Any = [
    {"role": "system", "content": "简短"},
    *({"role": role, "content": f"第{turn}句" + "长" * 200} for turn in range(3) for role in ("user", "assistant")),
    {"role": "user", "content": "最后"},
]
CUT = {"dropped_messages": 4, "dropped_tokens": 2 * (len("<user>第0句") + len("<assistant>第0句") + 400)}


@pytest.fixture
def engine() -> ScriptedEngine:
    return ScriptedEngine(n_ctx=600)


def test_the_cut_is_in_the_answer_and_in_the_last_event(gateway: Gateway, engine: ScriptedEngine) -> None:
    body = {"messages": LONG, "truncation": "auto", "max_tokens": 50}
    with gateway.http() as http:
        whole = http.post("/v1/chat/completions", json=body).json()
        streamed = http.post("/v1/chat/completions", json={**body, "stream": True}).text
    assert [message.text[:3] for message in engine.asked[0][0]] == ["简短", "第2句", "第2句", "最后"]
    assert whole["truncated"] == CUT and whole["notices"][0]["code"] == "truncated"
    assert '"dropped_messages":4' in streamed.split("\n\n")[-3], "the last chunk before [DONE]"


def test_in_the_other_dialects(gateway: Gateway, engine: ScriptedEngine) -> None:
    with gateway.http() as http:
        response = http.post(
            "/v1/responses", json={"input": LONG, "truncation": "auto", "max_output_tokens": 50}
        ).json()
        message = http.post("/v1/messages", json={"messages": LONG, "truncation": "auto", "max_tokens": 50}).json()
    assert response["truncated"] == message["truncated"] == CUT and response["truncation"] == "auto"


def test_nothing_is_cut_that_fits_or_that_did_not_ask(gateway: Gateway, engine: ScriptedEngine) -> None:
    with gateway.http() as http:
        short = http.post("/v1/chat/completions", json={"messages": LONG[-1:], "truncation": "auto"}).json()
        http.post("/v1/chat/completions", json={"messages": LONG})
    assert "truncated" not in short and len(engine.asked[1][0]) == len(LONG)


def test_the_answers_that_live_in_the_server_say_it_too(gateway: Gateway, engine: ScriptedEngine) -> None:
    with gateway.client() as client:
        shape = client.generate({"messages": LONG, "truncation": "auto", "max_tokens": 50})
        events = list(client.follow_generation(shape["id"]))
    told = next(event for event in events if event["type"] == "notice")
    assert told["code"] == "truncated" and told["dropped_messages"] == 4
