"""What trainings by several processes are held to, whoever starts them."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from safetensors.torch import load_file

from mofang.recipes import launcher_of
from mofang.runs import Run, State

Training = Callable[..., Run]

EXACT = {"dtype": "float32", "max_grad_norm": 0.5}


def through(run: Run, launcher: dict[str, Any], status: str = "done") -> State:
    run.start(launcher_of(launcher))
    state = run.wait()
    assert state.status == status, (state.error, run.tail(60))
    return state


def measured(run: Run, name: str) -> list[float]:
    return [row[name] for row in run.metrics() if name in row]


def until(true: Callable[[], Any], run: Run, timeout_s: float = 120.0) -> None:
    end = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < end and run.state().status == "running", run.tail(60)
        time.sleep(0.01)


def gone(processes: list[psutil.Process]) -> bool:
    return not psutil.wait_procs(processes, timeout=20)[1]


def alike(one: Path, other: Path) -> None:
    """The same weights, but for the order of float32 sums. Adam makes steps of one size of the smallest gradients, so a
    few numbers may differ by more than rounding; their sum of squares may not."""
    ours, theirs = load_file(one), load_file(other)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert (tensor - theirs[name]).norm() <= 1e-3 * tensor.norm(), name


def same_losses(one: Run, other: Run) -> None:
    for name in ("loss", "eval_loss", "grad_norm"):
        assert measured(one, name) == pytest.approx(measured(other, name), rel=1e-4), name
    for name in ("step", "tokens", "supervised_tokens"):
        assert measured(one, name) == measured(other, name)
