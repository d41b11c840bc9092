"""Many clients that answer, leave in the middle, stop, or ask for nonsense, while children are killed: every request
ends in an answer or an explicit error, every place and all memory comes back."""

import itertools
import json
import os
import random
import signal
import threading
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
from mofang.platform import is_alive

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


# ---- real children that are killed ----

SAID = {"engine_died", "keeps_crashing", "queue_full", "closed", "no_answer", "load_failed"}
"""Codes of errors that a request may end with when its model is killed."""


def _ask_real(client: Client, rng: random.Random, model: str) -> str:
    """One request to a real model, left, stopped or heard to its end."""
    question = {"role": "user", "content": "Tell me about " + "the sea and " * rng.choice((1, 60))}
    body = {"model": model, "messages": [question], "max_tokens": rng.choice((4, 16)), "ignore_eos": True}
    what = rng.choice(("whole", "left", "stopped"))
    if what == "stopped":
        generation = client.generate(body)
        events = client.follow_generation(generation["id"])
        seen = list(itertools.islice(events, rng.randint(1, 8)))
        client.stop_generation(generation["id"])
        last = [*seen, *events][-1]
        if last["type"] == "error":
            assert last["error"]["code"] in SAID, last
            return str(last["error"]["code"])
        assert last["type"] in ("stopped", "done"), last
        return what
    with client.chat_stream(body) as chunks:
        if what == "left":
            list(itertools.islice(chunks, rng.randint(1, 6)))
            return what
        ends = [choice["finish_reason"] for chunk in chunks for choice in chunk["choices"] if choice["finish_reason"]]
    assert ends == ["length"], "an answer that was cut is an error, never a short answer"
    return what


def _run_real(url: str, key: str | None, seed: int, until: float, models: list[str]) -> Counter[str]:
    rng, done = random.Random(seed), Counter[str]()
    with Client(url, key) as client:
        while time.monotonic() < until:
            try:
                done[_ask_real(client, rng, rng.choice(models))] += 1
            except ApiError as error:
                assert error.code in SAID, error
                done[error.code] += 1
                time.sleep(0.05)
    return done


def _children() -> list[psutil.Process]:
    found = []
    for child in psutil.Process().children():
        try:
            if "mofang.engine.llama.child" in child.cmdline():
                found.append(child)
        except psutil.Error:  # it was just killed
            continue
    return sorted(found, key=lambda child: child.create_time())


def _kill(seed: int, every_s: float, kills: int, until: float) -> int:
    """Kill -9 the oldest child now and then, loading or answering; returns how many."""
    rng, done, pause = random.Random(seed), 0, threading.Event()
    while done < kills and time.monotonic() < until:
        pause.wait(every_s * rng.uniform(0.6, 1.4))
        children = _children()
        if children:
            os.kill(children[0].pid, signal.SIGKILL)
            done += 1
    return done


def _check_killed(home: Path, model: Path, *, n_models: int, clients: int, seconds: float, kills: int) -> None:
    folder = home / "own"
    folder.mkdir()
    models = [f"m{number}" for number in range(n_models)]
    for name in models:
        (folder / f"{name}.gguf").symlink_to(model)
    chosen = settings.load(model_path=str(folder), n_ctx=512, n_slots=2, queue_limit=4, n_threads=1)
    with local.passing_gateway(chosen) as running, running.client() as client:
        for name in models:
            client.load_model(name)
        before = psutil.Process().memory_info().rss
        until = time.monotonic() + seconds
        with ThreadPoolExecutor(clients + 1) as pool:
            killer = pool.submit(_kill, 7, seconds / (kills + 1), kills, until)
            runs = [pool.submit(_run_real, running.url, running.key, n, until, models) for n in range(clients)]
            done = sum((run.result() for run in runs), Counter[str]())
            killed = killer.result()
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline and (_busy(client) or any(e["running"] for e in client.system()["engines"])):
            time.sleep(0.1)
        engines = client.system()["engines"]
        assert not _busy(client) and not any(engine["running"] or engine["waiting"] for engine in engines), engines
        for name in models:
            _answers_again(client, name)
            client.unload_model(name)
        assert client.system()["engines"] == [] and not [child for child in _children() if is_alive(child.pid)]
        grown = psutil.Process().memory_info().rss - before
        print(f"\n{clients} clients, {killed} kills, {seconds:.0f} s: {dict(done)}, memory +{grown / 1e6:.0f} MB")
        assert killed == kills and min(done[name] for name in ("whole", "left", "stopped")) > 0
        assert grown < 200e6


def _answers_again(client: Client, model: str) -> None:
    """At once, or when the circuit breaker lets it be started again."""
    deadline = time.monotonic() + 90
    while True:
        try:
            with client.chat_stream({"model": model, "messages": ASK["messages"], "max_tokens": 2}) as chunks:
                assert [chunk for chunk in chunks if chunk["choices"]]
            return
        except ApiError as error:
            assert error.code in SAID and time.monotonic() < deadline, error
            time.sleep(1)


@pytest.mark.slow
@pytest.mark.model
def test_three_kills_under_clients_that_come_and_go(home: Path, smollm2: Path) -> None:
    _check_killed(home, smollm2, n_models=2, clients=6, seconds=8, kills=3)


@pytest.mark.soak
def test_kills_under_many_clients_for_two_minutes(home: Path, smollm2: Path) -> None:
    _check_killed(home, smollm2, n_models=3, clients=64, seconds=120, kills=18)
