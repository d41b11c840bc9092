"""Several processes: they learn what one learns, stop and end together, and leave nothing running."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import misbehaving
import psutil
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from launching import EXACT, Training, alike, gone, measured, same_losses, through, until
from safetensors.torch import load_file
from stopping import stop_after

from mofang.errors import Invalid, UnknownName, Unreadable
from mofang.recipes import LAUNCHERS, launcher_of, parse, read_yaml, recipe_class
from mofang.runs import Run, Runs, Stopped, failed
from mofang.train import checkpoint
from mofang.train.methods import dpo, sft
from mofang.train.world import BUCKET, Ranks, World, _buckets

TWO = {"launcher": "torchrun", "processes": 2}


def ranks(run: Run) -> list[psutil.Process]:
    children = psutil.Process(run.state().pid).children(recursive=True)
    return [each for each in children if "mofang.launch.rank" in each.cmdline()]


# ---- parts ----


class Rank(Ranks):
    """One of `size` without any process."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size


@given(st.lists(st.integers(1, 500), max_size=40), st.integers(1, 7))
def test_every_example_is_in_one_share_and_no_share_is_much_larger(costs: list[int], size: int) -> None:
    numbers = list(range(len(costs)))
    shares = [Rank(rank, size).share(numbers, costs.__getitem__) for rank in range(size)]
    assert sorted(number for share in shares for number in share) == numbers
    assert all(share == sorted(share) for share in shares), "in the order in which they came"
    sums = [sum(costs[number] for number in share) for share in shares]
    assert max(sums) - min(sums) <= max(costs, default=0)
    assert World().share(numbers, costs.__getitem__) == numbers


@given(st.lists(st.sampled_from([1, 1000, BUCKET // 2, BUCKET - 1, BUCKET, BUCKET + 1]), max_size=12))
def test_buckets_hold_every_tensor_in_order_and_are_small(sizes: list[int]) -> None:
    tensors = [torch.empty(size, device="meta") for size in sizes]
    buckets = list(_buckets(tensors))
    assert [id(tensor) for bucket in buckets for tensor in bucket] == [id(tensor) for tensor in tensors]
    assert all(len(bucket) == 1 or sum(each.numel() for each in bucket) <= BUCKET for bucket in buckets)


@pytest.mark.parametrize("name", list(LAUNCHERS))
def test_a_launcher_is_kept_as_it_was_chosen(name: str, tmp_path: Path) -> None:
    launcher = launcher_of({"launcher": name})
    (tmp_path / "launcher.yaml").write_text(launcher.as_yaml())
    assert launcher_of(read_yaml(tmp_path / "launcher.yaml")) == launcher
    assert launcher.kind == name and ":" in launcher.worker


def test_launchers_are_refused_in_words(training: Training, home: Path) -> None:
    with pytest.raises(UnknownName):
        launcher_of({"launcher": "torchrum"})
    for values, part in (
        ({"processes": 2}, "processes"),
        ({"launcher": "torchrun", "proceses": 2}, "是不是 processes"),
        ({"launcher": "torchrun", "nodes": 2}, "几台机器一起时必须写"),
        ({"launcher": "torchrun", "rendezvous": "here"}, "主机:端口"),
    ):
        with pytest.raises(Invalid) as raised:
            launcher_of(values)
        assert part in raised.value.message("zh")
    export = Runs(home).create(parse(recipe_class("merge"), {"model": "tiny"}))
    with pytest.raises(Invalid) as raised:
        export.start(launcher_of(TWO))
    assert raised.value.code == "not_launched" and export.state().status == "created"


# ---- as processes ----


@pytest.mark.slow
def test_two_processes_learn_what_one_learns(training: Training) -> None:
    """LoRA; rows of one example and steps whose last has fewer examples than processes: 9 in steps of 4."""
    fields = {**EXACT, "eval_fraction": 0, "epochs": 2, "sample_every": 2, "row_tokens": 64}
    one, two = training(**fields), training(**fields)
    through(one, {"launcher": "local"})
    state = through(two, TWO)
    assert any("2 个进程" in note for note in state.notes)
    same_losses(one, two)
    alike(one.out / "adapter_model.safetensors", two.out / "adapter_model.safetensors")
    assert two.samples() == one.samples()
    assert two.log.read_text().count("--- step 2") == one.log.read_text().count("--- step 2") > 0, "said by one of them"
    assert two.state().result["peak_memory_bytes"] > one.state().result["peak_memory_bytes"]
    assert (two.state().result["processes"], one.state().result["processes"]) == (2, 1)


@pytest.mark.slow
def test_all_weights_in_several_rows_a_step_with_an_eval_loss(training: Training) -> None:
    fields = {**EXACT, "tune": "full", "learning_rate": 1e-3, "row_tokens": 64, "batch_size": 6, "epochs": 3}
    one, two = training(**fields, name="one"), training(**fields, name="two")
    alone = sft.run(one.recipe(), one)
    shared = through(two, TWO).result
    assert len(measured(two, "eval_loss")) == 4
    same_losses(one, two)
    alike(Path(alone["path"]) / "model.safetensors", Path(shared["path"]) / "model.safetensors")
    assert measured(two, "eval_bits_per_byte") == pytest.approx(measured(one, "eval_bits_per_byte"), rel=1e-4)


@pytest.mark.slow
def test_pairs_and_their_reference(training: Training, home: Path, tiny: str, tmp_path: Path) -> None:
    data = tmp_path / "pairs-of-answers.jsonl"
    rows = [{"prompt": f"问 {n}", "chosen": f"好 {n}", "rejected": f"差 {n * n}"} for n in range(7)]
    data.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    fields = {
        "base": tiny, "data": [str(data)], "batch_size": 3, "lora_rank": 4, "learning_rate": 1e-2, "epochs": 2,
        "eval_fraction": 0.3, "row_tokens": 128, **EXACT,
    }  # fmt: skip
    one, two = (Runs(home).create(parse(recipe_class("dpo"), fields)) for _ in range(2))
    dpo.run(one.recipe(), one)
    through(two, TWO)
    same_losses(one, two)
    for name in ("margin", "eval_margin"):
        assert measured(one, name) == pytest.approx(measured(two, name), rel=1e-3, abs=1e-5)
    assert measured(one, "accuracy")[1:] == measured(two, "accuracy")[1:], (
        "in the first step it is a matter of rounding"
    )
    reference = [load_file(run.folder / "reference.safetensors")["reference"] for run in (one, two)]
    assert torch.allclose(*reference, rtol=1e-5)


@pytest.mark.slow
def test_a_run_goes_from_one_launcher_to_the_other(training: Training) -> None:
    fields = {**EXACT, "epochs": 12, "eval_every": 6, "learning_rate": 2e-3}
    whole, moved = training(**fields), training(**fields)
    sft.run(whole.recipe(), whole)
    stop_after(moved, 3)
    with pytest.raises(Stopped):
        sft.run(moved.recipe(), moved)
    moved = Run(moved.folder)
    moved.start(launcher_of(TWO))
    until(lambda: len(measured(moved, "loss")) >= 5, moved)
    processes = ranks(moved)
    assert moved.stop().status == "stopped" and gone(processes)
    step = len(measured(moved, "loss"))
    assert checkpoint.found(moved.checkpoints)[-1].name == f"step-{step:06d}", "all stopped after the same step"
    moved.start()
    assert moved.wait().status == "done", moved.tail(60)
    assert moved.launcher().kind == "torchrun", "as it was started before"
    same_losses(whole, moved)


@pytest.mark.slow
def test_dropout_goes_on_where_it_was(training: Training) -> None:
    fields = {**EXACT, "epochs": 8, "lora_dropout": 0.3}
    whole, broken = training(**fields), training(**fields)
    through(whole, TWO)
    broken.start(launcher_of(TWO))
    until(lambda: len(measured(broken, "loss")) >= 4, broken)
    assert broken.stop().status == "stopped"
    through(broken, TWO)
    assert measured(whole, "loss") == measured(broken, "loss")


@pytest.mark.slow
def test_whoever_is_killed_none_is_left_and_the_run_can_be_resumed(training: Training) -> None:
    run = training(epochs=5000, save_every=1)
    run.start(launcher_of(TWO))
    until(lambda: len(measured(run, "loss")) >= 3, run)
    processes = ranks(run)
    assert len(processes) == 2
    os.kill(next(each.pid for each in processes if each.environ()["RANK"] == "1"), signal.SIGKILL)
    state = run.wait()
    assert (state.status, state.error["code"]) == ("failed", "rank_killed"), run.tail(60)
    assert "1 号进程被 SIGKILL" in state.error["message"]
    assert gone(processes)
    step = len(measured(run, "loss"))
    run.start()
    until(lambda: len(measured(run, "loss")) > step + 2, run)
    processes = ranks(run)
    os.kill(run.state().pid, signal.SIGKILL)
    assert gone(processes) and run.state().status == "interrupted"


@pytest.mark.slow
def test_what_is_wrong_is_said_as_by_one_process(training: Training, data: Path) -> None:
    data.write_text(data.read_text() + '\n{"instruction": "x", "output": ""}', encoding="utf-8")
    run = training()
    with pytest.raises(Unreadable) as raised:
        sft.run(run.recipe(), run)
    state = through(run, TWO, "failed")
    assert state.error == failed(raised.value)


@pytest.mark.slow
@pytest.mark.parametrize(("fault", "code"), [("raises", "rank_failed"), ("hangs once", "rank_lost")])
def test_an_error_and_a_hang_of_one_process_are_told(
    training: Training, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str, code: str
) -> None:
    """The first process only loses the second, which is not the reason where there is one."""
    misbehaving.prepare(tmp_path / "site", monkeypatch, fault, 2)
    run = training(epochs=50, eval_fraction=0)
    state = through(run, {**TWO, "hang_minutes": 0.1}, "failed")
    assert state.error["code"] == code and len(measured(run, "loss")) == 2, run.tail(60)
    assert (misbehaving.ERROR in state.error["message"]) == (fault == "raises")
    assert ("hang-minutes" in state.error["hint"]) == (fault == "hangs once")


@pytest.mark.slow
def test_a_second_machine_joins(training: Training) -> None:
    """Both are this one; what they share is the home, and they meet over TCP as two would."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        meeting = f"localhost:{found.getsockname()[1]}"
    one, two = training(**EXACT), training(**EXACT)
    sft.run(one.recipe(), one)
    two.start(launcher_of({"launcher": "torchrun", "processes": 1, "nodes": 2, "rendezvous": meeting}))
    second = subprocess.Popen([sys.executable, "-m", "mofang.launch.torchrun", str(two.folder)])
    try:
        assert two.wait().status == "done", (two.state().error, two.tail(60))
        assert second.wait(timeout=20) == 0
    finally:
        second.kill()
    same_losses(one, two)
    alone = training(**EXACT)
    done = subprocess.run(
        [sys.executable, "-m", "mofang.launch.torchrun", str(alone.folder)], capture_output=True, text=True
    )
    assert done.returncode == 2 and "--rendezvous" in done.stderr
