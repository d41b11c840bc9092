"""Runs: a folder each, a process each that outlives its starter, and a truth that survives kill -9."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mofang import platform, runs
from mofang.errors import Conflict, Invalid, MissingExtra, NotFound, Unreadable
from mofang.platform import started_at
from mofang.recipes import parse
from mofang.recipes.sft import Sft
from mofang.runs import Run, Runs, Stopped, work


def recipe(**fields: object) -> Sft:
    return parse(Sft, {"base": "none", "data": ["none.jsonl"], **fields})


@pytest.fixture
def made(home: Path) -> Run:
    return Runs(home).create(recipe(name="我的 助手/x"))


def test_a_new_run_has_a_readable_id_and_its_recipe(made: Run, home: Path) -> None:
    assert made.id.startswith("我的-助手-x-")
    assert made.recipe() == recipe(name="我的 助手/x")
    state = made.state()
    assert (state.status, state.kind, state.title) == ("created", "sft", "我的 助手/x")
    ids = {Runs(home).create(recipe(name="same")).id for _ in range(5)}
    assert len(ids) == 5


def test_runs_are_found_by_beginning_newest_first(home: Path) -> None:
    first, second = (Runs(home).create(recipe(name=name)) for name in ("alpha", "beta"))
    found = Runs(home)
    assert [run.id for run in found.list()] == [second.id, first.id]
    assert found.get("al").id == first.id and found.get("last").id == second.id and found.get(first.id).id == first.id
    assert found.find("../runs") is None and found.find(first.id) is not None
    third = found.create(recipe(name="alps"))
    with pytest.raises(Invalid):
        found.get("al")
    with pytest.raises(NotFound) as raised:
        found.get("betta")
    assert second.id in raised.value.hint()
    found.remove(third.id)
    assert len(found.list()) == 2


def test_the_workers_life_is_written_down(made: Run) -> None:
    seen: list[str] = []

    def call(worker: str, told: object, run: Run) -> dict:
        seen.append(run.state().status)
        run.note("一句")
        run.note("一句")
        return {"model": "m"}

    assert work(made.folder, call) == 0
    state = made.state()
    assert (seen, state.status, state.result, state.notes) == (["running"], "done", {"model": "m"}, ["一句"])

    def stopping(*_: object) -> dict:
        raise Stopped

    assert work(made.folder, stopping) == 0 and made.state().status == "stopped"

    def failing(*_: object) -> dict:
        raise NotFound("models.no_such_file", path="/x")

    assert work(made.folder, failing) == 1
    state = made.state()
    assert state.status == "failed" and state.error["code"] == "no_such_file" and "/x" in state.error["message"]

    def breaking(*_: object) -> dict:
        raise ZeroDivisionError("1/0")

    with pytest.raises(ZeroDivisionError):
        work(made.folder, breaking)
    assert made.state().error["code"] == "worker_failed"


def test_a_process_that_is_gone_without_a_last_word_was_interrupted(made: Run) -> None:
    made.update(status="running", pid=os.getpid(), pid_started=started_at(os.getpid()))
    assert made.state().status == "running"
    made.update(pid_started=started_at(os.getpid()) - 100)  # the number came round again
    assert made.state().status == "interrupted"
    made.update(pid=2**22 + 1)
    assert made.state().status == "interrupted"


def test_metrics_are_read_as_they_grow_and_forgotten_from_a_step_on(made: Run) -> None:
    for step in range(1, 4):
        made.record({"step": step, "loss": 1 / step})
    with (made.folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')  # being written
    assert [row["step"] for row in made.metrics()] == [1, 2, 3] and [row["step"] for row in made.metrics(after=2)] == [
        3
    ]
    made.forget_metrics(beyond=1)
    assert [row["step"] for row in made.metrics()] == [1]


def test_without_the_extra_nothing_starts_and_the_pip_line_is_said(made: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "has_module", lambda name: False)
    with pytest.raises(MissingExtra) as raised:
        made.start()
    assert "pip install 'mofang[train]'" in raised.value.hint()
    assert made.state().status == "created"


@pytest.mark.slow
def test_a_real_process_fails_in_words(made: Run) -> None:
    made.start()
    with pytest.raises(Conflict):
        made.start()
    state = made.wait()
    assert (state.status, state.error["code"]) == ("failed", "model_not_found")
    assert "none" in made.tail()
    until = time.monotonic() + 10
    while platform.is_alive(state.pid):
        assert time.monotonic() < until
        time.sleep(0.01)


@pytest.mark.slow
def test_a_worker_that_cannot_even_begin_is_told(made: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "WORKER", "mofang.launch.no_such_worker")
    with pytest.raises(runs.MofangError):
        made.start()
    assert made.state().status == "failed" and "no_such_worker" in made.state().error["message"]


def test_a_broken_state_is_an_error_with_its_path(made: Run) -> None:
    (made.folder / "state.json").write_text("{")
    with pytest.raises(Unreadable) as raised:
        made.state()
    assert str(made.folder) in raised.value.message()


DEAF = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(60)"


@pytest.mark.slow
def test_stop_makes_a_deaf_worker_end(made: Run) -> None:
    with subprocess.Popen([sys.executable, "-c", DEAF], stdout=subprocess.PIPE) as child:
        assert child.stdout and child.stdout.readline()
        made.update(status="running", pid=child.pid, pid_started=started_at(child.pid))
        begun = time.monotonic()
        state = made.stop(wait_s=0.3)
        assert state.status == "interrupted" and time.monotonic() - begun < 15
