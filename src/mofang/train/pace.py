"""How long a training takes, measured on steps of its own before the first one counts, and told before it begins.

The steps are real ones at learning rate 0: every weight stays what it was to the last bit, and what the optimizer
remembers of them is thrown away. Kept beside the run, so that a run that is resumed has the same number of steps.
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

WARM_UP, MEASURED = 1, 3
"""Steps: the first builds what the others find built."""
WORTH_MEASURING = 40
"""Steps of a training below which measuring would be a tenth of it."""


@dataclass(frozen=True, slots=True)
class Pace:
    """What this machine was measured to need."""

    seconds_per_token: float
    """Of a whole step, the optimizer's part in it."""
    seconds_per_evaluation: float
    """0.0 where nothing is held out."""

    def seconds(self, steps: int, tokens_per_step: float, eval_every: int) -> float:
        """Of a training of so many steps, with an evaluation before, between and after."""
        evaluations = 1 + -(-steps // eval_every)
        return steps * tokens_per_step * self.seconds_per_token + evaluations * self.seconds_per_evaluation

    def steps_in(self, seconds: float, tokens_per_step: float, eval_every: int) -> int:
        """How many fit into that time; at least one."""
        low, high = 1, 1 + int(seconds / (tokens_per_step * self.seconds_per_token))
        while low < high:
            middle = (low + high + 1) // 2
            if self.seconds(middle, tokens_per_step, eval_every) <= seconds:
                low = middle
            else:
                high = middle - 1
        return low


def kept(path: Path) -> Pace | None:
    """What was measured when the run began."""
    return Pace(**json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None


def keep(path: Path, pace: Pace) -> Pace:
    aside = path.with_suffix(".part")
    aside.write_text(json.dumps(asdict(pace)), encoding="utf-8")
    aside.replace(path)
    return pace


def per_token(step: Callable[[int], int], numbers: Sequence[int]) -> float:
    """Seconds a token of the steps with these numbers; `step` does one and returns its tokens. The first warms up."""
    found = []
    for number in numbers:
        started = time.monotonic()
        tokens = step(number)
        found.append((time.monotonic() - started) / tokens)
    return median(found[WARM_UP:] or found)
