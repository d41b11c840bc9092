"""One llama.cpp server as a child of ours: started, asked whether it is well, ended. Knows nothing of chats."""

import asyncio
import json
import secrets
import subprocess
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Any

import httpx

from mofang.engine import children
from mofang.engine.llama.provider import Launch, Provider
from mofang.errors import EngineFailed
from mofang.platform import BESIDE_CHAT, lower_priority

END = b"data: [DONE]"
SILENCE_S = 300.0
"""A server that sends nothing for so long is taken for hung; a batch of a long prompt takes seconds, not minutes."""


class Refusal(Exception):
    """An error that llama.cpp answered. `type` is its own word: "invalid_request_error", "server_error"…"""

    def __init__(self, status: int, body: bytes) -> None:
        text = body.decode("utf-8", errors="replace").strip()
        try:
            decoded = json.loads(text)
        except ValueError:
            decoded = {}
        fault = decoded.get("error", decoded) if isinstance(decoded, dict) else {}
        self.fault: dict[str, Any] = fault if isinstance(fault, dict) else {"message": str(fault)}
        code = self.fault.get("code")
        self.status = code if isinstance(code, int) else status
        self.type = str(self.fault.get("type", ""))
        self.why = str(self.fault.get("message") or text[:500] or f"HTTP {status}")
        super().__init__(self.why)


class LlamaProcess:
    """A running server: its address, its key, and an HTTP client that has both."""

    def __init__(self, model: str, child: "subprocess.Popen[bytes]", address: str, key: str, log: Path) -> None:
        self.model = model
        self.log = log
        self._child = child
        self._closed = False
        self._hung = False
        self._http = httpx.AsyncClient(
            base_url=address,
            headers={"Authorization": f"Bearer {key}"},
            timeout=httpx.Timeout(SILENCE_S, connect=5.0),
            # llama.cpp closes a connection after an answer without saying so; a kept one fails at its next request.
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=0),
            trust_env=False,  # a proxy for the internet has no business between us and our child
        )

    @classmethod
    async def start(
        cls,
        model: str,
        launch: Launch,
        provider: Provider,
        *,
        log: Path,
        timeout_s: float,
        report: Callable[[int], None],
    ) -> "LlamaProcess":
        """Start the child and wait until it has loaded the model; `report` hears its resident bytes meanwhile.

        Raises MissingSystem for what the machine lacks, EngineFailed with the log's last lines when the model cannot
        be loaded in `timeout_s`.
        """
        provider.check()
        log.parent.mkdir(parents=True, exist_ok=True)
        children.trim(log)
        child = provider.start(launch, log)
        if launch.embedding:  # a folder being read must not take the speed of an answer
            lower_priority(child.pid, BESIDE_CHAT)
        try:
            address = await asyncio.wait_for(children.watched(child, provider.address(child), report), timeout_s)
        except TimeoutError as error:
            await asyncio.to_thread(children.end, child)
            raise EngineFailed("engine.load_timeout", model=model, seconds=timeout_s, log=log) from error
        except BaseException:  # cancelled: never leave a child behind
            await asyncio.shield(asyncio.to_thread(children.end, child))
            raise
        if not address:
            await asyncio.to_thread(children.end, child)
            raise EngineFailed("engine.load_failed", model=model, why=children.last_lines(log), log=log)
        return cls(model, child, address, launch.key, log)

    @property
    def pid(self) -> int:
        return self._child.pid

    def alive(self) -> bool:
        return not (self._closed or self._hung) and self._child.poll() is None

    def memory_bytes(self) -> int:
        """Resident memory of the child; 0 when it is gone."""
        return children.resident(self.pid)

    async def request(self, method: str, path: str, body: Any = None) -> Any:
        """The decoded JSON answer. Raises Refusal, or the EngineFailed of `died`."""
        try:
            answer = await self._http.request(method, path, **_json(body))
        except httpx.TransportError as error:
            raise await self.died(error) from error
        if answer.is_error:
            raise Refusal(answer.status_code, answer.content)
        return answer.json()

    async def events(self, path: str, body: Any) -> AsyncGenerator[dict[str, Any], None]:
        """The events of one answer. Closing the iterator closes the connection, by which llama.cpp stops.

        Raises Refusal, also for an error amid the stream; the EngineFailed of `died` when it ends before its end mark.
        """
        try:
            async with self._http.stream("POST", path, **_json(body)) as answer:
                if answer.is_error:
                    raise Refusal(answer.status_code, await answer.aread())
                rest = b""
                bytes_: Any = answer.aiter_bytes()  # an async generator, says httpx's source, not its type
                async with aclosing(bytes_) as pieces:
                    async for piece in pieces:
                        *lines, rest = (rest + piece).split(b"\n")
                        for line in lines:
                            if line.startswith(END):
                                return
                            event = _event(line)
                            if event:
                                yield event
        except httpx.TransportError as error:
            raise await self.died(error) from error
        finally:
            children.trim(self.log)
        raise await self.died(EOFError("the stream ended early"))

    async def died(self, cause: Exception) -> EngineFailed:
        """The error for a request that lost its server: why it is gone, as far as can be told."""
        if self._closed:
            return EngineFailed("engine.closed", model=self.model)
        # The connection breaks a little before the process is gone.
        with suppress(subprocess.TimeoutExpired):
            await asyncio.to_thread(self._child.wait, 2.0)
        if self._child.poll() is None:
            self._hung = isinstance(cause, httpx.ReadTimeout)
            return EngineFailed(
                "engine.no_answer", model=self.model, why=f"{type(cause).__name__} {cause}", log=self.log
            )
        last = children.last_lines(self.log)
        return EngineFailed("engine.engine_died", model=self.model, exit_code=self._child.returncode, why=last)

    async def close(self) -> None:
        if not self._closed:
            self._closed = True
            await self._http.aclose()
            await asyncio.to_thread(children.end, self._child)


def new_key() -> str:
    """A key that only this process and its child know."""
    return secrets.token_urlsafe(24)


def _json(body: Any) -> dict[str, Any]:
    """Escaped to ASCII: half a surrogate pair, which JSON can hold and UTF-8 cannot, reaches llama.cpp's own check."""
    if body is None:
        return {}
    return {"content": json.dumps(body).encode(), "headers": {"Content-Type": "application/json"}}


def _event(line: bytes) -> dict[str, Any] | None:
    """The event of one line of llama.cpp's stream; None for a comment or a blank. Raises Refusal for an error in it."""
    if line.startswith(b"error:"):
        raise Refusal(500, line[6:])
    if not line.startswith(b"data:"):
        return None
    event: dict[str, Any] = json.loads(line[5:])
    if "error" in event or ("code" in event and "message" in event):
        raise Refusal(500, line[5:])
    return event
