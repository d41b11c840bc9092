"""Two answers under one turn at the same time, also where memory holds only one of their models."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from served import Gateway, serving, wait_until

from fakes import install_model
from mofang.client import Client
from mofang.engine.pool import Pool
from mofang.models.base import MemoryEstimate, ModelRef
from mofang.models.store import ModelStore
from mofang.server.backend import LocalBackend
from mofang.settings import Settings

GB = 1_000_000_000
LONG = "慢慢说" * 20


class Sized(ModelStore):
    """Every model takes one gigabyte, whatever its slots."""

    def memory(self, ref: ModelRef, n_ctx: int, n_slots: int) -> MemoryEstimate:
        return MemoryEstimate(GB, 0, 0, GB)


def small(home: Path, budget_mb: int) -> LocalBackend:
    for name in ("one", "two"):
        install_model(home, name, echo={"delay_s": 0.02})
    settings = Settings(home=home, port=0, memory_budget_mb=budget_mb, n_slots=1)
    models = Sized(settings)
    return LocalBackend(settings, models=models, engines=Pool(settings, models))


@pytest.fixture
def gateway(home: Path) -> Iterator[Gateway]:
    """Room for one model."""
    with serving(small(home, 1500)) as running:
        yield running


@pytest.fixture
def client(gateway: Gateway) -> Iterator[Client]:
    with gateway.client() as client:
        yield client


def both(client: Client, text: str = LONG) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """A conversation, and the answers of both models that were just begun in it."""
    home = client.create_conversation(model="one", beside="two")["id"]
    first = client.generate({"conversation_id": home, "messages": [{"role": "user", "content": text}], "model": "one"})
    [turn] = first["user_message_ids"]
    second = client.generate({"conversation_id": home, "parent_id": turn, "messages": [], "model": "two"})
    return home, first, second


def test_they_take_turns_where_memory_holds_one(client: Client, gateway: Gateway) -> None:
    home, first, second = both(client)
    events = list(client.follow_generation(second["id"]))
    assert client.generation(first["id"])["status"] == "done", "the first was not cut off"
    kinds = [event["type"] for event in events if event["type"] != "loading"]
    assert kinds[:2] == ["queued", "queued"] and kinds[-1] == "done"
    question, *answers = client.conversation(home)["messages"]
    assert [one["parent_id"] for one in answers] == [question["id"]] * 2
    assert [(one["model"], one["status"], one["content"]) for one in answers] == [
        ("one", "done", LONG),
        ("two", "done", LONG),
    ]
    assert [info.model for info in gateway.backend.engines.loaded()] == ["two"], "the first has left memory for it"
    assert client.conversation(home)["running_generation_id"] is None


def test_one_that_waits_is_stopped_and_the_other_goes_on(client: Client) -> None:
    _, first, second = both(client)
    wait_until(lambda: client.generation(first["id"])["content"])
    client.stop_generation(second["id"])
    assert client.generation(second["id"])["status"] == "stopped"
    assert list(client.follow_generation(first["id"]))[-1]["type"] == "done"


def test_several_that_wait_do_not_wait_for_each_other(client: Client) -> None:
    home, first, _ = both(client)
    turn = client.conversation(home)["messages"][0]["id"]
    for model in ("one", "two", "one"):
        client.generate({"conversation_id": home, "parent_id": turn, "messages": [], "model": model})
    wait_until(lambda: client.conversation(home)["running_generation_id"] is None, timeout_s=30)
    answers = client.conversation(home)["messages"][1:]
    assert len(answers) == 5 and first["message_id"] == answers[0]["id"]
    assert {one["status"] for one in answers} == {"done"}


def test_together_where_there_is_room(home: Path) -> None:
    with serving(small(home, 2500)) as gateway, gateway.client() as client:
        _, first, second = both(client)
        wait_until(lambda: client.generation(first["id"])["content"] and client.generation(second["id"])["content"])
        assert {client.generation(one["id"])["status"] for one in (first, second)} == {"running"}
        client.stop_generation(first["id"])
        assert list(client.follow_generation(second["id"]))[-1]["type"] == "done"


def test_nothing_is_waited_for_where_nobody_answers(home: Path) -> None:
    with serving(small(home, 500)) as gateway, gateway.client() as client:
        _, first, second = both(client)
        codes = [list(client.follow_generation(one["id"]))[-1]["error"]["code"] for one in (first, second)]
    assert codes == ["model_too_large"] * 2


def test_the_second_model_is_a_choice_of_the_conversation(client: Client) -> None:
    home = client.create_conversation(beside="two")["id"]
    assert client.conversation(home)["beside"] == "two" and client.conversations()[0]["beside"] == "two"
    data = client.request("GET", f"/v1/conversations/{home}/export")
    [copy] = client.import_conversations(data)["data"]
    assert copy["beside"] == "two"
    assert client.change_conversation(home, beside="")["beside"] == ""
    assert client.create_conversation()["beside"] == ""
