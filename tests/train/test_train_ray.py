"""Trainings by Ray's workers: they learn what one process learns, outlive the loss of a worker, and leave nothing running."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from launching import EXACT, Training, alike, gone, measured, same_losses, through, until

from mofang.errors import Invalid, Unreadable
from mofang.recipes import launcher_of
from mofang.runs import Run, failed
from mofang.train.methods import sft

OWN = {"launcher": "ray", "workers": 2}
LONG = {**EXACT, "epochs": 12, "eval_every": 6, "learning_rate": 2e-3, "save_every": 2}

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]


def workers(run: Run) -> list[psutil.Process]:
    """Those of our function, in the order of their ranks; Ray's names them by it."""
    family = psutil.Process(run.state().pid).children(recursive=True)
    found = [each for each in family if "RayTrainWorker" in " ".join(each.cmdline())]
    return sorted(found, key=lambda each: each.pid)


def family(run: Run) -> list[psutil.Process]:
    own = psutil.Process(run.state().pid)
    return [own, *own.children(recursive=True)]


@pytest.mark.parametrize(
    ("values", "part"),
    [
        ({"cluster": "somewhere"}, "主机:端口"),
        ({"workers": 2, "min_workers": 3}, "不能比 workers 多"),
        ({"wrokers": 2}, "是不是 workers"),
    ],
)
def test_what_is_said_wrongly_is_told_before_anything_begins(values: dict[str, Any], part: str) -> None:
    with pytest.raises(Invalid) as raised:
        launcher_of({"launcher": "ray", **values})
    assert part in raised.value.message("zh")


def test_two_workers_learn_what_one_process_learns_and_one_is_lost_on_the_way(training: Training) -> None:
    """The second one killed after five steps: Ray begins both anew at the checkpoint of the fourth."""
    one, two = training(**LONG), training(**LONG)
    sft.run(one.recipe(), one)
    two.start(launcher_of(OWN))
    until(lambda: len(measured(two, "loss")) >= 5, two)
    everybody = family(two)
    working = workers(two)
    assert len(working) == 2
    os.kill(working[1].pid, signal.SIGKILL)
    state = two.wait()
    assert state.status == "done", (state.error, two.tail(60))
    assert any("2 个工作进程" in note for note in state.notes) and any("重新启动" in note for note in state.notes)
    same_losses(one, two)
    alike(one.out / "adapter_model.safetensors", two.out / "adapter_model.safetensors")
    assert gone(everybody), "Ray ends with the run"


def test_a_run_whose_process_is_killed_leaves_nothing_and_goes_on(training: Training) -> None:
    whole, broken = training(**LONG), training(**LONG)
    sft.run(whole.recipe(), whole)
    broken.start(launcher_of({"launcher": "ray"}))
    until(lambda: len(measured(broken, "loss")) >= 3, broken)
    everybody = family(broken)
    os.kill(broken.state().pid, signal.SIGKILL)
    assert gone(everybody) and broken.state().status == "interrupted"
    broken.start()
    until(lambda: len(measured(broken, "loss")) >= 8, broken)
    assert broken.stop().status == "stopped"
    broken.start(launcher_of({"launcher": "local"}))
    assert broken.wait().status == "done", broken.tail(60)
    same_losses(whole, broken)


def test_what_is_wrong_is_said_as_by_one_process_and_not_tried_again(training: Training, data: Path) -> None:
    data.write_text(data.read_text() + '\n{"instruction": "x", "output": ""}', encoding="utf-8")
    run = training()
    with pytest.raises(Unreadable) as raised:
        sft.run(run.recipe(), run)
    state = through(run, OWN, "failed")
    assert state.error == failed(raised.value)
    assert not any("重新启动" in note for note in state.notes)


# ---- a cluster of others' ----


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Two machines, both of them this one."""
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    before = signal.getsignal(signal.SIGTERM)  # Ray takes it for itself
    found = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 1, "include_dashboard": False, "object_store_memory": 100_000_000},
    )
    try:
        yield found
    finally:
        found.shutdown()
        signal.signal(signal.SIGTERM, before)


def test_a_machine_is_lost_and_the_other_goes_on(training: Training, cluster: Any) -> None:
    second = cluster.add_node(num_cpus=1, object_store_memory=100_000_000)
    cluster.wait_for_nodes()
    one, two = training(**LONG), training(**LONG)
    sft.run(one.recipe(), one)
    two.start(launcher_of({"launcher": "ray", "cluster": cluster.address, "workers": 2, "min_workers": 1}))
    until(lambda: len(measured(two, "loss")) >= 5, two)
    cluster.remove_node(second, allow_graceful=False)
    state = two.wait()
    assert state.status == "done", (state.error, two.tail(60))
    assert any("2 台机器" in note for note in state.notes)
    same_losses(one, two)


def test_a_cluster_that_is_not_there(training: Training) -> None:
    state = through(training(), {"launcher": "ray", "cluster": "127.0.0.1:1"}, "failed")
    assert state.error["code"] == "ray_no_cluster" and "127.0.0.1:1" in state.error["message"]
