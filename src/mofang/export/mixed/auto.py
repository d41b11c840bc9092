"""`mofang export gguf --type auto`: the size to take on this machine, by what was measured on it.

Files of several sizes are made, each as --bits makes it; each is read beside the whole model on texts that it was not
calibrated with, and timed in the engine. Taken is the one that decodes fastest among those that stay within `max_kl`; the
closest to the whole when none does.
"""

import asyncio
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mofang import settings
from mofang.engine.llama import library
from mofang.export import answers
from mofang.export.mixed import budget, worker, writer
from mofang.export.mixed.blocks import Blocks
from mofang.measure import load_text
from mofang.measure.compare import Agreement, side_by_side
from mofang.models.base import ModelRef
from mofang.recipes.export import Gguf
from mofang.runs import Reporter, Run
from mofang.strings import say

BITS = (4.5, 5.25, 6.0, 7.0, 8.5)
"""Sizes that are tried, where the model's shapes allow them."""
TEXTS, N_TOKENS = ("text_zh", "text_en"), 512
"""What is read of each, as one window."""


@dataclass(frozen=True, slots=True)
class Tried:
    """A size, and what it does here."""

    bits: float
    size_bytes: int
    mean_kl: float
    """Nats, from the whole model."""
    prompt_per_second: float
    predicted_per_second: float


def make(recipe: Gguf, run: Run, source: ModelRef, whole: Path, file: Path, report: Reporter) -> dict[str, Any]:
    """Write `file` from the converted `whole`; returns what its manifest says of it."""
    loaded = library.load(library.find(settings.load())[0])
    blocks = Blocks(loaded)
    matrices, texts = worker.measured(recipe, run, source, whole, blocks, report)
    importance = worker.write_importance(file.parent, matrices, texts)
    choices: dict[Path, dict[str, str]] = {}
    tried: dict[Path, Tried] = {}
    for bits, chosen in _choices(worker.table_of(matrices), whole, worker.apart_of(matrices, whole)):
        candidate = file.with_name(f"{bits:g}.gguf")
        choices[candidate] = {name: option.type for name, option in chosen.items()}
        writer.write(
            whole,
            candidate,
            choices[candidate],
            importance,
            blocks,
            lambda done, total: report("quantize", done, total),
        )
        report("measure", 0, 0, "", f"{bits:g} bit")
        tried[candidate] = _tried(loaded, candidate, whole, source)
        run.note(_line(tried[candidate]))
    best = pick(tried, recipe.max_kl)
    if tried[best].mean_kl > recipe.max_kl:
        run.note(say("export.auto_none", limit=recipe.max_kl))
    best.rename(file)
    for candidate in tried:
        candidate.unlink(missing_ok=True)
    told = worker.finish(run, file, choices[best], "")
    return {**told, "calibration": texts.manifest(), "tried": [asdict(one) for one in tried.values()]}


def pick(tried: dict[Path, Tried], max_kl: float) -> Path:
    """The fastest within `max_kl`, or the closest."""
    within = {path: one for path, one in tried.items() if one.mean_kl <= max_kl}
    if within:
        return max(within, key=lambda path: within[path].predicted_per_second)
    return min(tried, key=lambda path: tried[path].mean_kl)


def _choices(table: budget.Table, whole: Path, apart: int) -> Iterator[tuple[float, dict[str, budget.Option]]]:
    low, high = budget.bounds(table)
    last = None
    for bits in BITS:
        room = min(writer.average_bytes(whole, bits) - apart, high)
        if room >= low and (chosen := budget.choose(table, room)) != last:
            yield bits, chosen
            last = chosen


def _tried(loaded: library.Library, candidate: Path, whole: Path, source: ModelRef) -> Tried:
    agreement = Agreement()
    with library.Model(loaded, candidate) as ours, library.Model(loaded, whole) as theirs:
        for name in TEXTS:
            ids = [*theirs.begin(), *theirs.tokenize(load_text(name).text)][:N_TOKENS]
            for rows, reference in side_by_side(ours.read(ids), theirs.read(ids)):
                agreement.add(rows, reference)
    ref = ModelRef(candidate.stem, candidate, "gguf", source.kind, candidate.stat().st_size)
    speed = asyncio.run(answers.in_engine(ref, asked=False, timed=True, tell=lambda done: None))["speed"]
    return Tried(
        round(worker.bits_of(candidate), 2), ref.size_bytes, round(float(np.mean(agreement.kl)), 5),
        speed["prompt_per_second"], speed["predicted_per_second"],
    )  # fmt: skip


def _line(one: Tried) -> str:
    return say("export.auto_tried", **{**asdict(one), "size": f"{one.size_bytes / 1e6:.0f}"})
