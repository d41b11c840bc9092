"""What Ray costs an answer: `mofang serve --launcher ray` with one replica and `mofang serve`, in turn.

    python bench/ray_serving.py [--model FILE.gguf] [--rounds 5] [--streams 8] [--json FILE]

One machine, so this is about overhead, not about speed-up. Both run all the time, each with as many slots as there are
streams, and answer the same in turn: tokens a second of all streams together, and the time to the first token of one.
Medians of rounds. Needs `pip install 'mofang[ray]'`.
"""

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from mofang.engine.llama.native import free_port
from mofang.models.store import ModelStore, write_manifest
from mofang.platform import describe as machine
from mofang.settings import Settings
from serving import Server, child

CACHE = Path(os.environ.get("MOFANG_CACHE", Path.home() / ".cache" / "mofang-tests"))
ASKED = [{"role": "user", "content": "Write a short text about a lighthouse in autumn."}]
N_TOKENS = 64
FIRSTS = 10
"""First tokens that are timed in a round."""


@asynccontextmanager
async def gateway(place: Path, model: Path, slots: int, *options: str) -> AsyncIterator[Server]:
    """A gateway with a home of its own, the model loaded."""
    ModelStore(Settings(home=place)).add(model, "m")
    embedder = place / "models" / "hash"  # or the default one would be brought, and read the handbook meanwhile
    embedder.mkdir()
    write_manifest(embedder, {"name": "hash", "kind": "embedding", "format": "gguf", "engine": "hash"})
    port = free_port()
    env = {
        "MOFANG_HOME": str(place), "MOFANG_PORT": str(port), "MOFANG_CHAT_MODEL": "m", "MOFANG_AUTO_TUNE": "0",
        "MOFANG_N_SLOTS": str(slots), "MOFANG_N_CTX": "4096",
    }  # fmt: skip
    async with child([sys.executable, "-m", "mofang", "serve", *options], port, env) as server:
        (await server.http.post("/v1/models/m/load")).raise_for_status()
        yield server


async def speed(server: Server, streams: int) -> float:
    """Tokens a second of all streams together."""
    began = time.perf_counter()
    found = await asyncio.gather(*(server.chat(ASKED, N_TOKENS, model="m", ignore_eos=True) for _ in range(streams)))
    return sum(tokens for _, _, tokens in found) / (time.perf_counter() - began)


async def first(server: Server) -> float:
    """Milliseconds to the first token of a stream by itself, whose prompt is known."""
    return 1000 * (await server.chat(ASKED, 2, model="m", ignore_eos=True))[0]


async def measured(given: argparse.Namespace, place: Path) -> dict[str, dict[str, float]]:
    async with (
        gateway(place / "local", given.model, given.streams) as local,
        gateway(place / "ray", given.model, given.streams, "--launcher", "ray") as ray,
    ):
        sides = {"local": local, "ray": ray}
        rates: dict[str, list[float]] = {side: [] for side in sides}
        firsts: dict[str, list[float]] = {side: [] for side in sides}
        for server in sides.values():
            await speed(server, given.streams)
        for number in range(given.rounds):
            order = list(sides) if number % 2 == 0 else list(reversed(sides))
            for side in order:
                rates[side].append(await speed(sides[side], given.streams))
            for _ in range(FIRSTS):
                for side in order:
                    firsts[side].append(await first(sides[side]))
            print("   ".join(f"{side} {rates[side][-1]:7.1f} tokens/s" for side in sides), flush=True)
    return {
        side: {"tokens_per_s": statistics.median(rates[side]), "first_ms": statistics.median(firsts[side])}
        for side in sides
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=CACHE / "models" / "smollm2-135m-instruct-q4_1.gguf")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    print(json.dumps(machine(), ensure_ascii=False))
    with tempfile.TemporaryDirectory() as place:
        found = asyncio.run(measured(given, Path(place)))
    ratio = found["ray"]["tokens_per_s"] / found["local"]["tokens_per_s"]
    added = found["ray"]["first_ms"] - found["local"]["first_ms"]
    for side, values in found.items():
        print(f"{side:6} {values['tokens_per_s']:7.1f} tokens/s   {values['first_ms']:6.1f} ms to the first token")
    print(f"ray / local {ratio:.3f}   {added:+.1f} ms")
    if given.json:
        given.json.write_text(json.dumps({**found, "ratio": ratio, "added_ms": added}, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
