"""Trainings by Ray's workers: they learn what one process learns, outlive the loss of a worker, and leave nothing running."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import misbehaving
import psutil
import pytest
from launching import EXACT, Training, alike, gone, measured, same_losses, through, until

import s3_stand_in
from mofang.errors import Invalid, Unreadable
from mofang.models.store import ModelStore
from mofang.recipes import launcher_of, parse, recipe_class
from mofang.runs import Run, Runs, failed
from mofang.settings import Settings
from mofang.train import checkpoint
from mofang.train.methods import pretrain, sft

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


def test_new_weights_in_parts_of_two_workers(training: Training, home: Path, tmp_path: Path) -> None:
    """Pre-training from random weights, by FSDP2."""
    text = tmp_path / "text.jsonl"
    text.write_text("\n".join(json.dumps({"text": f"第 {n} 天，天气很好。" * 3}) for n in range(6)), encoding="utf-8")
    fields = {
        "tokenizer": "tiny", "data": [str(text)], "hidden_size": 32, "intermediate_size": 48, "n_layers": 2, "n_heads": 4,
        "n_kv_heads": 2, "batch_size": 3, "max_length": 64, "epochs": 2, "eval_fraction": 0.3, **EXACT,
    }  # fmt: skip
    training()  # registers the tokenizer's model
    one, two = (Runs(home).create(parse(recipe_class("pretrain"), {**fields, "name": name})) for name in ("one", "two"))
    wanted = pretrain.run(one.recipe(), one)
    made = through(two, {**OWN, "strategy": "fsdp"}).result
    same_losses(one, two)
    alike(Path(wanted["path"]) / "model.safetensors", Path(made["path"]) / "model.safetensors")
    assert all(each == pytest.approx(wanted["held_bytes"][0] / 2, rel=0.05) for each in made["held_bytes"])


@pytest.mark.soak
def test_an_error_of_one_worker_ends_the_run_with_it(
    training: Training, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would come again: nothing is tried anew. The first worker only loses the second."""
    misbehaving.prepare(tmp_path / "site", monkeypatch, "raises", 3)
    run = training(**LONG)
    state = through(run, OWN, "failed")
    assert state.error["code"] == "rank_failed" and misbehaving.ERROR in state.error["message"], run.tail(60)
    assert len(measured(run, "loss")) == 3 and not any("重新启动" in note for note in state.notes)


def test_a_worker_that_hangs_is_found_and_all_begin_anew(
    training: Training, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the six seconds that are stated here."""
    misbehaving.prepare(tmp_path / "site", monkeypatch, "hangs once", 3)
    one, two = training(**LONG), training(**LONG)
    sft.run(one.recipe(), one)
    state = through(two, {**OWN, "hang_minutes": 0.1})
    assert any("重新启动" in note for note in state.notes)
    same_losses(one, two)


@pytest.mark.soak
def test_killed_while_sending_and_gone_on_with_on_another_machine(
    training: Training,
    storage: str,
    s3: s3_stand_in.Store,
    home: Path,
    tiny_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole, first = training(**LONG), training(**LONG)
    sft.run(whole.recipe(), whole)
    sent: list[str] = []

    def before(method: str, path: str) -> None:
        if "step-000004-" in path and path.endswith("optimizer.safetensors") and not sent:
            sent.append(path)
            os.kill(workers(first)[0].pid, signal.SIGKILL)

    monkeypatch.setattr(s3, "before", before)
    kept = {"launcher": "ray", "workers": 1, "max_failures": 0, "storage": storage}
    state = through(first, kept, "failed")
    assert sent and state.error["code"] == "rank_failed", first.tail(60)
    empty = home.parent / "another"
    monkeypatch.setenv("MOFANG_HOME", str(empty))
    ModelStore(Settings(home=empty)).add(tiny_folder, "tiny")
    second = Runs(empty).create(first.recipe())
    state = through(second, kept)
    assert any("step-000002" in note and "取回" in note for note in state.notes), state.notes
    same_losses(whole, second)
    alike(whole.out / "adapter_model.safetensors", second.out / "adapter_model.safetensors")
    secret = s3_stand_in.KEYS["AWS_SECRET_ACCESS_KEY"].encode()
    told = [path for path in home.parent.rglob("*") if path.is_file() and path.stat().st_size < 1 << 24]
    assert len(told) > 20 and not any(secret in path.read_bytes() for path in told)


# ---- a cluster of others' ----


SPREAD = {"launcher": "ray", "workers": 2, "min_workers": 1}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A machine, to which each test adds another; both are this one."""
    from ray.cluster_utils import Cluster

    before = signal.getsignal(signal.SIGTERM)  # Ray takes it for itself
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("RAY_USAGE_STATS_ENABLED", "0")
        found = Cluster(
            initialize_head=True,
            head_node_args={"num_cpus": 1, "include_dashboard": False, "object_store_memory": 100_000_000},
        )
        try:
            yield found
        finally:
            found.shutdown()
            signal.signal(signal.SIGTERM, before)


@pytest.fixture
def second(cluster: Any) -> Any:
    node = cluster.add_node(num_cpus=1, object_store_memory=100_000_000)
    cluster.wait_for_nodes()
    return node


@pytest.mark.soak
def test_a_machine_that_will_be_taken_away_is_left_after_saving(training: Training, cluster: Any, second: Any) -> None:
    """Ray is told what a cloud tells: the run saves at that very step, and the other machine goes on from it. That is no
    failure."""
    fields = {**LONG, "epochs": 400, "eval_fraction": 0, "save_every": 100_000}
    run = training(**fields)
    run.start(launcher_of({**SPREAD, "cluster": cluster.address, "max_failures": 0}))
    until(lambda: len(measured(run, "loss")) >= 3, run)
    drain = (
        "drain-node --reason DRAIN_NODE_REASON_PREEMPTION --reason-message t --deadline-remaining-seconds 20".split()
    )
    told = [
        sys.executable,
        "-m",
        "ray.scripts.scripts",
        *drain,
        "--address",
        cluster.address,
        "--node-id",
        second.node_id,
    ]
    subprocess.run(told, check=True, capture_output=True)
    until(lambda: checkpoint.found(run.checkpoints), run, 60)
    (saved,) = checkpoint.found(run.checkpoints)
    until(lambda: any("重新启动" in note for note in run.state().notes), run)
    cluster.remove_node(second, allow_graceful=False)
    step = int(saved.name.removeprefix("step-"))
    until(lambda: len(measured(run, "loss")) > step + 3, run)
    assert measured(run, "step") == list(range(1, len(measured(run, "step")) + 1)), "no step was lost or made twice"
    assert run.stop().status == "stopped", run.tail(60)


def test_a_machine_is_lost_and_the_other_goes_on(training: Training, cluster: Any, second: Any) -> None:
    one, two = training(**LONG), training(**LONG)
    sft.run(one.recipe(), one)
    two.start(launcher_of({**SPREAD, "cluster": cluster.address}))
    until(lambda: len(measured(two, "loss")) >= 5, two)
    cluster.remove_node(second, allow_graceful=False)
    state = two.wait()
    assert state.status == "done", (state.error, two.tail(60))
    assert any("2 台机器" in note for note in state.notes)
    same_losses(one, two)


@pytest.mark.usefixtures("cluster")
def test_a_run_without_a_cluster_has_a_ray_of_its_own_beside_one(training: Training) -> None:
    """Ray would else join what it finds on the machine."""
    through(training(max_steps=1, eval_fraction=0), {"launcher": "ray", "workers": 1})


def test_a_cluster_that_is_not_there(training: Training) -> None:
    state = through(training(), {"launcher": "ray", "cluster": "127.0.0.1:1"}, "failed")
    assert state.error["code"] == "ray_no_cluster" and "127.0.0.1:1" in state.error["message"]
