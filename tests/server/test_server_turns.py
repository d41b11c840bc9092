"""Trees of turns over HTTP: edited turns and answers, branches, answers that begin with given words."""

from typing import Any

import pytest
from served import Gateway

from fakes import ScriptedEngine, spoken
from mofang.client import ApiError, Client
from mofang.errors import Invalid
from mofang.messages import Delta, Message


def said(client: Client, conversation: str, text: str | None = None, **fields: Any) -> dict[str, Any]:
    """A turn and its answer, both over; returns the generation."""
    turns = [] if text is None else [{"role": "user", "content": text}]
    shape = client.generate({"conversation_id": conversation, "messages": turns, **fields})
    assert list(client.follow_generation(shape["id"]))[-1]["type"] == "done"
    return client.generation(shape["id"])


def tree(client: Client, conversation: str) -> dict[str, dict[str, Any]]:
    return {message["id"]: message for message in client.conversation(conversation)["messages"]}


def test_an_edited_turn_is_a_branch_and_the_old_one_stays(gateway: Gateway, engine: ScriptedEngine) -> None:
    with gateway.client() as client:
        home = client.create_conversation()["id"]
        first = said(client, home, "一问")
        second = said(client, home, "二问")
        before = tree(client, home)
        edited = said(client, home, "改了的二问", parent_id=first["message_id"])
        from_root = said(client, home, "另一个一问", parent_id="root")
        after = tree(client, home)
    assert {name: after[name] for name in before} == before, "nothing that was said has changed"
    siblings = [one["content"] for one in after.values() if one["parent_id"] == first["message_id"]]
    assert siblings == ["二问", "改了的二问"]
    assert [one["content"] for one in after.values() if one["parent_id"] is None] == ["一问", "另一个一问"]
    asked = [[message.text for message in messages] for messages, _ in engine.asked[2:]]
    assert asked == [["一问", "一问", "改了的二问"], ["另一个一问"]]
    assert after[edited["message_id"]]["status"] == after[from_root["message_id"]]["status"] == "done"
    assert after[second["message_id"]]["n_ctx"] == 4096 and after[second["message_id"]]["finish_reason"] == "stop"


def test_any_answer_is_given_again(gateway: Gateway) -> None:
    with gateway.client() as client:
        home = client.create_conversation()["id"]
        first = said(client, home, "一问")
        said(client, home, "二问")
        question = tree(client, home)[first["message_id"]]["parent_id"]
        again = said(client, home, parent_id=question)
        versions = [one["id"] for one in tree(client, home).values() if one["parent_id"] == question]
    assert versions == [first["message_id"], again["message_id"]]


def test_a_persons_version_of_an_answer(gateway: Gateway, engine: ScriptedEngine) -> None:
    with gateway.client() as client:
        client.create_knowledge("手册")
        client.follow_job(client.add_documents("手册", [("一.md", "一二三".encode())])["id"])
        home = client.create_conversation(knowledge=["手册"])["id"]
        first = said(client, home, "一问")
        old = tree(client, home)[first["message_id"]]
        mine = client.add_message(home, "我改的回答", edits=old["id"])
        assert (mine["role"], mine["parent_id"], mine["content"]) == ("assistant", old["parent_id"], "我改的回答")
        assert mine["edits"] == old["id"] and mine["status"] == "done" and mine["generation_id"] is None
        assert mine["sources"] == old["sources"] != [] and mine["usage"] is None
        assert tree(client, home)[old["id"]] == old
        said(client, home, "接着", parent_id=mine["id"], knowledge=[])
    assert [message.text for message in engine.asked[-1][0]] == ["一问", "我改的回答", "接着"]


def test_messages_are_placed_like_turns(gateway: Gateway) -> None:
    with gateway.client() as client:
        home = client.create_conversation()["id"]
        first = client.add_message(home, "一", role="user")
        second = client.add_message(home, "二", role="assistant")
        root = client.add_message(home, "另起", role="user", parent_id="root")
        below = client.add_message(home, "三", role="user", parent_id=first["id"])
        assert [one["parent_id"] for one in (first, second, root, below)] == [None, first["id"], None, first["id"]]
        assert client.conversation(home)["title"] == "一"


def test_a_conversation_that_the_model_begins(gateway: Gateway, engine: ScriptedEngine) -> None:
    with gateway.client() as client:
        home = client.create_conversation(greeting="你好，我是小坊。")
        [greeting] = home["messages"]
        assert (greeting["role"], greeting["parent_id"], greeting["content"]) == ("assistant", None, "你好，我是小坊。")
        said(client, home["id"], "你会什么？")
    assert [(one.role, one.text) for one in engine.asked[-1][0]] == [
        ("assistant", "你好，我是小坊。"),
        ("user", "你会什么？"),
    ]


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"content": "x"}, "message_without_place"),
        ({"content": "", "role": "user"}, "bad_field"),
        ({"content": "x", "role": "system"}, "bad_field"),
        ({"content": "x", "edits": "msg-x", "role": "user"}, "either_field"),
        ({"content": "x", "edits": "msg-x", "parent_id": "root"}, "either_field"),
        ({"content": "x", "edits": "msg-x"}, "message_not_found"),
        ({"content": "x", "role": "user", "parent_id": "msg-x"}, "message_not_found"),
    ],
)
def test_messages_that_cannot_be(gateway: Gateway, body: dict[str, Any], code: str) -> None:
    with gateway.client() as client:
        home = client.create_conversation()["id"]
        with pytest.raises(ApiError) as caught:
            client.request("POST", f"/v1/conversations/{home}/messages", body)
        assert caught.value.code == code and client.conversation(home)["messages"] == []


def test_an_answer_under_way_is_neither_edited_nor_followed(gateway: Gateway, engine: ScriptedEngine) -> None:
    hold = gateway.event()
    engine.script = [Delta("写到"), hold, *spoken("完")]
    with gateway.client() as client:
        home = client.create_conversation()["id"]
        shape = client.generate({"conversation_id": home, "messages": [{"role": "user", "content": "问"}]})
        for place in ({"edits": shape["message_id"]}, {"role": "user"}):
            with pytest.raises(ApiError) as caught:
                client.add_message(home, "x", **place)
            assert caught.value.code == "still_answering"
        gateway.release(hold)
        assert list(client.follow_generation(shape["id"]))[-1]["type"] == "done"


# ---- how an answer begins ----


def test_an_answer_begins_as_it_is_told(gateway: Gateway, engine: ScriptedEngine) -> None:
    engine.script = spoken("是模坊。")
    with gateway.client() as client:
        home = client.create_conversation(system="简短")["id"]
        shape = said(client, home, "你是谁？", prefix="我叫小坊，", temperature=0.5, enable_thinking=False)
        events = list(client.follow_generation(shape["id"]))
        assert shape["content"] == "我叫小坊，是模坊。" == tree(client, home)[shape["message_id"]]["content"]
        assert next(event["content"] for event in events if event["type"] == "delta") == "我叫小坊，"
        prompt, sampling = engine.asked[-1]
        assert prompt == "<system>简短<user>你是谁？我叫小坊，", "what the template makes of it, and on from there"
        assert 0 < shape["first_token_ms"] < 10_000
        assert sampling.temperature == 0.5 and "chat_template_kwargs" not in sampling.options
        assert shape["usage"]["completion_tokens"] == 4, "what the model wrote"


def test_a_cut_answer_is_continued_as_a_version_of_it(gateway: Gateway, engine: ScriptedEngine) -> None:
    engine.script = spoken("写到一", finish="length")
    with gateway.client() as client:
        home = client.create_conversation()["id"]
        cut = said(client, home, "写", max_tokens=3)
        old = tree(client, home)[cut["message_id"]]
        assert old["finish_reason"] == "length"
        engine.script = spoken("半，完。")
        whole = said(client, home, parent_id=old["parent_id"], prefix=old["content"])
        assert whole["content"] == "写到一半，完。" and tree(client, home)[old["id"]] == old
        engine.script = None
        said(client, home, "接着")
    assert [message.text for message in engine.asked[-1][0]] == ["写", "写到一半，完。", "接着"]


def test_stopped_before_the_first_token_it_has_its_beginning(gateway: Gateway, engine: ScriptedEngine) -> None:
    engine.script = [gateway.event()]
    with gateway.client() as client:
        shape = client.generate({"messages": [{"role": "user", "content": "问"}], "prefix": "答："})
        events = client.follow_generation(shape["id"])
        assert [next(events)["type"] for _ in range(2)] == ["queued", "delta"]
        client.stop_generation(shape["id"])
        stopped = client.generation(shape["id"])
        assert stopped["content"] == "答：" and "first_token_ms" not in stopped, (
            "what was given is no word of the model's"
        )


def test_a_conversations_own_beginning_and_a_requests(gateway: Gateway, engine: ScriptedEngine) -> None:
    with gateway.client() as client:
        home = client.create_conversation(prefix="好的，")["id"]
        assert client.conversation(home)["prefix"] == "好的，"
        assert said(client, home, "一")["content"].startswith("好的，")
        assert said(client, home, "二", prefix="不，")["content"].startswith("不，")
        assert said(client, home, "三", prefix="")["content"] == "三"
        assert client.change_conversation(home, prefix="")["prefix"] == ""
        assert said(client, home, "四")["content"] == "四"


def test_thoughts_are_over_where_an_answer_has_begun(
    gateway: Gateway, engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def thinking(messages: Any, template_kwargs: Any = None, *, options: Any = None) -> str:
        return "<assistant>\n<think>\n"

    monkeypatch.setattr(engine, "render", thinking)
    with gateway.client() as client:
        shape = client.generate({"messages": [{"role": "user", "content": "问"}], "prefix": "答"})
        list(client.follow_generation(shape["id"]))
    assert engine.asked[-1][0] == "<assistant>\n<think>\n\n</think>\n\n答"


def test_an_engine_that_cannot_begin_says_so(
    gateway: Gateway, engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def none(messages: list[Message], template_kwargs: Any = None, *, options: Any = None) -> str:
        raise Invalid("engine.remote_has_no", model="echo", url="http://x/v1", what="apply-template")

    monkeypatch.setattr(engine, "render", none)
    with gateway.client() as client:
        shape = client.generate({"messages": [{"role": "user", "content": "问"}], "prefix": "答"})
        last = list(client.follow_generation(shape["id"]))[-1]
    assert last["type"] == "error" and last["error"]["code"] == "remote_has_no"


@pytest.mark.parametrize(
    "other",
    [
        {"tools": [{"type": "function", "function": {"name": "f"}}]},
        {"response_format": {"type": "json_object"}},
        {"grammar": 'root ::= "a"'},
        {"logprobs": True},
    ],
)
def test_a_beginning_and_a_form_do_not_go_together(gateway: Gateway, other: dict[str, Any]) -> None:
    with gateway.client() as client, pytest.raises(ApiError) as caught:
        client.generate({"messages": [{"role": "user", "content": "问"}], "prefix": "答", **other})
    assert caught.value.code == "either_field"
