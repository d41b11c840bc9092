"""What Ray costs a training: the same recipe by `--launcher ray` with one worker and by `local`, in turn.

    python bench/ray_training.py [--model smollm2-135m-instruct-hf] [--steps 12] [--rounds 3] [--json FILE]

One machine, so this is about overhead, not about speed-up: tokens a second of all steps, medians of rounds, and the seconds
until the first step (starting Ray and its worker). Both learn the same, which is checked. Examples are those of
bench/training.py. Needs `pip install 'mofang[ray]'`.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from training import LENGTH, ROW, STEP, examples


def one(base: str, data: Path, steps: int, launcher: dict[str, Any]) -> dict[str, Any]:
    import mofang

    begun = time.time()
    run = mofang.sft(
        base=base, data=[str(data)], eval_fraction=0, epochs=1, batch_size=STEP, max_steps=steps, max_length=LENGTH,
        row_tokens=ROW, save_every=10_000, launcher=launcher, dtype="bfloat16",
    )  # fmt: skip
    rows = [row for row in run.metrics() if "loss" in row]
    steps_s = sum(row["seconds"] for row in rows)
    return {
        "speed": sum(row["tokens"] for row in rows) / steps_s,
        "other_s": time.time() - begun - steps_s,
        "loss": rows[-1]["loss"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m-instruct-hf")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    found: dict[str, list[dict[str, Any]]] = {"local": [], "ray": []}
    with tempfile.TemporaryDirectory() as place:
        data = Path(place) / "examples.jsonl"
        rows = (json.dumps(row, ensure_ascii=False) for row in examples(STEP * given.steps))
        data.write_text("\n".join(rows), encoding="utf-8")
        for _ in range(given.rounds):
            for side, sides in found.items():
                sides.append(one(given.model, data, given.steps, {"launcher": side}))
                print(
                    f"{side:6} {sides[-1]['speed']:7.1f} tokens/s   {sides[-1]['other_s']:5.1f} s beside the steps",
                    flush=True,
                )
    losses = {side: [each["loss"] for each in sides] for side, sides in found.items()}
    if max(map(max, losses.values())) - min(map(min, losses.values())) > 1e-3:
        sys.exit(f"they learned different things: {losses}")
    speeds = {side: statistics.median(each["speed"] for each in sides) for side, sides in found.items()}
    beside = {side: statistics.median(each["other_s"] for each in sides) for side, sides in found.items()}
    more = beside["ray"] - beside["local"]
    print(f"ray / local: {speeds['ray'] / speeds['local']:.3f} of the tokens a second, {more:+.1f} s a run")
    if given.json:
        given.json.write_text(json.dumps({"model": given.model, "steps": given.steps, "found": found}, indent=1))


if __name__ == "__main__":
    main()
