"""Answers that outlive who asked, over HTTP with our own client."""

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from served import Gateway, serving, wait_until

from fakes import FakeLibrary, FakePool, HashEmbedder, ScriptedEngine, engine_died, spoken
from mofang.client import ApiError
from mofang.messages import Delta, Progress
from mofang.server.backend import LocalBackend
from mofang.server.generate import SAVE_EVERY_S
from mofang.server.store import Store
from mofang.settings import Settings

HI = [{"role": "user", "content": "你好🙂"}]


def text_of(events: list[dict[str, Any]]) -> str:
    return "".join(event["content"] for event in events if event["type"] == "delta")


def test_an_answer_from_its_first_event_to_its_last(gateway: Gateway, pool: FakePool, engine: ScriptedEngine) -> None:
    pool.loading = [Progress("load", 1, 2, "bytes"), Progress("load", 2, 2, "bytes")]
    engine.script = [Delta(progress=Progress("prompt", 3, 7, "tokens")), *spoken("你好，人")]
    with gateway.client() as client:
        shape = client.generate({"messages": HI, "model": "auto"})
        events = list(client.follow_generation(shape["id"]))
        kept = client.generation(shape["id"])
    assert shape["object"] == "generation" and shape["status"] == "queued" and shape["conversation_id"] is None
    assert [event["type"] for event in events] == ["queued", "loading", "loading", "prompt", *["delta"] * 4, "done"]
    assert [event["seq"] for event in events] == list(range(len(events)))
    assert events[1]["progress"]["total"] == 2 and events[3]["done"] == 3
    last = events[-1]
    assert last["finish_reason"] == "stop" and last["usage"]["completion_tokens"] == 4
    assert last["timings"]["predicted_ms"] == 100.0 and last["message_id"] == shape["message_id"]
    assert kept["content"] == text_of(events) == "你好，人" and kept["status"] == "done" and kept["model"] == "echo"


def test_two_watchers_and_one_who_comes_late(gateway: Gateway, engine: ScriptedEngine) -> None:
    halfway, rest = gateway.event(), gateway.event()
    engine.script = [Delta("前"), Delta("半"), halfway, Delta("后"), rest, *spoken("半")]
    with gateway.client() as client:
        shape = client.generate({"messages": HI})
    seen: dict[str, list[Any]] = {"first": [], "second": []}

    def watch(name: str, after: int) -> None:
        with gateway.client() as client:
            seen[name].extend(client.follow_generation(shape["id"], after))

    watchers = [threading.Thread(target=watch, args=pair) for pair in (("first", -1), ("second", 1))]
    for watcher in watchers:
        watcher.start()
    wait_until(lambda: engine.open == 1)
    gateway.release(halfway)
    with gateway.client() as late:
        events = late.follow_generation(shape["id"])
        assert [next(events)["type"] for _ in range(4)] == ["queued", "delta", "delta", "delta"]
        gateway.release(rest)
        rest_of_them = list(events)
    for watcher in watchers:
        watcher.join(timeout=10)
    assert text_of(seen["first"]) == "前半后半" and seen["first"][-1]["type"] == "done"
    assert [event["seq"] for event in seen["second"]] == [event["seq"] for event in seen["first"]][2:]
    assert rest_of_them == seen["first"][4:]


def test_the_log_is_the_same_after_the_end(gateway: Gateway) -> None:
    with gateway.client() as client:
        shape = client.generate({"messages": HI})
        live = list(client.follow_generation(shape["id"]))
        assert list(client.follow_generation(shape["id"])) == live
        assert list(client.follow_generation(shape["id"], after=2)) == live[3:]
        assert list(client.follow_generation(shape["id"], after=99)) == []


def test_it_goes_on_when_everybody_left(gateway: Gateway, engine: ScriptedEngine) -> None:
    hold = gateway.event()
    engine.script = [Delta("甲"), hold, *spoken("乙")]
    with gateway.client() as client:
        shape = client.generate({"messages": HI})
        with client.stream("GET", f"/v1/generations/{shape['id']}/events") as events:
            next(events)
    gateway.release(hold)
    with gateway.client() as client:
        wait_until(lambda: client.generation(shape["id"])["status"] == "done")
        assert client.generation(shape["id"])["content"] == "甲乙"


def test_stop_keeps_the_text(gateway: Gateway, engine: ScriptedEngine) -> None:
    engine.script = [Delta("写到"), Delta("一半"), gateway.event()]
    with gateway.client() as client:
        shape = client.generate({"messages": HI})
        wait_until(lambda: client.generation(shape["id"])["content"] == "写到一半")
        assert client.generation(shape["id"])["status"] == "running"
        client.stop_generation(shape["id"])
        assert engine.open == 0 and engine.closed_early == 1, "stopped when the call returns"
        kept = client.generation(shape["id"])
        assert (kept["status"], kept["content"]) == ("stopped", "写到一半")
        assert list(client.follow_generation(shape["id"]))[-1]["type"] == "stopped"
        client.stop_generation(shape["id"])
        assert client.generation(shape["id"])["status"] == "stopped", "stopping twice changes nothing"


def test_an_engine_that_dies_leaves_the_text_and_says_so(gateway: Gateway, engine: ScriptedEngine) -> None:
    engine.script = [Delta("半句"), engine_died()]
    with gateway.client(lang="en") as client:
        shape = client.generate({"messages": HI})
        events = list(client.follow_generation(shape["id"]))
        kept = client.generation(shape["id"])
    assert events[-1]["type"] == "error" and events[-1]["error"]["code"] == "cut_answer"
    assert events[-1]["error"]["message"].isascii(), "in the language of who asked"
    assert (kept["status"], kept["content"], kept["error"]["code"]) == ("error", "半句", "cut_answer")


def test_an_error_before_the_first_token(gateway: Gateway) -> None:
    with gateway.client() as client:
        shape = client.generate({"messages": HI, "model": "没有的"})
        events = list(client.follow_generation(shape["id"]))
    assert [event["type"] for event in events] == ["queued", "error"]
    assert events[-1]["error"]["code"] == "model_not_found"


def test_unknown_ids(gateway: Gateway) -> None:
    with gateway.client() as client:
        for call in (client.generation, client.stop_generation, lambda x: list(client.follow_generation(x))):
            with pytest.raises(ApiError) as caught:
                call("gen-none")
            assert caught.value.status == 404 and caught.value.code == "generation_not_found"


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"messages": HI, "n": 2}, "one_answer"),
        ({"messages": HI, "parent_id": "msg-x"}, "parent_needs_conversation"),
        ({"messages": []}, "nothing_to_answer"),
        ({"messages": HI, "conversation_id": "conv-x"}, "conversation_not_found"),
    ],
)
def test_what_cannot_be_generated(gateway: Gateway, body: dict[str, Any], code: str) -> None:
    with gateway.client() as client, pytest.raises(ApiError) as caught:
        client.generate(body)
    assert caught.value.code == code


# ---- in a conversation ----


def test_a_conversation_grows(gateway: Gateway, engine: ScriptedEngine) -> None:
    with gateway.client() as client:
        home = client.create_conversation(system="请用文言", sampling={"temperature": 0.25})["id"]
        first = client.generate({"conversation_id": home, "messages": HI, "max_tokens": 50})
        list(client.follow_generation(first["id"]))
        second = client.generate({"conversation_id": home, "messages": [{"role": "user", "content": "再来"}]})
        list(client.follow_generation(second["id"]))
        kept = client.conversation(home)
        assert [c["id"] for c in client.conversations()] == [home]
    messages, sampling = engine.asked[-1]
    assert [(m.role, m.text) for m in messages] == [
        ("system", "请用文言"),
        ("user", "你好🙂"),
        ("assistant", "你好🙂"),
        ("user", "再来"),
    ]
    assert sampling.temperature == 0.25 and engine.asked[0][1].max_tokens == 50
    assert kept["title"] == "你好🙂" and kept["running_generation_id"] is None
    chain = [m["parent_id"] for m in kept["messages"]]
    assert chain == [None, *(m["id"] for m in kept["messages"][:-1])]
    assert kept["messages"][1]["usage"]["completion_tokens"] == 3 and kept["messages"][1]["status"] == "done"


def test_the_request_wins_over_the_conversation(gateway: Gateway, engine: ScriptedEngine) -> None:
    with gateway.client() as client:
        home = client.create_conversation(system="甲", model="没有的", sampling={"temperature": 0.25, "top_k": 3})["id"]
        body = {"conversation_id": home, "messages": HI, "model": "echo", "temperature": 1.0, "system": "乙"}
        list(client.follow_generation(client.generate(body)["id"]))
    messages, sampling = engine.asked[0]
    assert (messages[0].text, sampling.temperature, sampling.top_k) == ("乙", 1.0, 3)


def test_regenerate_makes_a_sibling(gateway: Gateway, engine: ScriptedEngine) -> None:
    with gateway.client() as client:
        home = client.create_conversation()["id"]
        first = client.generate({"conversation_id": home, "messages": HI})
        list(client.follow_generation(first["id"]))
        turn = first["user_message_ids"][0]
        again = client.generate({"conversation_id": home, "parent_id": turn, "messages": [], "seed": 5})
        list(client.follow_generation(again["id"]))
        kept = client.conversation(home)
    assert again["user_message_ids"] == []
    assert [m["id"] for m in kept["messages"] if m["parent_id"] == turn] == [first["message_id"], again["message_id"]]
    assert engine.asked[1][1].seed == 5 and [m.text for m in engine.asked[1][0]] == ["你好🙂"]


def test_a_running_conversation_says_so_and_waits(gateway: Gateway, engine: ScriptedEngine) -> None:
    engine.script = [Delta("一"), gateway.event()]
    with gateway.client() as client:
        home = client.create_conversation()["id"]
        first = client.generate({"conversation_id": home, "messages": HI})
        assert client.conversation(home)["running_generation_id"] == first["id"]
        with pytest.raises(ApiError) as caught:
            client.generate({"conversation_id": home, "messages": HI})
        assert caught.value.status == 409 and first["id"] in caught.value.hint()
        client.delete_conversation(home)
        assert engine.open == 0, "deleting a conversation ends its answer"
        with pytest.raises(ApiError):
            client.conversation(home)


def test_change_and_refuse(gateway: Gateway) -> None:
    with gateway.client() as client:
        home = client.create_conversation(title="旧")["id"]
        assert client.change_conversation(home, title="新", knowledge=["手册"])["title"] == "新"
        assert client.change_conversation(home, knowledge=[])["knowledge"] == []
        for fields, param in (
            ({"sampling": {"temprature": 1}}, "sampling.temprature"),
            ({"sampling": {"temperature": 99}}, "sampling.temperature"),
            ({"titel": "x"}, "titel"),
        ):
            with pytest.raises(ApiError) as caught:
                client.change_conversation(home, **fields)
            assert caught.value.fault["param"] == param
        with pytest.raises(ApiError):
            client.change_conversation("conv-none", title="x")


def test_an_answer_from_documents(gateway: Gateway, engine: ScriptedEngine, library: FakeLibrary) -> None:
    engine.script = spoken("见[1]")
    with gateway.client() as client:
        client.create_knowledge("手册")
        job = client.add_documents("手册", [("甲.txt", "你好，模坊".encode())])
        list(client.follow_job(job["id"]))
        home = client.create_conversation(knowledge=["手册"])["id"]
        events = list(
            client.follow_generation(client.generate({"conversation_id": home, "messages": HI, "model": "echo"})["id"])
        )
        message = client.conversation(home)["messages"][-1]
    kinds = [event["type"] for event in events]
    assert kinds[:3] == ["queued", "sources", "notice"] and kinds[-1] == "done"
    assert events[1]["sources"][0]["cited"] is False
    assert [s["cited"] for s in events[-1]["sources"]] == [True] == [s["cited"] for s in message["sources"]]
    assert message["sources"][0]["title"] == "甲.txt"


# ---- the end of a process ----


def test_partial_text_is_saved_while_it_grows(gateway: Gateway, engine: ScriptedEngine) -> None:
    engine.script = [Delta("已写"), gateway.event()]
    with gateway.client() as client:
        shape = client.generate({"messages": HI})
        wait_until(lambda: engine.open == 1)
        started = time.monotonic()
        stored = gateway.backend.store.generation
        wait_until(lambda: stored(shape["id"])["content"] == "已写")
        assert time.monotonic() - started < SAVE_EVERY_S + 0.5 <= 1.0
        assert stored(shape["id"])["status"] == "running"


def test_a_shutdown_ends_answers_explicitly(settings: Settings, library: FakeLibrary) -> None:
    engine = ScriptedEngine()
    with serving(LocalBackend(settings, engines=FakePool(engine), library=library)) as gateway:
        engine.script = [Delta("没写完"), gateway.event()]
        with gateway.client() as client:
            shape = client.generate({"messages": HI})
            wait_until(lambda: client.generation(shape["id"])["content"] == "没写完")
    assert engine.open == 0
    store = Store(settings.home / "server.db")
    kept = store.generation(shape["id"])
    assert (kept["status"], kept["error"]["code"], kept["content"]) == ("error", "interrupted", "没写完")
    store.close()


def test_streams_are_told_that_the_gateway_ends(settings: Settings, library: FakeLibrary) -> None:
    engine = ScriptedEngine()
    told: dict[str, Any] = {}

    def chat(stream: bool) -> None:
        body = {"messages": HI, "stream": stream}
        with gateway.http() as http, http.stream("POST", "/v1/chat/completions", json=body) as answer:
            lines = [line for line in answer.iter_lines() if line]
            told["stream" if stream else "whole"] = json.loads(lines[-1].removeprefix("data: "))

    def watch() -> None:
        with gateway.client(lang="en") as client:
            told["watch"] = list(client.follow_generation(shape["id"]))[-1]

    with serving(LocalBackend(settings, engines=FakePool(engine), library=library)) as gateway:
        engine.script = [Delta("没写完"), gateway.event()]
        with gateway.client() as client:
            shape = client.generate({"messages": HI})
        threads = [threading.Thread(target=chat, args=(stream,)) for stream in (True, False)]
        threads.append(threading.Thread(target=watch))
        for thread in threads:
            thread.start()
        wait_until(lambda: engine.open == 3)
        time.sleep(0.2)
    for thread in threads:
        thread.join(timeout=5)
    assert engine.open == 0
    assert told["stream"]["error"]["code"] == told["whole"]["error"]["code"] == "interrupted"
    assert told["watch"]["type"] == "error" and told["watch"]["error"]["code"] == "interrupted"


def test_after_a_kill_the_next_start_owns_up(settings: Settings, library: FakeLibrary) -> None:
    store = Store(settings.home / "server.db")  # a process that was killed leaves just this
    home = store.create_conversation({"title": "旧"})["id"]
    from mofang.messages import Message

    begun, _ = store.begin(model="echo", turns=[Message("user", "问")], conversation_id=home, parent_id=None)
    store.save_partial(begun["id"], {"content": "写到一半"})
    store.close()
    (settings.home / "uploads" / "upload-left").mkdir(parents=True)
    pool = FakePool(ScriptedEngine(), HashEmbedder())
    with serving(LocalBackend(settings, engines=pool, library=library)) as gateway, gateway.client() as client:
        kept = client.generation(begun["id"])
        fresh = list(client.follow_generation(begun["id"]))
        back = list(client.follow_generation(begun["id"], after=57))
        message = client.conversation(home)["messages"][-1]
        assert not Path(settings.home, "uploads", "upload-left").exists()
    assert kept["status"] == "error" and kept["error"]["code"] == "interrupted"
    assert [event["type"] for event in fresh] == ["delta", "error"] and fresh[0]["content"] == "写到一半"
    assert [event["type"] for event in back] == ["error"], "a watcher who had the text gets its end only"
    assert (message["content"], message["status"]) == ("写到一半", "error")
