"""How true the memory is that `mofang train` announces before it starts: estimate against the peak of real runs.

    python bench/training_memory.py [MODEL...]

Each run is one optimizer step over examples that fill a row of the given size. Prints estimate / peak: 1.0 is exact,
below 1 would let a training begin that dies.
"""

import json
import sys
import tempfile
from pathlib import Path

import mofang

ROWS = (256, 512, 1024, 2048)


def main() -> None:
    models = sys.argv[1:] or ["smollm2-135m-instruct", "qwen2.5-coder-0.5b-instruct"]
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "long.jsonl"
        pair = {"instruction": "写一段话。", "output": "春天来了，山上的花开了。" * 400}
        data.write_text("\n".join([json.dumps(pair, ensure_ascii=False)] * 2), encoding="utf-8")
        print(f"{'model':32} {'row':>5} {'estimate MB':>12} {'peak MB':>9} {'ratio':>6}")
        for model in models:
            for row in ROWS:
                run = mofang.sft(
                    base=model, data=[str(data)], max_length=row, row_tokens=row, batch_size=1, max_steps=1
                )
                result = run.state().result
                estimate, peak = result["estimated_memory_bytes"] / 1e6, result["peak_memory_bytes"] / 1e6
                print(f"{model:32} {row:5} {estimate:12,.0f} {peak:9,.0f} {estimate / peak:6.2f}", flush=True)


if __name__ == "__main__":
    main()
