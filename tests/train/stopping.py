"""A run that is asked to stop, as a person asks it, at a step that the test chooses."""

from mofang.runs import Run


def stop_after(run: Run, step: int) -> None:
    """Its stop file appears when it has recorded that step."""
    record = run.record

    def recording(row: dict) -> None:
        record(row)
        if row.get("step") == step:
            (run.folder / "stop").touch()

    run.record = recording  # type: ignore[method-assign]
