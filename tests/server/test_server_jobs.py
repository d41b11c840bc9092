"""A pull that is paused: what it has brought stays, it goes on where it was, also in the gateway that comes after."""

import asyncio
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from served import Gateway, serving, wait_until

from fakes import FakePool
from mofang.client import ApiError, Client
from mofang.messages import Progress
from mofang.models.store import ModelStore
from mofang.server.backend import LocalBackend
from mofang.settings import Settings
from stand_in import Hub, tiny_gguf

MIB = 1 << 20
FILE = "m.gguf"


class Pulls:
    """Stands in for the backend's pull: never ends, and notes what was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, str | None]] = []

    async def __call__(self, name: str, kind: str, source: str | None, progress: Any) -> Any:
        self.asked.append((name, kind, source))
        progress(Progress("download", 300, 1000, "bytes", rate=10.0))
        await asyncio.Event().wait()


@pytest.fixture
def pulls(backend: LocalBackend, monkeypatch: pytest.MonkeyPatch) -> Pulls:
    pulls = Pulls()
    monkeypatch.setattr(backend, "pull", pulls)
    return pulls


@pytest.fixture
def client(gateway: Gateway) -> Iterator[Client]:
    with gateway.client() as client:
        yield client


def begun(client: Client, *names: str, **options: Any) -> list[dict[str, Any]]:
    jobs = [client.pull(name, **options) for name in names]
    wait_until(lambda: all(client.job(job["id"])["progress"] for job in jobs))
    return jobs


def test_paused_and_gone_on_with(client: Client, pulls: Pulls) -> None:
    (job,) = begun(client, "小模型", source="pypi")
    assert job["pausable"] and client.pause_job(job["id"])["status"] == "paused"
    paused = client.job(job["id"])
    assert (paused["status"], paused["progress"]["done"], paused["error"]) == ("paused", 300, None)
    assert client.pause_job(job["id"])["status"] == "paused", "twice is once"
    assert client.system()["running"]["jobs"] == 0
    assert client.resume_job(job["id"])["status"] == "running"
    wait_until(lambda: len(pulls.asked) == 2)
    assert client.resume_job(job["id"])["id"] == job["id"] and pulls.asked == [("小模型", "chat", "pypi")] * 2
    client.stop_job(job["id"])
    events = [event["type"] for event in client.follow_job(job["id"])]
    assert [one for one in events if one != "progress"] == ["paused", "resumed", "stopped"]


def test_the_same_pull_goes_on_rather_than_twice(client: Client, pulls: Pulls) -> None:
    (job,) = begun(client, "小模型")
    client.pause_job(job["id"])
    again = client.pull("小模型", source="huggingface")
    assert (again["id"], again["status"]) == (job["id"], "running")
    wait_until(lambda: len(pulls.asked) == 2)
    assert pulls.asked[-1] == ("小模型", "chat", "huggingface"), "from where it was last asked for"


def test_what_is_no_pull_or_has_ended_cannot_be_paused(client: Client, pulls: Pulls) -> None:
    client.create_knowledge("手册")
    other = client.add_documents("手册", [("甲.txt", "上海".encode())])
    list(client.follow_job(other["id"]))
    (job,) = begun(client, "小模型")
    client.stop_job(job["id"])
    for own in (job["id"], other["id"]):
        for call in (client.pause_job, client.resume_job, client.drop_job):
            with pytest.raises(ApiError) as caught:
                call(own)
            assert (caught.value.status, caught.value.code) == (409, "job_not_pausable")
    assert client.job(other["id"])["pausable"] is False


def test_a_paused_one_can_be_stopped(client: Client, pulls: Pulls) -> None:
    (job,) = begun(client, "小模型")
    client.pause_job(job["id"])
    client.stop_job(job["id"])
    assert client.job(job["id"])["status"] == "stopped"
    assert list(client.follow_job(job["id"]))[-1]["type"] == "stopped", "who follows it hears of the end"


def test_a_key_sees_no_pull_of_the_owner(gateway: Gateway, client: Client, pulls: Pulls) -> None:
    (job,) = begun(client, "小模型")
    with Client(gateway.url, client.create_key("小王")["key"]) as visitor:
        for call in (visitor.pause_job, visitor.resume_job, visitor.drop_job):
            with pytest.raises(ApiError) as caught:
                call(job["id"])
            assert caught.value.status == 404
    assert client.job(job["id"])["status"] == "running"


def test_after_a_restart_they_are_listed_and_go_on(settings: Settings, pool: FakePool) -> None:
    first, second = LocalBackend(settings, engines=pool), LocalBackend(settings, engines=pool)
    first.pull = pulls = Pulls()  # type: ignore[method-assign]
    with serving(first) as gateway, gateway.client() as client:
        paused, running, ended = begun(client, "甲", "乙", "丙")
        client.pause_job(paused["id"])
        client.stop_job(ended["id"])
    second.pull = pulls  # type: ignore[method-assign]
    with serving(second) as gateway, gateway.client() as client:
        told = {job["id"]: job for job in client.jobs()}
        assert set(told) == {paused["id"], running["id"]}, "what a gateway left is paused as well"
        for job in told.values():
            assert (job["status"], job["kind"], job["progress"]["done"]) == ("paused", "pull", 300)
        client.resume_job(paused["id"])
        wait_until(lambda: pulls.asked.count(("甲", "chat", None)) == 2)
        client.drop_job(running["id"])
        client.stop_job(paused["id"])
    assert json.loads((settings.home / "jobs.json").read_text()) == []


def test_a_broken_list_of_them_is_told_of_and_nothing_fails(
    settings: Settings, pool: FakePool, caplog: pytest.LogCaptureFixture
) -> None:
    (settings.home / "jobs.json").write_text('[{"kind": "pull"')
    with caplog.at_level(logging.WARNING), serving(LocalBackend(settings, engines=pool)) as gateway:
        with gateway.client() as client:
            assert client.jobs() == []
    assert "jobs.json" in caplog.text


def test_the_part_stays_and_the_rest_is_brought(home: Path, tmp_path: Path, pool: FakePool) -> None:
    """With a hub that holds the line, as a slow one does."""
    content = tiny_gguf(tmp_path / FILE, weights_bytes=4 * MIB).read_bytes()
    with Hub({FILE: content}, pace_s=0.02) as hub:
        settings = Settings(home=home, port=0)
        source = f"{hub.url}/cdn/{FILE}"
        with serving(LocalBackend(settings, engines=pool)) as gateway, gateway.client() as client:
            job = client.pull("小", source=source)
            wait_until(lambda: bool((client.job(job["id"])["progress"] or {}).get("done")))
            client.pause_job(job["id"])
            (part,) = (home / "models" / ".staging" / "小").rglob("*.part")
            kept = part.stat().st_size
            assert 0 < kept < len(content)
            client.resume_job(job["id"])
            assert list(client.follow_job(job["id"]))[-1]["type"] == "done"
            assert hub.got("GET", "/cdn/")[-1]["range"] == f"bytes={kept}-"
            assert ModelStore(settings).get("小").path.read_bytes() == content
            other = client.pull("另一个", source=source)
            wait_until(lambda: bool((client.job(other["id"])["progress"] or {}).get("done")))
            client.drop_job(other["id"])
            assert not (home / "models" / ".staging" / "另一个").exists()
            assert client.job(other["id"])["status"] == "stopped"
