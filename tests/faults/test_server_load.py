"""Many clients that answer, leave in the middle, stop, or ask for nonsense: every request ends, every place comes back."""

import itertools
import json
import random
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest

from mofang import settings
from mofang.client import ApiError, Client
from mofang.launch import local

TEXT = "每个请求都要有结果，要么是回答，要么是说清楚的错误。" * 4
N_SLOTS = 8
ASK = {"model": "echo", "messages": [{"role": "user", "content": TEXT}]}


def _whole(client: Client, rng: random.Random) -> str:
    with client.chat_stream(ASK) as chunks:
        said = "".join(each["choices"][0]["delta"].get("content") or "" for each in chunks if each["choices"])
    assert said == TEXT
    return "whole"


def _left(client: Client, rng: random.Random) -> str:
    with client.chat_stream(ASK) as chunks:
        list(itertools.islice(chunks, rng.randint(1, 20)))
    return "left"


def _stopped(client: Client, rng: random.Random) -> str:
    generation = client.generate(ASK)
    events = client.follow_generation(generation["id"])
    seen = list(itertools.islice(events, rng.randint(1, 20)))
    client.stop_generation(generation["id"])
    last = [*seen, *events][-1]
    if last["type"] == "error":  # said in the events, where a request would have got 429
        assert last["error"]["code"] == "queue_full", last
        return "busy"
    assert last["type"] in ("stopped", "done"), last
    return "stopped"


def _refused(client: Client, rng: random.Random) -> str:
    with pytest.raises(ApiError) as caught:
        client.request("POST", "/v1/chat/completions", {**ASK, "temprature": 1})
    assert caught.value.status == 400 and "temperature" in f"{caught.value.message()} {caught.value.hint()}"
    return "refused"


def _run(url: str, key: str | None, seed: int, until: float) -> Counter[str]:
    rng, done = random.Random(seed), Counter[str]()
    with Client(url, key) as client:
        while time.monotonic() < until:
            try:
                done[rng.choice((_whole, _left, _stopped, _refused))(client, rng)] += 1
            except ApiError as error:
                assert error.status == 429, error  # said, and with when to come back
                done["busy"] += 1
                time.sleep(0.05)
    return done


def _busy(client: Client) -> bool:
    system = client.system()
    return bool(system["running"]["generations"] or any(system["waiting"].values()))


def _run_once(url: str, key: str | None) -> str:
    with Client(url, key) as client:
        return _whole(client, random.Random(0))


def _check(home: Path, *, clients: int, seconds: float) -> None:
    folder = home / "models" / "echo"
    folder.mkdir(parents=True)
    manifest = {
        "name": "echo",
        "kind": "chat",
        "format": "gguf",
        "engine": "echo",
        "echo": {"delay_s": 0.002, "n_slots": N_SLOTS},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    with local.passing_gateway(settings.load(queue_limit=8)) as running, running.client() as client:
        with ThreadPoolExecutor(clients) as pool:
            _run(running.url, running.key, 0, time.monotonic() + 0.5)  # warm before memory is measured
            before = psutil.Process().memory_info().rss
            until = time.monotonic() + seconds
            runs = [pool.submit(_run, running.url, running.key, seed, until) for seed in range(clients)]
            done = sum((run.result() for run in runs), Counter[str]())
        deadline = time.monotonic() + 10
        while _busy(client) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not _busy(client), client.system()
        with ThreadPoolExecutor(N_SLOTS) as pool:  # a place that was lost would be missed here
            full = [pool.submit(_run_once, running.url, running.key) for _ in range(N_SLOTS)]
            assert [each.result(timeout=30) for each in full] == ["whole"] * N_SLOTS
        assert httpx.get(f"{running.url}/healthz", trust_env=False).is_success
        grown = psutil.Process().memory_info().rss - before
        print(f"\n{clients} clients, {seconds:.0f} s: {dict(done)}, memory +{grown / 1e6:.0f} MB")
        assert min(done[name] for name in ("whole", "left", "stopped", "refused")) > 0
        assert grown < 200e6


@pytest.mark.slow
def test_clients_that_come_and_go(home: Path) -> None:
    _check(home, clients=8, seconds=5)


@pytest.mark.soak
def test_many_clients_that_come_and_go_for_two_minutes(home: Path) -> None:
    _check(home, clients=64, seconds=120)
