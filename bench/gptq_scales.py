"""A group's scale from weights as they are when its turn comes, against the classic way: what that is worth.

    python bench/gptq_scales.py [--model smollm2-135m-instruct] [--group-size 64] [--samples 32] [--home FOLDER]

In the paper's code and in GPTQModel a group's grid is found from weights that lack the updates of their own block of 128
inputs. Here both ways quantize the same model with the same texts, in one process, in turn; perplexity on other text (as
in gptq.py), and the mean relative squared error of the matrices' answers. "all" adds what the product does by default:
the search for scales, and refining.
"""

import argparse
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gptq import HELD_OUT, HELD_OUT_LENGTH, perplexity
from quantizing import imported, rows

BLOCK = 128
"""Inputs of a block in the paper's code."""


def stale(grid: Callable[..., Any]) -> Callable[..., Any]:
    """`grid` over the weights as they were when their block began."""
    kept: dict[str, Any] = {}

    def found(w: Any, scheme: Any) -> Any:
        whole, begin = w._base, w.storage_offset() // w.shape[1]
        if begin % BLOCK == 0:
            kept["block"] = whole[begin : begin + BLOCK].clone()
        inner = begin % BLOCK
        return grid(kept["block"][inner : inner + len(w)], scheme)

    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--group-size", type=int, default=64, choices=(16, 32, 64))
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--home", type=Path, help="MOFANG_HOME of the trial; this machine's when not given")
    given = parser.parse_args()
    if given.home:
        os.environ["MOFANG_HOME"] = str(given.home)

    from mofang import settings
    from mofang.export import calibration, load
    from mofang.export.gptq import solve, worker
    from mofang.models.store import ModelStore
    from mofang.recipes import parse
    from mofang.recipes.export import Gptq
    from mofang.runs import Runs
    from mofang.tokenizer import load as load_tokenizer

    home, store = settings.load().home, ModelStore(settings.load())
    base = imported(given.model)
    fresh = solve.grid
    ways = {"fresh": fresh, "classic": stale(fresh), "all": fresh}
    with tempfile.TemporaryDirectory() as place:
        learned = rows("libreoffice", Path(place) / "learned.jsonl")
        held_out = rows("debian", Path(place) / "held_out.jsonl")
        test = calibration.read(
            [str(held_out)], load_tokenizer(base.path), samples=HELD_OUT, length=HELD_OUT_LENGTH, seed=0
        ).ids
        print(f"float32: perplexity {perplexity(load.causal_model(base), test):.3f}", flush=True)
        for bits in (4, 3):
            for way, grid in ways.items():
                solve.grid = grid
                recipe = parse(
                    Gptq,
                    {"model": base.name, "name": f"bench-{way}", "overwrite": True, "bits": bits,
                     "group_size": given.group_size, "calibration": [str(learned)], "samples": given.samples,
                     "mse": way == "all", "refine": way == "all"},
                )  # fmt: skip
                run = Runs(home).create(recipe)
                result = worker.run(recipe, run)
                reading = load.causal_model(store.get(result["model"]))
                print(
                    f"{bits} bits, groups of {given.group_size}, {way:8} perplexity {perplexity(reading, test):8.3f}   "
                    f"mean relative error {result['mean_relative_error']:.5f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
