"""A run that is asked to stop, as a person asks it, at a step that the test chooses."""

from collections.abc import Callable
from typing import Any

import pytest

from mofang.runs import Run, Stopped


def stop_after(run: Run, step: int) -> None:
    """Its stop file appears when it has recorded that step."""
    record = run.record

    def recording(row: dict) -> None:
        record(row)
        if row.get("step") == step:
            (run.folder / "stop").touch()

    run.record = recording  # type: ignore[method-assign]


def stopped_and_resumed(run: Run, step: int, work: Callable[[Any, Run], Any]) -> Run:
    """The run, asked to stop after that step, and gone on with to its end."""
    stop_after(run, step)
    with pytest.raises(Stopped):
        work(run.recipe(), run)
    (run.folder / "stop").unlink()
    resumed = Run(run.folder)
    work(resumed.recipe(), resumed)
    return resumed
