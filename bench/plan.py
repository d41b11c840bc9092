"""Waiting for the first token as `mofang plan` foresees it, against real clients of two real replicas on Ray.

    python bench/plan.py [--seconds 90] [--case 4] [--json FILE]

The model repeats its question character by character, each after a fixed delay, so that nothing but the queue, the routing
and the slots decides how long people wait. So many clients ask, read to the end, think (exponentially long) and ask again;
every question is a conversation of its own, or, in the last row, each client stays in one for good: then the replicas are
used as unevenly as chance has it, which several seeds of the simulation show. Asked: the 95th percentile within 20 %.
Needs `pip install 'mofang[ray]'`.
"""

import argparse
import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import httpx

from mofang.knowledge.evaluate import percentile
from mofang.launch import home as homes
from mofang.launch.queueing import Crowd, Service, Speeds, around, simulate

REPLICAS, SLOTS = 2, 2
DELAY_S, CHARACTERS = 0.05, 40
WARM_UP_S = 10.0
START_S = 180.0
SEEDS = 9


@dataclass(frozen=True)
class Case:
    users: int
    think_s: float
    stays: bool = False
    """Each client in one conversation for good."""

    def __str__(self) -> str:
        return f"{self.users:2} clients, {self.think_s:g} s to think" + (
            ", one conversation each" if self.stays else ""
        )


CASES = (Case(6, 2.0), Case(10, 2.0), Case(16, 2.0), Case(10, 2.0, stays=True))


# ---- foreseen ----


def foreseen(case: Case) -> dict[str, list[float]]:
    """p50 and p95 of each seed. A question's one token is read with the next token of those who are being answered, which
    takes the delay that a first character takes."""
    together = {count: count / DELAY_S for count in range(1, SLOTS + 1)}
    service = Service(REPLICAS, SLOTS, Speeds(1e9, together))
    lengths = around(1, CHARACTERS, variation=0)
    crowd = Crowd(case.users, case.think_s, lengths, turns=1e12 if case.stays else 1)
    found = [simulate(service, crowd, seed=seed, requests=2000) for seed in range(SEEDS)]
    return {
        name: sorted(percentile(each.ttft, share) for each in found) for name, share in (("p50", 0.5), ("p95", 0.95))
    }


# ---- measured ----


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """Two replicas of the echo behind a gateway of their own; its address."""
    home = folder / "home"
    told = {"delay_s": DELAY_S, "n_slots": SLOTS, "n_ctx": 4096}
    for name, kind in (("echo", "chat"), ("hash", "embedding")):  # an embedder, so that none is brought
        manifest = {"name": name, "kind": kind, "format": "gguf", "engine": name, "echo": told}
        (home / "models" / name).mkdir(parents=True)
        (home / "models" / name / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("MOFANG_")},
        "MOFANG_HOME": str(home), "MOFANG_N_SLOTS": str(SLOTS), "MOFANG_CHAT_MODEL": "echo", "HOME": str(folder),
        "MOFANG_AUTO_TUNE": "0",
    }  # fmt: skip
    command = [sys.executable, "-m", "mofang", "serve", "--port", "0", "--launcher", "ray", "--replicas", str(REPLICAS)]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        until = time.monotonic() + START_S
        while (owner := homes.find(home)) is None:
            if process.poll() is not None or time.monotonic() > until:
                sys.exit((folder / "log").read_text())
            time.sleep(0.2)
        httpx.post(f"{owner.url}/v1/models/echo/load", timeout=START_S, trust_env=False).raise_for_status()
        yield owner.url
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=60)


async def timed(client: httpx.AsyncClient, question: str) -> tuple[float, float]:
    """Seconds until the first character, and from it to the end."""
    body = {"model": "echo", "stream": True, "messages": [{"role": "user", "content": question}]}
    began, first = time.perf_counter(), 0.0
    async with client.stream("POST", "/v1/chat/completions", json=body) as answer:
        answer.raise_for_status()
        async for line in answer.aiter_lines():
            if line.startswith("data: {") and not first:
                choices = json.loads(line[6:]).get("choices") or [{}]
                if choices[0].get("delta", {}).get("content"):
                    first = time.perf_counter() - began
    return first, time.perf_counter() - began - first


async def ask_on(client: httpx.AsyncClient, case: Case, until: float, found: list[tuple[float, float, float]]) -> None:
    name = uuid.uuid4().hex
    while True:
        await asyncio.sleep(random.expovariate(1 / case.think_s))
        if time.monotonic() > until:
            return
        name = name if case.stays else uuid.uuid4().hex
        asked_at = time.monotonic()
        found.append((asked_at, *await timed(client, name.ljust(CHARACTERS, "."))))


async def measured(url: str, case: Case, seconds: float) -> tuple[list[float], float]:
    """Seconds to each first token, ascending; of the questions after the warm-up. And how many times longer an answer took
    than its characters' delays: what the machine itself costs, busy with something else perhaps."""
    found: list[tuple[float, float, float]] = []
    began = time.monotonic()
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=120, trust_env=False, limits=limits) as client:
        until = began + WARM_UP_S + seconds
        await asyncio.gather(*(ask_on(client, case, until, found) for _ in range(case.users)))
    counted = [(ttft, rest) for at, ttft, rest in found if at > began + WARM_UP_S]
    slower = median(rest for _, rest in counted) / ((CHARACTERS - 1) * DELAY_S)
    return sorted(ttft for ttft, _ in counted), slower


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=90.0)
    parser.add_argument("--case", type=int, choices=range(1, len(CASES) + 1), help="one of the rows alone")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder, serving(Path(folder)) as url:
        for case in CASES[options.case - 1 : options.case] if options.case else CASES:
            ttft, slower = asyncio.run(measured(url, case, options.seconds))
            row: dict[str, Any] = {"case": str(case), "n": len(ttft), "slower": slower}
            for name, values in foreseen(case).items():
                real = percentile(ttft, {"p50": 0.5, "p95": 0.95}[name])
                row[name] = {"foreseen": median(values), "low": values[0], "high": values[-1], "measured": real}
            rows.append(row)
            told = "   ".join(
                f"{name}: foreseen {row[name]['foreseen']:.2f} s ({row[name]['low']:.2f}–{row[name]['high']:.2f}), "
                f"measured {row[name]['measured']:.2f} s, {row[name]['foreseen'] / row[name]['measured']:.2f} x"
                for name in ("p50", "p95")
            )
            print(f"{row['case']:48} {row['n']:4} answers, {slower:.2f} x their delays   {told}", flush=True)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
