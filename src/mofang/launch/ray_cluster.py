"""A Ray cluster, or a Ray of our own on this machine, for the length of a block."""

import os
import secrets
import signal
import socket
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import ray

from mofang import settings
from mofang.errors import Invalid, MofangError
from mofang.platform import end_child, n_cores, start_child

STORE_BYTES = 100_000_000
"""Ray's object store, in a Ray of our own: nothing large passes through it."""

GUARD = "mofang.launch.ray_guard"
KNOCK_S = 10.0
"""How long a cluster's head may take to answer."""


@contextmanager
def connected(
    address: str, *, places: int = 0, environment: Mapping[str, str] = MappingProxyType({})
) -> Iterator[None]:
    """Connected to the cluster at `address` ("auto": the one that this machine belongs to), or to a Ray of our own that
    ends with the block. Raises MofangError where nobody answers.

    places: processes that must fit into a Ray of our own, whatever cores there are: it would wait for more for ever.
    environment: of every process that is begun for us, Ray's own among them."""
    # "local" is said: of no address at all, Ray makes the cluster that `ray start` began on this machine.
    told: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR", "address": address or "local"}
    if not address:
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)  # asked for by a new Ray: other users give it no orders
        told |= {
            "num_cpus": max(n_cores(), places), "include_dashboard": False, "object_store_memory": STORE_BYTES,
            "_node_ip_address": "127.0.0.1",
        }  # fmt: skip
    if environment:
        told["runtime_env"] = {"env_vars": dict(environment)}
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no word to anybody outside
    ours = signal.getsignal(signal.SIGTERM)
    leads = hasattr(os, "getsid") and os.getsid(0) == os.getpid()
    guard = start_child([sys.executable, "-m", GUARD, str(os.getpid())]) if leads and not address else None
    try:
        _knock(address)
        ray.init(**told)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, ours)  # Ray would end the process on the spot
    except (ConnectionError, OSError, RuntimeError, ValueError) as error:
        if not address:
            raise
        raise MofangError("launch.ray_no_cluster", address=address, why=str(error).splitlines()[0]) from error
    try:
        yield
    finally:
        ray.shutdown()
        if guard:
            end_child(guard)


def _knock(address: str) -> None:
    """Raises OSError where nobody listens: Ray would go on trying for minutes."""
    host, _, port = address.rpartition(":")
    if port.isdigit():
        socket.create_connection((host, int(port)), timeout=KNOCK_S).close()


def nodes() -> list[dict[str, float]]:
    """What each living machine of the cluster has: {"CPU": 8.0, "GPU": 1.0, …}."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def crew(workers: int, *, fewer: bool = False) -> tuple[int, bool]:
    """How many processes, and whether each has a GPU: as many as were asked for, else one for each GPU of the cluster, or
    for each machine where there is none. Raises Invalid for more than there are GPUs, unless `fewer` will do."""
    machines = [node for node in nodes() if node.get("CPU")]
    gpus = int(sum(node.get("GPU", 0) for node in machines))
    count = workers or gpus or len(machines)
    if gpus and count > gpus and not fewer:
        raise Invalid("launch.too_few_gpus_ray", param="workers", n=count, gpus=gpus)
    return count, bool(gpus)


def share(count: int) -> int:
    """Cores of each of so many processes, so that those on one machine have its cores between them."""
    cores = [node["CPU"] for node in nodes() if node.get("CPU")]
    return max(1, int(min(cores) // -(-count // len(cores))))


def last_line(error: BaseException | str | None) -> str:
    """What an error of Ray's comes to: above it stand the traces of every process on the way."""
    lines = [line.strip() for line in str(error or "").splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def runtime_env() -> dict[str, Any]:
    """Ray's word for what a process on another machine is given: what it must know of this one's environment; no keys are
    among it."""
    secret = {f"MOFANG_{name.upper()}" for name in settings.secrets()}
    ours = {name: value for name, value in os.environ.items() if name.startswith("MOFANG_") and name not in secret}
    told = ("HF_HUB_OFFLINE", "TOKENIZERS_PARALLELISM", "ONEDNN_PRIMITIVE_CACHE_CAPACITY")  # see worker.prepare_process
    return {"env_vars": {**ours, **{name: os.environ[name] for name in told if name in os.environ}}}
