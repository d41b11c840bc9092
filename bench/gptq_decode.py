"""How fast a GPTQ model answers on this CPU: as GGUF in our engine, against GPTQModel's kernels for a CPU.

    python bench/gptq_decode.py [--model smollm2-135m-instruct] [--group-size 64] [--tokens 128] [--rounds 3]
                                [--peer PYTHON] [--kernels gptq_torch_cpu_avx512 ...] [--home FOLDER] [--json FILE]

One 4-bit GPTQ model (16 sequences of calibration: the speed does not depend on them), three readers of it: its GGUF with
the same bits (what GPTQ did not quantize stays 16-bit), its GGUF with those rest matrices in Q8_0, and GPTQModel with each
of its kernels that runs here. Decoding alone is timed, one answer at a time, after 32 tokens. In turn, medians of rounds.
The KL divergence of the Q8_0 one is against the one with the same bits, on the texts of `mofang export check`.
PYTHON is an interpreter of an environment of its own that has gptqmodel; without it those are left out and said.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from quantizing import imported, rows

KERNELS = ("gptq_torch_cpu_avx512", "gptq_torch_aten", "gptq_torch_int8", "gptq_torch")
PROMPT = 32


def peer(folder: Path, kernel: str, tokens: int, rounds: int) -> None:
    """Runs in the other environment and imports nothing of ours."""
    os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "4")
    import torch
    from gptqmodel import BACKEND, GPTQModel

    model = GPTQModel.load(str(folder), device="cpu", backend=BACKEND(kernel))
    ids = torch.arange(100, 100 + PROMPT)[None]

    def seconds(n: int) -> float:
        begun = time.monotonic()
        with torch.inference_mode():
            model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=n, min_new_tokens=n, do_sample=False
            )
        return time.monotonic() - begun

    seconds(8)
    speeds = [tokens / (seconds(tokens + 1) - seconds(1)) for _ in range(rounds)]
    used = {type(module).__name__ for module in model.modules() if hasattr(module, "qweight")}
    print(json.dumps({"speed": statistics.median(speeds), "kernel": sorted(used)}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--group-size", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peer", metavar="PYTHON")
    parser.add_argument("--kernels", nargs="+", default=KERNELS)
    parser.add_argument("--home", type=Path, help="MOFANG_HOME of the trial; this machine's when not given")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--as-peer", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.as_peer:
        peer(Path(given.as_peer[0]), given.as_peer[1], given.tokens, given.rounds)
        return
    if given.home:
        os.environ["MOFANG_HOME"] = str(given.home)
    with tempfile.TemporaryDirectory() as place:
        compare(given, Path(place))


def decode(name: str, tokens: int) -> float:
    command = ["engine", "bench", name, "--contexts", str(PROMPT), "--n-answer", str(tokens), "--rounds", "1", "--json"]
    done = subprocess.run([sys.executable, "-m", "mofang", *command], stdout=subprocess.PIPE, text=True, check=True)
    return float(json.loads(done.stdout)["result"]["rows"][0]["predicted_per_second"])


def compare(given: argparse.Namespace, place: Path) -> None:
    import mofang
    from mofang import settings
    from mofang.models.store import ModelStore

    store, base = ModelStore(settings.load()), imported(given.model)
    mofang.to_gptq(
        base.name, name="bench-gptq", overwrite=True, bits=4, group_size=given.group_size, seed=0,
        calibration=[str(rows("libreoffice", place / "calibration.jsonl"))], samples=16, length=512,
    )  # fmt: skip
    made = {"the same bits": "", "the rest in Q8_0": "q8_0"}
    names = {side: f"bench-{type or 'same'}" for side, type in made.items()}
    for side, kind in made.items():
        mofang.to_gguf("bench-gptq", kind, name=names[side], overwrite=True)
    kl = mofang.check(names["the rest in Q8_0"], names["the same bits"], answers=False, speed=False)
    found: dict[str, Any] = {"kl": {one["text"]: one["mean_kl"] for one in kl.state().result["texts"]}}

    speeds: dict[str, list[float]] = {}
    for _ in range(given.rounds):
        for side, name in names.items():
            speeds.setdefault(side, []).append(decode(name, given.tokens))
        for kernel in given.kernels if given.peer else ():
            choice = ["--as-peer", str(store.get("bench-gptq").path), kernel, "--tokens", str(given.tokens)]
            command = [given.peer, __file__, *choice, "--rounds", "1"]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                print(f"{kernel:24} does not run here: {done.stderr.strip().splitlines()[-1][:120]}", flush=True)
            else:
                figures = json.loads(done.stdout.strip().splitlines()[-1])
                speeds.setdefault(f"{kernel} {figures['kernel']}", []).append(figures["speed"])
    medians = {side: statistics.median(each) for side, each in speeds.items()}
    for side, speed in medians.items():
        size = f"{store.get(names[side]).size_bytes / 1e6:6.1f} MB" if side in names else ""
        print(f"{side:48} {speed:6.1f} tokens/s   {size}", flush=True)
    print(f"mean KL of the rest in Q8_0: {found['kl']}")
    peers = [speed for side, speed in medians.items() if side not in names]
    if peers:
        for side in names:
            print(f"{side}: {medians[side] / max(peers):.2f} times GPTQModel's fastest")
    else:
        print("GPTQModel left out: give --peer PYTHON of an environment that has gptqmodel")
    if given.json:
        given.json.write_text(json.dumps({**found, "speeds": speeds, "model": given.model}, indent=1))


if __name__ == "__main__":
    main()
