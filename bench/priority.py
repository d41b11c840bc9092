"""Decoding beside a busy process, by that process's niceness: why background work steps back (Linux)."""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import httpx

CACHE = Path(os.environ.get("MOFANG_CACHE", Path.home() / ".cache" / "mofang-tests")) / "models"
BUSY = "while True: pass"
BODY = {"messages": [{"role": "user", "content": "写一段关于杭州的介绍"}], "max_tokens": 24, "temperature": 0}


def decode(model: Path, nice: int | None, runs: int) -> float:
    """Median tokens/s; `nice` of the busy process, None for none."""
    key = {"Authorization": "Bearer k"}
    parameters = {"model.path": str(model), "hostnames": ["127.0.0.1"], "port": 0, "api_keys": ["k"], "n_ctx": 4096}
    command = [sys.executable, "-m", "mofang.engine.llama.child"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, **pipes) as child:  # type: ignore[call-overload]
        child.stdin.write(json.dumps({"parameters": parameters, "without_gpu": {}}).encode() + b"\n")
        child.stdin.flush()
        url = json.loads(child.stdout.readline())["address"] + "/v1/chat/completions"
        busy = subprocess.Popen(["nice", "-n", str(nice), sys.executable, "-c", BUSY]) if nice is not None else None
        answers = [httpx.post(url, json=BODY, headers=key, timeout=300, trust_env=False).json() for _ in range(runs)]
        if busy:
            busy.kill()
            busy.wait()
        child.kill()
    return statistics.median(answer["timings"]["predicted_per_second"] for answer in answers)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=CACHE / "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf")
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    alone = decode(options.model, None, options.runs)
    print(f"alone                {alone:6.1f} token/s")
    for nice in (0, 10, 19):
        speed = decode(options.model, nice, options.runs)
        print(f"beside, niceness {nice:2}  {speed:6.1f} token/s   {speed / alone:.2f} x")


if __name__ == "__main__":
    main()
