"""Replicas on two machines of a cluster with token authentication, and the cable between them pulled out."""

import asyncio
import contextlib
import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import openai
import psutil
import pytest
from ray_gateway import Served, serving, told, until

import namespaces
from fakes import install_model
from namespaces import Machine, joined

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]

PORT = 6379
SPOKEN = "".join(f"{number} " for number in range(60))
"""What the slow echo says in nine seconds."""
CUT_S = 20.0
"""How long the cable is out at least: a copy that cannot be reached is given up after some nine seconds."""


@pytest.fixture
def machines() -> Iterator[tuple[Machine, Machine]]:
    if why := namespaces.why_not():
        pytest.skip(why)
    with joined() as two:
        yield two


@contextlib.contextmanager
def cluster(
    first: Machine, second: Machine, folder: Path, settings: dict[str, str]
) -> Iterator[list[subprocess.Popen[bytes]]]:
    """`ray start` on both, as docs/cluster.md says it; `folder` is Ray's, on each machine its own."""
    ray = str(Path(sys.executable).with_name("ray"))
    common = ["--num-cpus=2", "--object-store-memory=100000000", "--block"]
    head = ["--head", f"--port={PORT}", "--include-dashboard=false", f"--temp-dir={folder}"]
    environment = {**os.environ, **settings, "PYTHONUNBUFFERED": "1"}
    started = []
    try:
        for machine, words, own in ((first, head, None), (second, [f"--address={first.address}:{PORT}"], folder)):
            command = machine.command(ray, "start", f"--node-ip-address={machine.address}", *words, *common, own=own)
            log = Path(settings["HOME"], f"{machine.name}.log")
            with log.open("wb") as stream:
                started.append(subprocess.Popen(command, env=environment, stdout=stream, stderr=stream))
            until(lambda: b"Ray runtime started" in log.read_bytes())  # noqa: B023
        yield started
    finally:
        roots = [psutil.Process(each.pid) for each in started]
        for one in [one for root in roots for one in (root, *root.children(recursive=True))]:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        for each in started:
            each.wait()


@pytest.fixture
def served(machines: tuple[Machine, Machine], tmp_path: Path) -> Iterator[Served]:
    home = tmp_path / "home"
    install_model(home, "slow", echo={"n_slots": 8, "delay_s": 0.05})
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_USAGE_STATS_ENABLED": "0"}
    settings = {"MOFANG_N_SLOTS": "8", "MOFANG_CHAT_MODEL": "slow", **token}
    first, second = machines
    with (
        # Unix sockets lie in Ray's folder, and their names may have 107 bytes.
        tempfile.TemporaryDirectory(prefix="mf-", dir="/tmp", ignore_cleanup_errors=True) as folder,
        cluster(first, second, Path(folder), {"MOFANG_HOME": str(home), "HOME": str(tmp_path), **token}) as clusters,
        serving(
            home, "--cluster", f"{first.address}:{PORT}", "--replicas", "2",
            settings=settings, command=first.command, clusters=clusters, within=first.inside,
        ) as running,
    ):  # fmt: skip
        running.load("slow")
        yield running


def test_a_cable_pulled_out_cuts_nothing_in_silence(served: Served, machines: tuple[Machine, Machine]) -> None:
    """Of the answers under way, those from the other machine end with an error, the others are whole. What had not begun is
    answered by the copy that can be reached; with the cable back there are two."""
    second = machines[1]
    there = {one.pid: second.runs(one.pid) for one in served.replicas("slow")}
    assert sorted(there.values()) == [False, True], "one on each machine"

    async def through(client: openai.AsyncOpenAI) -> tuple[list[tuple[str, str]], list[tuple[str, str]], float]:
        begun = [asyncio.create_task(told(client, f"{number} {SPOKEN}", 400, model="slow")) for number in range(12)]
        await asyncio.sleep(2)
        await asyncio.to_thread(second.cut)
        cut = time.monotonic()
        fresh = [asyncio.create_task(told(client, f"{number} new", 400, model="slow")) for number in range(4)]
        later = await asyncio.gather(*fresh)
        return await asyncio.gather(*begun), later, time.monotonic() - cut

    begun, later, seconds = served.ask(through)
    wholes = [(f"{number} {SPOKEN}", "stop") for number in range(12)]
    lost = [answer for answer, whole in zip(begun, wholes, strict=True) if answer != whole]
    assert 0 < len(lost) < 12, begun
    assert {end for _, end in lost} == {"replica_lost"} and all(text for text, _ in lost), lost
    assert later == [(f"{number} new", "stop") for number in range(4)]
    print(
        f"{len(lost)} of 12 ended with an error; new requests were answered, all of them {seconds:.1f} s after the cut"
    )

    time.sleep(max(0.0, CUT_S - seconds))
    second.mend()
    mended = time.monotonic()

    def copies() -> set[int]:
        """But for the one that was given up."""
        return {one.pid for one in served.replicas("slow") if not there.get(one.pid)}

    async def again(client: openai.AsyncOpenAI) -> list[tuple[str, str]]:
        return await asyncio.gather(*(told(client, f"{number} again", 400, model="slow") for number in range(12)))

    until(lambda: len(copies()) == 2, 120)
    print(f"two copies {time.monotonic() - mended:.1f} s after the cable was back")
    assert served.ask(again) == [(f"{number} again", "stop") for number in range(12)]
