"""The gateway's side of a worker: started, called, ended. Knows nothing of chats, nor of what the child computes with."""

import asyncio
import json
import secrets
import subprocess
import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Any

from mofang import errors
from mofang.engine import children
from mofang.errors import EngineFailed, Invalid, MofangError
from mofang.messages import Progress
from mofang.models.base import ModelRef
from mofang.platform import n_cores, start_child
from mofang.settings import Settings

LINE_BYTES = 1 << 26
"""Of one line of an answer: the candidates of a whole vocabulary have some megabytes."""

Call = dict[str, Any]


class WorkerProcess:
    """A child that holds one model: `said` is what it told of itself when it had loaded."""

    def __init__(self, model: str, child: "subprocess.Popen[bytes]", key: str, log: Path, said: dict[str, Any]) -> None:
        self.model = model
        self.said = said
        self._child, self._key, self._log = child, key, log
        self._closed = False

    @classmethod
    async def load(
        cls,
        module: str,
        configuration: dict[str, Any],
        ref: ModelRef,
        settings: Settings,
        progress: Callable[[Progress], None],
        *,
        env: dict[str, str] | None = None,
    ) -> "WorkerProcess":
        """`start` with what every engine tells its child, and `progress` from the first byte to the last."""
        report = children.loading(ref, progress)
        report(0)
        process = await cls.start(
            module,
            {"path": str(ref.path), "n_threads": settings.n_threads or n_cores(), **configuration},
            model=ref.name,
            log=settings.home / "logs" / f"engine-{ref.name}.log",
            timeout_s=settings.load_timeout_s,
            report=report,
            env=env,
        )
        progress(Progress("load", ref.size_bytes, ref.size_bytes, "bytes", detail=ref.name))
        return process

    @classmethod
    async def start(
        cls,
        module: str,
        configuration: dict[str, Any],
        *,
        model: str,
        log: Path,
        timeout_s: float,
        report: Callable[[int], None],
        env: dict[str, str] | None = None,
    ) -> "WorkerProcess":
        """Start `python -m module` and wait until it has loaded the model; `report` hears its resident bytes meanwhile.

        Raises what the child says of the model, or EngineFailed with the log's last lines.
        """
        log.parent.mkdir(parents=True, exist_ok=True)
        children.trim(log)
        key = secrets.token_urlsafe(24)
        child = start_child([sys.executable, "-m", module], log=log, stdout=subprocess.PIPE, env=env)
        try:
            said = await asyncio.wait_for(_converse(child, {**configuration, "key": key}, report), timeout_s)
        except TimeoutError as error:
            await asyncio.to_thread(children.end, child)
            raise EngineFailed("engine.load_timeout", model=model, seconds=timeout_s, log=log) from error
        except BaseException:  # cancelled: never leave a child behind
            await asyncio.shield(asyncio.to_thread(children.end, child))
            raise
        if "port" not in said:
            await asyncio.to_thread(children.end, child)
            told = said.get("error") or {}
            if "key" in told:
                raise _error(told)
            why = told.get("why") or children.last_lines(log)
            raise EngineFailed("engine.load_failed", model=model, why=why, log=log)
        return cls(model, child, key, log, said)

    @property
    def pid(self) -> int:
        return self._child.pid

    def alive(self) -> bool:
        return not self._closed and self._child.poll() is None

    def memory_bytes(self) -> int:
        """Resident memory of the child; 0 when it is gone."""
        return children.resident(self.pid)

    async def call(self, name: str, **arguments: Any) -> Any:
        """The result of a call that has no pieces."""
        async with aclosing(self._lines(name, arguments)) as lines:
            return (await anext(lines))["result"]

    async def pieces(self, name: str, **arguments: Any) -> AsyncGenerator[dict[str, Any], None]:
        """The pieces of an answer. Closing the iterator stops it."""
        async with aclosing(self._lines(name, arguments)) as lines:
            async for line in lines:
                if "piece" in line:
                    yield line["piece"]

    async def _lines(self, name: str, arguments: dict[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        """Lines of an answer, the one with its result last. Raises what the child says, or the EngineFailed of `_died`."""
        writer: asyncio.StreamWriter | None = None
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", self.said["port"], limit=LINE_BYTES)
            writer.write(json.dumps({"key": self._key, "call": name, **arguments}).encode() + b"\n")
            while text := await reader.readline():
                line: dict[str, Any] = json.loads(text)
                if "error" in line:
                    raise self._fault(line["error"])
                yield line
                if "result" in line:
                    return
        except (OSError, json.JSONDecodeError) as error:
            raise await self._died() from error
        finally:
            if writer:
                writer.transport.abort()  # at once: what it still sends, nobody reads
        raise await self._died()

    def _fault(self, told: dict[str, Any]) -> MofangError:
        if "key" in told:
            return _error(told)
        return EngineFailed("engine.failed", model=self.model, why=told["why"])

    async def _died(self) -> EngineFailed:
        """The error for a call that lost its child: why it is gone, as far as can be told."""
        if self._closed:
            return EngineFailed("engine.closed", model=self.model)
        with suppress(subprocess.TimeoutExpired):  # the connection breaks a little before the process is gone
            await asyncio.to_thread(self._child.wait, 2.0)
        if self._child.poll() is None:
            return EngineFailed("engine.no_answer", model=self.model, why="connection lost", log=self._log)
        last = children.last_lines(self._log)
        return EngineFailed("engine.engine_died", model=self.model, exit_code=self._child.returncode, why=last)

    async def close(self) -> None:
        if not self._closed:
            self._closed = True
            await asyncio.to_thread(children.end, self._child)


def _error(told: dict[str, Any]) -> MofangError:
    """The child's error as it was raised there."""
    kind: type[MofangError] = getattr(errors, told["class"])
    if issubclass(kind, Invalid):
        return kind(told["key"], param=told["param"], **told["values"])
    return kind(told["key"], **told["values"])


async def _converse(
    child: "subprocess.Popen[bytes]", configuration: dict[str, Any], report: Callable[[int], None]
) -> dict[str, Any]:
    """Tell the child what to load and wait for its line; empty when it ended without one."""
    assert child.stdin and child.stdout
    with suppress(BrokenPipeError):  # it ended at once: its log says why
        child.stdin.write(json.dumps(configuration).encode() + b"\n")
        child.stdin.flush()
    line = await children.watched(child, asyncio.to_thread(child.stdout.readline), report)
    said: dict[str, Any] = json.loads(line or b"{}")
    return said
