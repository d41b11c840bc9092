"""Alive, ready, what this machine is; and the event log on its own."""

import asyncio
import shutil
from typing import Any

import pytest
from served import Gateway

from fakes import FakePool, ScriptedEngine, install_model
from mofang.client import ApiError
from mofang.messages import Progress
from mofang.server.events import EventLog, thinned
from mofang.server.jobs import KEPT, Jobs
from mofang.settings import Settings


def test_ready(gateway: Gateway) -> None:
    with gateway.client() as client:
        assert client.ready() == {"ready": True, "chat_model": "echo", "embedding_model": "hash", "missing": []}


def test_what_is_missing_is_named(gateway: Gateway) -> None:
    models = gateway.backend.settings.home / "models"
    shutil.rmtree(models / "hash")
    with gateway.client() as client:
        assert client.ready()["missing"] == ["embedding_model"], "a chat needs no embedder"
        shutil.rmtree(models / "echo")
        with pytest.raises(ApiError) as caught:
            client.ready()
    assert caught.value.status == 503
    assert caught.value.fault["chat_model"] is None and caught.value.code == "no_model_installed"
    assert "mofang" in caught.value.hint()


def test_several_models_and_none_chosen_is_not_ready(gateway: Gateway) -> None:
    install_model(gateway.backend.settings.home, "echo2")
    with gateway.client() as client, pytest.raises(ApiError) as caught:
        client.ready()
    assert caught.value.status == 503 and caught.value.code == "which_model"
    assert caught.value.fault["chat_model"] is None and caught.value.fault["embedding_model"] == "hash"


def test_the_system_page(gateway: Gateway, pool: FakePool) -> None:
    pool.in_memory.append("echo")
    with gateway.client() as client:
        system = client.system()
    assert system["machine"]["cores"] >= 1 and system["memory"]["total"] > 1e8 and system["disk_free_bytes"] > 0
    assert [engine["model"] for engine in system["engines"]] == ["echo"]
    assert system["settings"]["n_ctx"] == 8192 and system["settings"]["api_key"] is False
    assert system["versions"]["mofang"] and system["running"] == {"generations": 0, "jobs": 0}
    assert system["waiting"] == {}


def test_a_pull_is_a_job(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    hold = gateway.event()
    asked: list[Any] = []

    async def pull(name: str, kind: str, source: str | None, progress: Any) -> Any:
        asked.append((name, kind, source))
        for done in range(1000):
            progress(Progress("download", done, 1000, "bytes", rate=10.0))
        await hold.wait()
        return await asyncio.to_thread(gateway.backend.models.get, "echo")

    monkeypatch.setattr(gateway.backend, "pull", pull)
    with gateway.client() as client:
        job = client.pull("小模型", source="pypi")
        assert client.pull("小模型")["id"] == job["id"], "the same pull is not started twice"
        gateway.release(hold)
        events = list(client.follow_job(job["id"]))
        assert client.job(job["id"])["progress"]["done"] == 999
    assert asked == [("小模型", "chat", "pypi")]
    assert len(events) < 20, "a thousand reports are not a thousand events"
    assert events[0]["seconds_left"] == 100.0
    assert events[-1]["type"] == "done" and events[-1]["result"]["id"] == "echo"


def test_a_pull_that_fails(gateway: Gateway) -> None:
    with gateway.client(lang="en") as client:
        job = client.pull("no-such-model")
        last = list(client.follow_job(job["id"]))[-1]
        assert client.job(job["id"])["status"] == "error"
    assert (
        last["type"] == "error" and last["error"]["code"] == "not_in_catalogue" and last["error"]["message"].isascii()
    )


async def test_old_jobs_are_forgotten_running_ones_not(settings: Settings) -> None:
    jobs = Jobs(settings, settings.home / "jobs.json", {})
    hold = asyncio.Event()

    async def wait(_: Any) -> None:
        await hold.wait()

    async def nothing(_: Any) -> str:
        return "好"

    running = jobs.start("pull", "长", wait, lang="zh")
    for number in range(KEPT + 20):
        done = jobs.start("pull", str(number), nothing, lang="zh")
        await asyncio.wait({done.task} if done.task else set())
    assert running in jobs.all() and len(jobs.all()) <= KEPT + 2
    await jobs.close()
    assert running.status == "stopped"


# ---- the event log ----


async def test_every_follower_sees_everything_from_where_it_wants() -> None:
    log = EventLog()

    async def follow(after: int) -> list[int]:
        return [seq async for seq, _ in log.follow(after)]

    log.append({"n": 0})
    followers = [asyncio.create_task(follow(after)) for after in (-1, 0, 3)]
    for number in range(1, 6):
        await asyncio.sleep(0)
        assert log.append({"n": number}) == number
    log.close()
    assert [await follower for follower in followers] == [[0, 1, 2, 3, 4, 5], [1, 2, 3, 4, 5], [4, 5]]
    assert await follow(-1) == [0, 1, 2, 3, 4, 5] and await follow(5) == []


async def test_a_follower_that_leaves_holds_nothing_up() -> None:
    log = EventLog()
    leaving = log.follow()
    log.append({"n": 0})
    assert await anext(leaving) == (0, {"n": 0})
    await leaving.aclose()
    log.append({"n": 1})
    log.close()
    assert [seq async for seq, _ in log.follow()] == [0, 1]


def test_progress_is_thinned_but_stages_and_ends_pass() -> None:
    told: list[Progress] = []
    tell = thinned(told.append)
    for stage in ("download", "check"):
        for done in range(101):
            tell(Progress(stage, done, 100))
    assert [(p.stage, p.done) for p in told] == [("download", 0), ("download", 100), ("check", 0), ("check", 100)]


def test_engines_see_their_requests_end(gateway: Gateway, engine: ScriptedEngine) -> None:
    with gateway.http() as http:
        for _ in range(5):
            http.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": "好"}]})
    assert engine.open == 0 and engine.closed_early == 0
