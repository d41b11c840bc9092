"""GPTQ on the same model and the same calibration ids: `mofang export gptq` against GPTQModel, and round-to-nearest.

    python bench/gptq.py [--model smollm2-135m-instruct] [--group-size 64] [--bits 4] [--samples 128] [--length 512]
                         [--held-out 16] [--plain] [--peer PYTHON] [--home FOLDER] [--json FILE]

--model qwen2.5-coder-0.5b-instruct --group-size 128 is the second one. Both sides quantize the Hugging Face folder that
`mofang models import` makes of the model's GGUF. Calibration is text of LibreOffice's Chinese help; perplexity is
measured on Debian's Chinese reference (bench/corpora: fetch.sh and both *_beir.py), 16 sequences of 512 tokens or more, every
side's weights restored to float32 and computed by transformers. PYTHON is an interpreter of an environment of its own
that has gptqmodel (it brings another torch); without it that side is left out and said. Seconds are those of quantizing
and saving; memory is the peak of the process. What is printed last: the share of round-to-nearest's loss (of log
perplexity) that GPTQ gets back, with its standard error (token by token against the same rounding).
"""

import argparse
import json
import math
import os
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from quantizing import imported, rows

HELD_OUT_LENGTH = 512


def losses(model: Any, ids: Any) -> np.ndarray:
    """-log p of each token but a sequence's first, in nats."""
    import torch
    import torch.nn.functional as F

    found = []
    with torch.no_grad():
        for row in torch.from_numpy(ids):
            logits = model(input_ids=row[None]).logits[0, :-1].float()
            found.append(F.cross_entropy(logits, row[1:], reduction="none").numpy())
    return np.concatenate(found).astype(np.float64)


def recovered(whole: np.ndarray, nearest: np.ndarray, side: np.ndarray) -> tuple[float, float]:
    """Share of rounding's loss that a side gets back, and its standard error by the delta method on the paired losses."""
    worse, lost = side - whole, nearest - whole
    left = worse.mean() / lost.mean()
    return 1 - left, float((worse - left * lost).std() / math.sqrt(len(whole)) / abs(lost.mean()))


def peer(choice: dict[str, Any]) -> None:
    """GPTQModel as its README quantizes, with its defaults; runs in the other environment and imports nothing of ours."""
    import resource

    os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "4")
    from gptqmodel import GPTQModel, QuantizeConfig

    config = QuantizeConfig(bits=choice["bits"], group_size=choice["group_size"])
    model = GPTQModel.load(choice["source"], config, device="cpu")
    sequences = [{"input_ids": row, "attention_mask": [1] * len(row)} for row in choice["ids"]]
    begun = time.monotonic()
    model.quantize(sequences, batch_size=4)
    model.save(choice["target"])
    seconds = time.monotonic() - begun
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"seconds": seconds, "peak_bytes": peak}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--group-size", type=int, default=64)
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--held-out", type=int, default=16, help="sequences that perplexity is measured on")
    parser.add_argument("--plain", action="store_true", help="the paper's algorithm alone: --no-mse --no-refine")
    parser.add_argument("--peer", metavar="PYTHON")
    parser.add_argument("--home", type=Path, help="MOFANG_HOME of the trial; this machine's when not given")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--as-peer", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.as_peer:
        peer(json.loads(given.as_peer.read_text(encoding="utf-8")))
        return
    if given.home:
        os.environ["MOFANG_HOME"] = str(given.home)
    with tempfile.TemporaryDirectory() as place:
        compare(given, Path(place))


def compare(given: argparse.Namespace, place: Path) -> None:
    import torch

    import mofang
    from mofang import settings
    from mofang.export import calibration, layers, load
    from mofang.export.gptq import solve
    from mofang.models.base import ModelRef
    from mofang.models.store import ModelStore
    from mofang.tokenizer import load as load_tokenizer

    store = ModelStore(settings.load())
    base = imported(given.model)
    tokenizer = load_tokenizer(base.path)
    learned, held_out = rows("libreoffice", place / "calibration.jsonl"), rows("debian", place / "held_out.jsonl")
    ids = calibration.read([str(learned)], tokenizer, samples=given.samples, length=given.length, seed=0).ids
    test = calibration.read([str(held_out)], tokenizer, samples=given.held_out, length=HELD_OUT_LENGTH, seed=0).ids
    found: dict[str, dict[str, Any]] = {}
    lost: dict[str, np.ndarray] = {}

    def say(side: str, model: Any, **figures: Any) -> None:
        lost[side] = losses(model, test)
        figures["perplexity"] = math.exp(lost[side].mean())
        found[side] = figures
        shown = [f"perplexity {figures['perplexity']:8.3f}"]
        if "seconds" in figures:
            shown.append(f"{figures['seconds']:7.1f} s   peak {figures['peak_bytes'] / 1e9:.2f} GB")
        print(f"{side:18} {'   '.join(shown)}", flush=True)

    print(f"{given.model}, {given.bits} bits, groups of {given.group_size}, calibration {ids.shape}", flush=True)
    model = load.causal_model(base)
    say("float32", model)
    scheme = solve.Scheme(given.bits, given.group_size)
    for layer in next(m for m in model.modules() if isinstance(m, torch.nn.ModuleList)):
        for name, module in layers.linears(layer):
            layers.replace(layer, name, solve.nearest(module.weight.data, scheme).weight())
    say("round-to-nearest", model)
    del model

    begun = time.monotonic()
    run = mofang.to_gptq(
        base.name, name="bench-gptq", overwrite=True, bits=given.bits, group_size=given.group_size,
        mse=not given.plain, refine=not given.plain,
        calibration=[str(learned)], samples=given.samples, length=given.length, seed=0,
    )  # fmt: skip
    seconds = time.monotonic() - begun
    result = run.state().result
    reading = load.causal_model(store.get(result["model"]))
    say("mofang", reading, seconds=seconds, peak_bytes=result["peak_memory_bytes"])
    del reading

    if given.peer:
        target = place / "peer"
        choice = place / "choice.json"
        choice.write_text(
            json.dumps(
                {
                    "source": str(base.path), "target": str(target), "ids": ids.tolist(), "bits": given.bits,
                    "group_size": given.group_size,
                }
            )
        )  # fmt: skip
        done = subprocess.run(
            [given.peer, __file__, "--as-peer", str(choice)], stdout=subprocess.PIPE, text=True, check=True
        )
        figures = json.loads(done.stdout.strip().splitlines()[-1])
        ref = ModelRef("peer", target, "gptq", base.kind, 0)
        say("GPTQModel", load.causal_model(ref), **figures)
    else:
        print("GPTQModel          left out: give --peer PYTHON of an environment that has gptqmodel")

    for side in ("mofang", "GPTQModel"):
        if side in found:
            share, error = recovered(lost["float32"], lost["round-to-nearest"], lost[side])
            found[side].update(recovered=share, recovered_error=error)
            print(f"{side}: {share:.1%} ± {error:.1%} of round-to-nearest's loss recovered")
    if "GPTQModel" in found:
        apart = lost["mofang"] - lost["GPTQModel"]
        print(f"mofang - GPTQModel: {apart.mean():.4f} ± {apart.std() / math.sqrt(len(apart)):.4f} nats a token")
        ratio = found["GPTQModel"]["seconds"] / found["mofang"]["seconds"]
        print(f"mofang is {ratio:.2f} times as fast")
    if given.json:
        given.json.write_text(
            json.dumps(
                {**vars(given), "home": str(given.home), "json": None, "as_peer": None, "found": found}, indent=1
            )
        )


if __name__ == "__main__":
    main()
