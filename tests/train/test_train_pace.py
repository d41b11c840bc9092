"""The time that is said before a training begins: measured without a trace, kept, and a bound where one was asked for."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from stopping import stop_after, stopped_and_resumed

from mofang.runs import Run, Stopped
from mofang.strings import say
from mofang.train import job, lora, machine, pace
from mofang.train.kernels import PLAIN, Kernels
from mofang.train.methods import sft
from mofang.train.pace import Pace, per_token

Training = Callable[..., Run]
POSITIVE = st.floats(1e-5, 10)


def losses(run: Run) -> list[Any]:
    return [(row["step"], row.get("loss"), row.get("eval_loss")) for row in run.metrics()]


@given(POSITIVE, POSITIVE, st.floats(1, 1e4), st.integers(1, 50), st.floats(1, 1e5))
def test_as_many_steps_as_fit_and_not_one_more(
    token: float, evaluation: float, tokens: float, every: int, seconds: float
) -> None:
    found = Pace(token, evaluation)
    steps = found.steps_in(seconds, tokens, every)
    assert steps == 1 or found.seconds(steps, tokens, every) <= seconds
    assert found.seconds(steps + 1, tokens, every) > seconds


def test_the_first_step_warms_up(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 100.0, 100.0, 101.0, 101.0, 103.0, 103.0, 106.0])
    monkeypatch.setattr(pace, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    assert per_token(lambda number: 10, range(4)) == 0.2


@pytest.mark.parametrize("fields", [{}, {"lora_dropout": 0.2}, {"tune": "full", "weight_decay": 0.1, "name": "whole"}])
def test_measuring_changes_nothing_that_is_learned(
    training: Training, monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any]
) -> None:
    plain, measured = training(**fields), training(**{**fields, **({"name": "other"} if "name" in fields else {})})
    monkeypatch.setattr(pace, "WORTH_MEASURING", 100)
    result = sft.run(plain.recipe(), plain)
    assert "estimated_seconds" not in result
    monkeypatch.setattr(pace, "WORTH_MEASURING", 2)
    result = sft.run(measured.recipe(), measured)
    assert losses(measured) == losses(plain)
    minutes = f"{result['estimated_seconds'] / 60:.1f}"
    assert say("train.expected", steps=4, minutes=minutes) in measured.state().notes


def test_a_training_takes_the_steps_that_fit_and_its_rate_goes_all_the_way(
    training: Training, monkeypatch: pytest.MonkeyPatch
) -> None:
    def like_a_machine_of_our_own(step: Callable[[int], int], numbers: Any) -> float:
        assert all(step(number) > 0 for number in numbers)
        return 1e-3

    monkeypatch.setattr(pace, "per_token", like_a_machine_of_our_own)
    run = training(epochs=1000, max_minutes=0.1, learning_rate=1e-2, eval_fraction=0)
    found = sft.run(run.recipe(), run)
    rates = [row["learning_rate"] for row in run.metrics() if "learning_rate" in row]
    assert 10 < found["steps"] == len(rates) < 2000
    assert rates[-1] == pytest.approx(1e-3, rel=0.2), "a tenth, where the cosine ends"
    assert 5 < found["estimated_seconds"] <= 6


@pytest.mark.parametrize(
    ("operations", "minutes", "compiles"),
    [(1e15, None, True), (1e15, 60, True), (1e15, 3, True), (1e15, 2.9, False), (1e12, None, False), (1e12, 60, False)],
)
def test_kernels_are_compiled_where_that_is_won_back(
    training: Training, monkeypatch: pytest.MonkeyPatch, operations: float, minutes: float | None, compiles: bool
) -> None:
    made = Kernels()
    monkeypatch.setattr(job, "compiled", lambda: made)
    run = training()
    found = job._kernels(run, torch.device("cpu"), operations, minutes)
    assert (found is made) is compiles
    assert (run.state().progress.get("stage") == "compile") is compiles
    assert job._kernels(run, torch.device("meta"), operations, minutes) is PLAIN, "a GPU's are its own"


def test_a_training_by_the_clock_is_judged_by_its_minutes(training: Training, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tokens of all epochs would be worth compiling for; what fits into the minutes is not."""
    monkeypatch.setattr(job, "WORTH_COMPILING", 1)
    monkeypatch.setattr(job, "compiled", lambda: pytest.fail("compiled"))
    run = training(epochs=1000, max_minutes=0.01)
    assert sft.run(run.recipe(), run)["steps"] >= 1


def test_a_run_that_is_resumed_has_the_steps_that_it_began_with(training: Training) -> None:
    whole, broken = (training(epochs=50, max_minutes=30, save_every=1) for _ in range(2))
    fixed = {"seconds_per_token": 1.7, "seconds_per_evaluation": 0.0}
    for run in (whole, broken):
        (run.folder / "pace.json").write_text(json.dumps(fixed), encoding="utf-8")
    sft.run(whole.recipe(), whole)
    resumed = stopped_and_resumed(broken, 2, sft.run)
    assert losses(resumed) == losses(whole) and 2 < losses(whole)[-1][0] < 100
    ours, theirs = (load_file(run.out / lora.WEIGHTS) for run in (whole, resumed))
    assert all((ours[name] == theirs[name]).all() for name in ours)


def test_where_memory_is_short_rows_are_and_stay_so(
    training: Training, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    wide, narrow = training(dtype="float32"), training(dtype="float32", save_every=1)
    sft.run(wide.recipe(), wide)
    fitting = machine.fitting_row
    stop_after(narrow, 2)
    with monkeypatch.context() as poor, pytest.raises(Stopped):
        poor.setattr(machine, "fitting_row", lambda row, least, *more: fitting(least, least, *more))
        sft.run(narrow.recipe(), narrow)
    (narrow.folder / "stop").unlink()
    resumed = Run(narrow.folder)
    sft.run(resumed.recipe(), resumed)
    assert any("token" in note and str(2048) in note for note in resumed.state().notes)
    many, few = ([row["rows"] for row in run.metrics() if "rows" in row] for run in (resumed, wide))
    assert min(many) > max(few), "a step has more rows, also after the memory came back"
    ours, theirs = ([value for row in losses(run) for value in row if value] for run in (resumed, wide))
    assert ours == pytest.approx(theirs, rel=1e-4)
