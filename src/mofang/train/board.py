"""The metrics of a run as TensorBoard's events, beside metrics.jsonl, which stays the truth: they are written anew when
a run begins or goes on, so that no point is there twice."""

import shutil
import time
from collections.abc import Mapping, Sequence
from typing import Any

from tensorboardX import SummaryWriter

from mofang.runs import Run


class TensorBoard:
    """Scalars of a run in its folder's `tensorboard`: eval/loss for eval_loss, train/loss for loss, and so on."""

    def __init__(self, run: Run) -> None:
        self.folder = run.folder / "tensorboard"
        self._writer: Any = None

    def begin(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Begin anew with what was measured before, its times of day made of the steps' seconds, up to now."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self._writer = SummaryWriter(logdir=str(self.folder))
        clock = time.time() - sum(row.get("seconds", 0.0) for row in rows)
        for row in rows:
            clock += row.get("seconds", 0.0)
            self._add(row, clock)
        self._writer.flush()

    def write(self, row: Mapping[str, Any]) -> None:
        """One more line of metrics."""
        self._add(row, time.time())
        self._writer.flush()

    def close(self) -> None:
        if self._writer:
            self._writer.close()

    def _add(self, row: Mapping[str, Any], clock: float) -> None:
        for name, value in row.items():
            if name != "step":
                part = "eval" if name.startswith("eval_") else "train"
                self._writer.add_scalar(f"{part}/{name.removeprefix('eval_')}", value, row["step"], walltime=clock)
