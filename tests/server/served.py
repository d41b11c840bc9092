"""A gateway on a real uvicorn in a thread: what clients see in tests is what they would see."""

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import uvicorn

from mofang.client import Client
from mofang.server import create_app


@dataclass
class Gateway:
    url: str
    backend: Any
    loop: asyncio.AbstractEventLoop
    key: str | None = None

    def http(self, **options: Any) -> httpx.Client:
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        headers |= options.pop("headers", {})
        return httpx.Client(base_url=self.url, trust_env=False, timeout=20, headers=headers, **options)

    def client(self, **options: Any) -> Client:
        return Client(self.url, self.key, **{"timeout_s": 20, **options})

    def event(self) -> asyncio.Event:
        """For a scripted engine to wait on; `release` sets it."""
        return asyncio.Event()

    def release(self, event: asyncio.Event) -> None:
        self.loop.call_soon_threadsafe(event.set)


@contextmanager
def serving(backend: Any, key: str | None = None) -> Iterator[Gateway]:
    """`backend` behind a real HTTP server on a free port of loopback."""
    # asyncio sets TCP_NODELAY only on sockets that name their protocol; else each answer waits 40 ms for an ACK.
    bound = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    bound.bind(("127.0.0.1", 0))
    server = uvicorn.Server(
        uvicorn.Config(create_app(backend), log_level="error", ws="none", timeout_graceful_shutdown=1)
    )
    loops: list[asyncio.AbstractEventLoop] = []

    async def serve() -> None:
        loops.append(asyncio.get_running_loop())
        await server.serve(sockets=[bound])

    thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
    thread.start()
    wait_until(lambda: server.started)
    try:
        yield Gateway(f"http://127.0.0.1:{bound.getsockname()[1]}", backend, loops[0], key)
    finally:
        server.should_exit = True
        thread.join(timeout=10)
        bound.close()
        assert not thread.is_alive()


def wait_until(condition: Callable[[], Any], timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)
