"""The measured lines of a training as people see them: a curve that grows, and the few figures beside it.

Knows nothing of Streamlit. Lines come from the gateway (GET /v1/runs/{id}/metrics) a few at a time.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

Row = dict[str, Any]

MAX_POINTS: Final = 500
"""Of the training loss in a chart; more steps are averaged, and the chart says so."""
RECENT: Final = 20
"""Steps that the speed is measured over."""


@dataclass(frozen=True, slots=True)
class Curve:
    """All lines known so far, in the order of their steps."""

    rows: tuple[Row, ...] = ()

    @property
    def after(self) -> int:
        """The step to ask beyond: the last one is asked for again, its eval loss may have come since."""
        return int(self.rows[-1]["step"]) - 1 if self.rows else -1

    def grown(self, rows: Sequence[Row]) -> "Curve":
        """With what the gateway answered to `after`."""
        return Curve((*(row for row in self.rows if row["step"] <= self.after), *rows))

    def of(self, name: str) -> list[tuple[int, float]]:
        """(step, value) of the lines that have it: "loss", "eval_loss", "learning_rate"."""
        return [(row["step"], row[name]) for row in self.rows if name in row]

    @property
    def tokens_per_s(self) -> float:
        """Over the last steps; 0 before the first."""
        timed = [row for row in self.rows if row.get("seconds")][-RECENT:]
        return sum(row["tokens"] for row in timed) / sum(row["seconds"] for row in timed) if timed else 0.0

    @property
    def every(self) -> int:
        """Steps that one point of the training loss stands for."""
        return -(-len(self.of("loss")) // MAX_POINTS) or 1

    def points(self, name: str) -> Iterator[tuple[int, float]]:
        """What is drawn: each value, or the mean of `every` ones at the last one's step. The eval loss is left whole."""
        values, width = self.of(name), self.every if name == "loss" else 1
        for start in range(0, len(values), width):
            stretch = values[start : start + width]
            yield stretch[-1][0], sum(value for _, value in stretch) / len(stretch)

    def table(self, labels: Mapping[str, str]) -> dict[str, list[Any]]:
        """Columns for a chart: step, loss, series; `labels` names the series of each value."""
        rows = [(step, value, label) for name, label in labels.items() for step, value in self.points(name)]
        return {column: [row[at] for row in rows] for at, column in enumerate(("step", "loss", "series"))}
