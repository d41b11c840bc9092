"""The examples of a training, as every method gets them: prepared once, mixed, some held out; what was left out is said."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mofang import settings
from mofang.data.cache import Prepared, prepare
from mofang.data.encode import Example, Ids
from mofang.data.made import Made
from mofang.data.mix import Chosen, everything, hold_out, weigh
from mofang.data.preview import preview
from mofang.data.readers import Layout
from mofang.data.rows import Document, Row
from mofang.errors import Invalid
from mofang.runs import Run
from mofang.strings import say
from mofang.tokenizer import Tokenizer
from mofang.train import world


@dataclass(frozen=True, slots=True)
class Examples:
    """What is learned, and what is only measured. The two of a pair follow each other."""

    learned: Chosen
    held_out: Chosen
    files: list[dict[str, Any]]
    """Name, size and SHA-256 of every file, for the manifest."""

    @property
    def longest(self) -> int:
        """Tokens."""
        return max(int(part.column("length").max(initial=0)) for part in (self.learned, self.held_out))


@dataclass(frozen=True, slots=True)
class Pair:
    """Two examples with the same question; only the answers count."""

    chosen: Example
    rejected: Example

    @property
    def ids(self) -> Ids:
        """Both, one after the other, as they lie in a row."""
        return np.concatenate([self.chosen.ids, self.rejected.ids])

    @property
    def n_supervised(self) -> int:
        """Tokens of both answers."""
        return self.chosen.n_supervised + self.rejected.n_supervised


class Pairs(Made[Pair]):
    """Examples of which each two belong together."""

    def __init__(self, examples: Chosen) -> None:
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples) // 2

    def make(self, number: int) -> Pair:
        if not 0 <= number < len(self):
            raise IndexError(number)
        return Pair(self.examples[2 * number], self.examples[2 * number + 1])


def load(recipe: Any, tokenizer: Tokenizer, run: Run, kind: type[Row]) -> Examples:
    """`recipe` has the fields of recipes.training.Training about data; `kind` is what the method learns from.

    Raises as data.cache.prepare; Invalid when nothing is left to learn.
    """

    def prepared(run: Run) -> list[Prepared]:
        return [_prepare(recipe, Path(path), tokenizer, run, kind) for path in (*recipe.data, *recipe.eval_data)]

    found = world.in_turn(run, prepared)
    sources, beside = found[: len(recipe.data)], found[len(recipe.data) :]
    learned, held_out = everything(sources), everything(beside)
    if not beside:
        everyone = learned
        learned, held_out = hold_out(everyone, recipe.eval_fraction)
        if not held_out and kind is Document:
            learned, held_out = hold_out(everyone, recipe.eval_fraction, whole_rows=False)
        if not held_out and recipe.eval_fraction:
            run.note(say("train.none_held_out", n=len(everyone)))
    if recipe.weights:
        learned = weigh(learned, recipe.weights)
    if not learned:
        raise Invalid("train.nothing_to_learn", param="data", max_length=recipe.max_length)
    print(preview(learned[0], tokenizer), flush=True)
    return Examples(learned, held_out, _files([*sources, *beside]))


def _prepare(recipe: Any, path: Path, tokenizer: Tokenizer, run: Run, kind: type[Row]) -> Prepared:
    def tell(n_rows: int) -> None:
        run.update(progress={"stage": "data", "done": n_rows, "total": 0, "unit": "rows", "rate": 0.0})
        run.check_stop()

    found = prepare(
        path.expanduser(),
        tokenizer,
        folder=settings.load().home / "cache" / "examples",
        max_length=recipe.max_length,
        kind=kind,
        layout=Layout(recipe.format, recipe.layout),
        tell=tell,
    )
    if found.meta["n_cut"]:
        run.note(say("train.cut", n=found.meta["n_cut"], max_length=recipe.max_length))
    if found.first_dropped:
        file, row = found.first_dropped
        run.note(say("train.dropped", n=found.meta["n_dropped"], path=file, row=row, max_length=recipe.max_length))
    if found.skipped:
        run.note(say("train.skipped", n=len(found.skipped), path=found.skipped[0]))
    return found


def _files(sources: Sequence[Prepared]) -> list[dict[str, Any]]:
    return [
        {"file": file.path.name, "size_bytes": file.size_bytes, "sha256": file.sha256}
        for source in sources
        for file in source.files
    ]
