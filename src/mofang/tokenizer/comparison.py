"""One tokenizer measured, or two side by side, as a run: texts may be large, and no gateway waits for them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mofang.recipes.tokenizer import Measure
from mofang.runs import Reporter, Run
from mofang.tokenizer import measure, named, texts

TELL_EVERY = 1_000
"""Lines that are cut between two words of how far it is."""


def run(recipe: Measure, run: Run) -> dict[str, Any]:
    """The worker of the recipe `measure`: the figures of each side (measure.Report), the model's first."""
    report = Reporter(run)
    files = texts.files(map(Path, recipe.texts))
    sides = []
    for name in dict.fromkeys(name for name in (recipe.model, recipe.against) if name):
        tokenizer, _ = named.find(name)

        def lines(name: str = name) -> Iterator[str]:
            for number, line in enumerate(texts.lines(files)):
                if not number % TELL_EVERY:
                    report("cut", number, 0, "lines", name)
                yield line

        figures = measure.measure(tokenizer, lines()).shape()
        dead = len(measure.dead(tokenizer))
        sides.append({"name": name, "n_vocab": tokenizer.n_vocab, "n_dead": dead, **figures})
    return {"sides": sides}
