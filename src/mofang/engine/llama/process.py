"""One llama.cpp server as a child of ours: started, asked whether it is well, ended. Knows nothing of chats."""

import asyncio
import json
import secrets
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import psutil

from mofang.engine.llama.provider import Launch, check_wheel, wheel_parameters
from mofang.errors import EngineFailed
from mofang.platform import end_child, start_child

LOG_BYTES = 1_000_000
"""A longer log of earlier runs is started anew."""
LAST_LINES = 8
SILENCE_S = 300.0
"""A server that sends nothing for so long is taken for hung; a batch of a long prompt takes seconds, not minutes."""


class LlamaProcess:
    """A running server: its address, its key, and an HTTP client that has both."""

    def __init__(self, model: str, child: "subprocess.Popen[bytes]", address: str, key: str, log: Path) -> None:
        self.model = model
        self.log = log
        self._child = child
        self._closed = False
        self.http = httpx.AsyncClient(
            base_url=address,
            headers={"Authorization": f"Bearer {key}"},
            timeout=httpx.Timeout(SILENCE_S, connect=5.0),
            # llama.cpp closes a connection after an answer without saying so; a kept one fails at its next request.
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=0),
            trust_env=False,  # a proxy for the internet has no business between us and our child
        )

    @classmethod
    async def start(cls, model: str, launch: Launch, *, log: Path, timeout_s: float) -> "LlamaProcess":
        """Start the child and wait until it has loaded the model.

        Raises MissingSystem for what the machine lacks, EngineFailed with the log's last lines when the model cannot
        be loaded in `timeout_s`.
        """
        check_wheel()
        log.parent.mkdir(parents=True, exist_ok=True)
        if log.exists() and log.stat().st_size > LOG_BYTES:
            log.replace(log.with_suffix(".1.log"))
        command = [sys.executable, "-m", "mofang.engine.llama.child"]
        child = start_child(command, log=log, stdout=subprocess.PIPE)
        assert child.stdin and child.stdout
        try:
            child.stdin.write(json.dumps(wheel_parameters(launch)).encode() + b"\n")
            child.stdin.flush()
            line = await asyncio.wait_for(asyncio.to_thread(child.stdout.readline), timeout_s)
            said = json.loads(line or b"{}")
        except TimeoutError as error:
            await asyncio.to_thread(end_child, child)
            raise EngineFailed("engine.load_timeout", model=model, seconds=timeout_s, log=log) from error
        except BaseException:  # cancelled, or a broken pipe: never leave a child behind
            await asyncio.shield(asyncio.to_thread(end_child, child))
            raise
        if "address" not in said:
            await asyncio.to_thread(end_child, child)
            raise EngineFailed("engine.load_failed", model=model, why=_last_lines(log), log=log)
        return cls(model, child, said["address"], launch.key, log)

    @property
    def pid(self) -> int:
        return self._child.pid

    def alive(self) -> bool:
        return not self._closed and self._child.poll() is None

    def memory_bytes(self) -> int:
        """Resident memory of the child; 0 when it is gone."""
        try:
            return int(psutil.Process(self.pid).memory_info().rss)
        except psutil.NoSuchProcess:
            return 0

    async def died(self, cause: Exception) -> EngineFailed:
        """The error for a request that lost its server: why it is gone, as far as can be told."""
        if self._closed:
            return EngineFailed("engine.closed", model=self.model)
        # The connection breaks a little before the process is gone.
        with suppress(subprocess.TimeoutExpired):
            await asyncio.to_thread(self._child.wait, 2.0)
        if self._child.poll() is None:
            return EngineFailed(
                "engine.no_answer", model=self.model, why=f"{type(cause).__name__} {cause}", log=self.log
            )
        last = _last_lines(self.log)
        return EngineFailed("engine.engine_died", model=self.model, exit_code=self._child.returncode, why=last)

    async def close(self) -> None:
        if not self._closed:
            self._closed = True
            await self.http.aclose()
            await asyncio.to_thread(end_child, self._child)
            if self._child.stdout:
                self._child.stdout.close()


def new_key() -> str:
    """A key that only this process and its child know."""
    return secrets.token_urlsafe(24)


def _last_lines(log: Path) -> str:
    """The end of the log: why a server stopped stands there."""
    try:
        lines = log.read_bytes()[-8000:].decode("utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return "\n".join(line for line in lines[-LAST_LINES:] if line.strip())


def decode(line: str) -> Any:
    """The JSON of one line of llama.cpp's event stream; None for comments, blanks and the end mark."""
    if not line.startswith("data:"):
        return None
    text = line[5:].strip()
    return None if text == "[DONE]" else json.loads(text)
