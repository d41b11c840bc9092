"""The gateway and the workbench on this machine: what `mofang up` and `mofang serve` start, and what they end.

Sockets are bound before anything is loaded, so that a taken port is told at once and nothing can slip between check and
use. Models and the workbench are children that end with us, also when we are killed.
"""

import errno
import ipaddress
import os
import secrets
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import uvicorn
from pydantic import SecretStr

from mofang.client import Client
from mofang.errors import Conflict, Invalid, MissingSystem
from mofang.launch import home as homes
from mofang.launch.logs import kept_in
from mofang.platform import end_child, start_child
from mofang.settings import Settings

if TYPE_CHECKING:
    from mofang.server.backend import LocalBackend
    from mofang.server.rooms import Engines, Models

FAREWELL_S = 2
"""Seconds in which streams say that they were cut, once their grace (setting `shutdown_grace_s`) is over."""


@dataclass(frozen=True, slots=True)
class Running:
    """A gateway that accepts requests."""

    url: str
    key: str | None
    settings: Settings

    def client(self) -> Client:
        return Client(self.url, self.key)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def bind(host: str, port: int, *, setting: str) -> socket.socket:
    """A bound TCP socket. Raises Conflict when the port is taken, Invalid when the address is not ours."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # The protocol is named because asyncio sets TCP_NODELAY only then: without it a kept connection waits 40 ms.
    bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
        bound.listen(128)
    except OSError as error:
        bound.close()
        if error.errno == errno.EADDRINUSE:
            raise Conflict("launch.port_taken", port=port, setting=setting, other=port + 10) from error
        raise Invalid("launch.cannot_bind", host=host, port=port, why=error.strerror or error) from error
    return bound


def check_exposure(settings: Settings) -> None:
    """Refuse an address that others can reach, or all the world's web pages, when there is no key."""
    from mofang.server.keys import any_active

    if settings.api_key is not None:
        return
    if "*" in settings.cors_origins:
        raise Invalid("launch.cors_needs_key")
    if not is_loopback(settings.host) and not any_active(settings.home / "server.db"):
        raise Invalid("launch.key_needed", host=settings.host, example=secrets.token_urlsafe(24))


def _with_owner(settings: Settings) -> Settings:
    """Where only stored keys are left to those who reach us, the owner's own commands get a key that nobody else has:
    coming from this machine proves nothing there, since the workbench serves everyone from it."""
    if is_loopback(settings.host) or settings.api_key is not None:
        return settings
    return settings.model_copy(update={"api_key": SecretStr(secrets.token_urlsafe(32))})


def _let_finish(backend: "LocalBackend", grace_s: float) -> None:
    """Refuse what is new; return when nothing is being answered, or when the grace is over."""
    backend.leaving = True
    deadline = time.monotonic() + grace_s
    while backend.n_answering and time.monotonic() < deadline:
        time.sleep(0.05)


Parts = Callable[[Settings], AbstractContextManager[tuple["Models | None", "Engines | None"]]]
"""The models on disk and in memory of a gateway, for the length of a block; None: its own."""


@contextmanager
def own(_: Settings) -> Iterator[tuple[None, None]]:
    yield None, None


def alone(**options: Any) -> Parts:
    """The parts of `mofang serve` by itself. Raises Invalid for options of other launchers."""
    wrong = next((name for name, value in options.items() if value and (name, value) != ("replicas", 1)), None)
    if wrong:
        raise Invalid("launch.not_local", param=f"--{wrong.replace('_', '-')}")
    return own


def ingest_here(_: Settings, **options: Any) -> None:
    """The gateway takes documents in by itself. Raises Invalid for options of other launchers."""
    if wrong := next((name for name, value in options.items() if value), None):
        raise Invalid("launch.ingest_not_local", param=wrong, option=f"--{wrong}")


@contextmanager
def gateway(settings: Settings, bound: socket.socket | None = None, *, parts: Parts = own) -> Iterator[Running]:
    """Own the home and serve it from a thread of this process for the length of the block."""
    from mofang.launch import INGESTING
    from mofang.launch.doctor import examine
    from mofang.server import create_app
    from mofang.server.backend import LocalBackend

    check_exposure(settings)
    homes.prepare(settings.home)
    with homes.own(settings.home), kept_in(settings.home / "logs"), parts(settings) as (models, engines):
        bound = bound or bind(settings.host, settings.port, setting="MOFANG_PORT")
        port = bound.getsockname()[1]
        settings = _with_owner(settings).model_copy(update={"port": port, "ui_port": settings.workbench_port or 0})
        backend = LocalBackend(settings, models=models, engines=engines, doctor=examine, ingesting=INGESTING)
        app = create_app(backend)
        server = uvicorn.Server(
            uvicorn.Config(
                app,
                log_config=None,  # logs.py
                log_level=None,
                access_log=False,  # requests.jsonl tells more
                timeout_graceful_shutdown=FAREWELL_S,
                server_header=False,
                ws="none",
            )
        )
        failure: list[BaseException] = []

        def serve() -> None:
            try:
                server.run(sockets=[bound])
            except BaseException as error:
                failure.append(error)

        thread = threading.Thread(target=serve, name="gateway", daemon=True)
        thread.start()
        while not server.started and thread.is_alive():
            time.sleep(0.01)
        if not server.started:
            if failure and not isinstance(failure[0], SystemExit):
                raise failure[0]
            raise MissingSystem("launch.gateway_failed", log=settings.home / "logs" / "gateway.log")
        host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(settings.host, settings.host)  # noqa: S104 (compared, not bound)
        key = settings.api_key.get_secret_value() if settings.api_key else None
        running = Running(f"http://{host}:{port}", key, settings)
        homes.announce(settings.home, homes.Owner(pid=os.getpid(), url=running.url, key=key))
        try:
            yield running
        finally:
            _let_finish(backend, settings.shutdown_grace_s)
            server.should_exit = True
            thread.join(timeout=FAREWELL_S + 10)


@contextmanager
def passing_gateway(settings: Settings) -> Iterator[Running]:
    """A gateway for the length of one command: any free port, a key that nobody else has."""
    private = settings.model_copy(
        update={"host": "127.0.0.1", "port": 0, "api_key": SecretStr(secrets.token_urlsafe(24))}
    )
    with gateway(private) as running:
        yield running


@contextmanager
def workbench(running: Running, *, ready_timeout_s: float = 60.0) -> Iterator[str]:
    """The workbench as a child process for the length of the block; yields its address once the page answers."""
    settings = running.settings
    with bind(settings.host, settings.workbench_port, setting="MOFANG_UI_PORT") as probe:
        port = probe.getsockname()[1]
    key = running.key if is_loopback(settings.host) else None  # others must bring the key themselves
    log = settings.home / "logs" / "workbench.log"
    child = start_child(
        [sys.executable, "-m", "mofang.ui.run"],
        log=log,
        env={
            "WORKBENCH_GATEWAY": running.url,
            "WORKBENCH_KEY": key or "",
            "WORKBENCH_HOST": settings.host,
            "WORKBENCH_PORT": str(port),
            "WORKBENCH_LANG": settings.lang,
        },
    )
    host = running.url.split("://")[1].rsplit(":", 1)[0]
    url = f"http://{host}:{port}"
    try:
        _await_page(url, child, log, ready_timeout_s)
        owner = homes.Owner(pid=os.getpid(), url=running.url, key=running.key, workbench=url)
        homes.announce(settings.home, owner)
        yield url
    finally:
        end_child(child)


def _await_page(url: str, child: subprocess.Popen[bytes], log: Path, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if child.poll() is not None:
            break
        try:
            if httpx.get(f"{url}/_stcore/health", timeout=1.0, trust_env=False).is_success:
                return
        except httpx.TransportError:
            time.sleep(0.05)
    raise MissingSystem("launch.workbench_failed", log=log)
