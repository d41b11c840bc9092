"""From a Hugging Face folder to Q4_K_M: `mofang export gguf --type q4_k_m` against llama.cpp's two tools by hand.

    python bench/gguf_convert.py [--model qwen2.5-coder-0.5b-instruct] [--rounds 3] [--home FOLDER]

By hand: convert_hf_to_gguf.py to f16, then llama-quantize, both from the same pinned tree as ours. Ours also looks for NaN
first, reads the result back, lets it begin an answer, computes its digest and writes its manifest. No importance matrix on
either side. In turn, medians; the files' weights must be equal. Needs `mofang engine build`, for llama-quantize.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from quantizing import imported


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="qwen2.5-coder-0.5b-instruct")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--home", type=Path, help="MOFANG_HOME of the trial; this machine's when not given")
    given = parser.parse_args()
    if given.home:
        os.environ["MOFANG_HOME"] = str(given.home)

    import mofang
    from mofang import settings
    from mofang.engine import toolchain
    from mofang.models.store import ModelStore

    home, store = settings.load().home, ModelStore(settings.load())
    quantize, tools = toolchain.tool(home, "llama-quantize"), toolchain.converter(home)
    base = imported(given.model)

    def ours() -> Path:
        run = mofang.to_gguf(base.name, "q4_k_m", name="bench-q4", overwrite=True, imatrix=False)
        return store.get(run.state().result["model"]).path

    def by_hand(place: Path) -> Path:
        whole, small = place / "f16.gguf", place / "q4_k_m.gguf"
        environment = {**os.environ, "PYTHONPATH": str(tools / "gguf-py"), "HF_HUB_OFFLINE": "1"}
        for command in (
            [sys.executable, tools / "convert_hf_to_gguf.py", base.path, "--outtype", "f16", "--outfile", whole],
            [quantize, whole, small, "Q4_K_M"],
        ):
            subprocess.run(list(map(str, command)), env=environment, check=True, capture_output=True)
        return small

    seconds: dict[str, list[float]] = {"mofang": [], "by hand": []}
    with tempfile.TemporaryDirectory() as place:
        for number in range(given.rounds):
            made = {}
            for side, work in (("mofang", ours), ("by hand", lambda: by_hand(Path(place)))):
                begun = time.monotonic()
                made[side] = work()
                seconds[side].append(time.monotonic() - begun)
                print(f"{number + 1}  {side:8} {seconds[side][-1]:6.1f} s", flush=True)
            if weights(made["mofang"]) != weights(made["by hand"]):
                sys.exit("the files' weights differ")
    medians = {side: statistics.median(each) for side, each in seconds.items()}
    print(
        f"mofang {medians['mofang']:.1f} s, by hand {medians['by hand']:.1f} s: {medians['mofang'] / medians['by hand']:.2f}×"
    )


def weights(path: Path) -> dict[str, Any]:
    """Digest of each tensor's bytes."""
    import hashlib

    from mofang.models.formats import gguf

    header = gguf.read(path)
    with path.open("rb") as file:
        found = {}
        for tensor in header.tensors:
            file.seek(header.data_offset + tensor.offset)
            found[tensor.name] = (tensor.type, hashlib.sha256(file.read(tensor.n_bytes)).hexdigest())
    return found


if __name__ == "__main__":
    main()
