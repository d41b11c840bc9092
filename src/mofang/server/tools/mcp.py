"""MCP servers as the tools of a conversation: `<home>/mcp.json`, in the form that every client of the protocol reads.

A server is started when its tools are first asked for, kept, started again where it has died, and ended with us. Each
is asked for its tools before one is called: that finds a dead one before a call depends on it, since a call that may
have happened is never made again. What is wrong with one server is said of that one; the others work. Values of `env`
and `headers` are secrets: no sentence of ours repeats them.

With the protocol's own SDK (extra [mcp]), which is imported when there is a server to start.
"""

import asyncio
import json
import shutil
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from contextvars import Context
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal
from urllib.parse import urlsplit

from pydantic import Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from mofang import platform
from mofang.errors import Invalid, MissingExtra, MofangError, Unreachable
from mofang.server.tools.base import Listed, Result
from mofang.strings import say
from mofang.wire import Name, Request

if TYPE_CHECKING:
    import mcp
    from mcp import types

MARK: Final = "__"
"""Between a server's name and its tool's."""
START_S: Final = 60.0
"""For a server to start and tell its tools; some are fetched from a registry first."""
LIST_S: Final = 10.0
"""For one that has started to tell them again."""
CALL_S: Final = 120.0
"""For a call."""
CLOSE_S: Final = 8.0
"""The SDK asks, waits, and kills within it."""
AGAIN_S: Final = 30.0
"""A server that failed is not tried again before, unless somebody asks for it."""
PAGES: Final = 50
"""Of a list of tools: one that never ends must."""
SECRET_CHARS: Final = 4
"""Shorter values ("1", "on") stand in every sentence, and keep nothing."""


class Entry(Request):
    """A server in mcp.json: a program (`command`) that speaks on its standard input and output, or an address (`url`)."""

    type: Literal["stdio", "http", "streamable-http", "streamableHttp"] | None = None
    """What other clients write; `command` or `url` says it all."""
    command: str = ""
    args: list[str] = Field(default_factory=list)
    env: dict[str, str] = Field(default_factory=dict)
    cwd: str | None = None
    url: str = ""
    headers: dict[str, str] = Field(default_factory=dict)
    disabled: bool = False

    @model_validator(mode="after")
    def _is_one_of_both(self) -> "Entry":
        if bool(self.command) == bool(self.url):
            raise PydanticCustomError("command_or_url", say("tools.command_or_url"))
        return self

    def hidden(self, text: str) -> str:
        """`text` without what nobody should read."""
        secrets = [*self.env.values(), *self.headers.values()]
        if self.url and self.url != self.address:
            secrets.append(self.url)
        for secret in sorted(secrets, key=len, reverse=True):
            if len(secret) >= SECRET_CHARS:
                text = text.replace(secret, "…")
        return text

    @property
    def address(self) -> str:
        """The address without what may be a key in it."""
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


class _Name(Request):
    name: Name


@dataclass(frozen=True, slots=True)
class Group:
    """A server's tools, or what is wrong with it."""

    server: str
    tools: tuple[Listed, ...] = ()
    fault: MofangError | None = None


class Servers:
    """The servers of the file `<home>/mcp.json`, which is read again whenever it has changed."""

    def __init__(self, file: Path, logs: Path) -> None:
        self._file = file
        self._logs = logs
        self._read: tuple[int, int] | None = None
        """Time and size of the file as it was read."""
        self._servers: dict[str, _Server] = {}
        self._faults: dict[str, MofangError] = {}
        """Of entries that name no server, by their names; "": of the file."""
        self._changing = asyncio.Lock()

    async def listed(self, *, again: bool = False) -> list[Group]:
        """Every server's tools, asked of all of them at once. `again`: also of those that failed just now."""
        await self._refresh()
        servers = list(self._servers.values())
        found = await asyncio.gather(*[_group(server, again) for server in servers])
        return [*(Group(name, fault=fault) for name, fault in self._faults.items()), *found]

    async def tool(self, name: str) -> Listed | None:
        """One tool, by its whole name; None where there is none. Raises what is wrong with its server."""
        await self._refresh()
        at, _, _ = name.partition(MARK)
        if fault := self._faults.get("") or self._faults.get(at):
            raise fault
        if at not in self._servers:
            return None
        return next((tool for tool in await self._servers[at].tools() if tool.name == name), None)

    async def call(self, name: str, arguments: Mapping[str, Any]) -> Result:
        """Raises Invalid for arguments that do not fit, Unreachable for a server that does not do it."""
        tool = await self.tool(name)
        if tool is None:
            raise Invalid("tools.unknown_tool", param="name", name=name, near="-")
        check(tool.parameters, arguments)
        return await self._servers[tool.server].call(name.partition(MARK)[2], arguments)

    async def close(self) -> None:
        await asyncio.gather(*[server.close() for server in self._servers.values()])

    async def _refresh(self) -> None:
        """Follow the file: what is new is there, what is gone or changed is ended."""
        async with self._changing:
            stamp = await asyncio.to_thread(_stamp, self._file)
            if stamp == self._read:
                return
            entries, faults = await asyncio.to_thread(read, self._file) if stamp else ({}, {})
            stale = {name: one for name, one in self._servers.items() if entries.get(name) != one.entry}
            kept = {name: one for name, one in self._servers.items() if name not in stale}
            self._servers = {
                name: kept.get(name) or _Server(name, entry, self._logs / f"mcp-{name}.log")
                for name, entry in entries.items()
            }
            self._faults, self._read = faults, stamp
            await asyncio.gather(*[server.close() for server in stale.values()])


def _stamp(file: Path) -> tuple[int, int] | None:
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size


async def _group(server: "_Server", again: bool) -> Group:
    try:
        return Group(server.name, tuple(await server.tools(again=again)))
    except MofangError as fault:
        return Group(server.name, fault=fault)


# ---- the file ----


def read(file: Path) -> tuple[dict[str, Entry], dict[str, MofangError]]:
    """The servers of a file that are wanted, and what is wrong with others, by name; "": with the file."""
    try:
        content = json.loads(file.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        return {}, {"": Invalid("tools.bad_file", path=file, why=error)}
    listed = content.get("mcpServers") if isinstance(content, dict) else None
    if not isinstance(listed, dict):
        return {}, {"": Invalid("tools.bad_file", path=file, why=say("tools.no_servers"))}
    entries, faults = {}, dict[str, MofangError]()
    for name, raw in listed.items():
        try:
            _Name(name=name)
            if MARK in name:
                raise Invalid("tools.bad_server_name", name=name)
            entry = Entry.model_validate(raw)
        except MofangError as fault:
            faults[name] = fault
        except ValidationError as error:
            faults[name] = _bad_entry(name, error)
        else:
            if not entry.disabled:
                entries[name] = entry
    return entries, faults


def _bad_entry(name: str, error: ValidationError) -> MofangError:
    """The first that is wrong, by its field; never its value, which may be a secret."""
    first = error.errors(include_input=False, include_url=False)[0]
    if error.title == _Name.__name__:
        return Invalid("tools.bad_server_name", name=name)
    if first["type"] == "extra_forbidden":
        known = ", ".join(Entry.model_fields)
        return Invalid(
            "tools.bad_server", name=name, why=say("tools.no_such_field", field=first["loc"][-1], known=known)
        )
    at = ".".join(str(step) for step in first["loc"])
    return Invalid("tools.bad_server", name=name, why=f"{at}: {first['msg']}" if at else first["msg"])


# ---- one server ----


class _Server:
    """One server, of which at most one session is open."""

    def __init__(self, name: str, entry: Entry, log: Path) -> None:
        self.name, self.entry = name, entry
        self._log = log
        self._session: _Session | None = None
        self._opening = asyncio.Lock()
        self._failed: tuple[float, MofangError] | None = None

    async def tools(self, *, again: bool = False) -> list[Listed]:
        """Asked of it each time. Raises MofangError: it does not start, or does not answer."""
        async with self._opening:
            if self._failed and not again and time.monotonic() - self._failed[0] < AGAIN_S:
                raise self._failed[1]
            try:
                found = await self._ask()
            except Exception as failure:
                fault = failure if isinstance(failure, MofangError) else self._fault(failure)
                self._failed = time.monotonic(), fault
                raise fault from failure
            self._failed = None
            return [_listed(self.name, tool) for tool in found]

    async def call(self, tool: str, arguments: Mapping[str, Any]) -> Result:
        """Made once, whatever comes of it."""
        if self._session is None:
            raise Unreachable("tools.server_failed", name=self.name, why=say("tools.not_running"), log=self._log.name)
        try:
            async with asyncio.timeout(CALL_S):
                client = await self._session.client()
                result = await client.call_tool(tool, dict(arguments))
        except TimeoutError as error:
            raise Unreachable("tools.call_timed_out", name=tool, seconds=int(CALL_S)) from error
        except Exception as failure:
            raise self._fault(failure) from failure
        return Result(_text(result), result.is_error)

    async def close(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def _ask(self) -> "Sequence[types.Tool]":
        """Its list of tools; an open session that does not tell it is ended, and another one tried."""
        was_open = self._session is not None
        try:
            return await self._list()
        except Exception as failure:
            await self.close()
            if not was_open or isinstance(failure, MofangError):
                raise
        try:
            return await self._list()
        except Exception:
            await self.close()
            raise

    async def _list(self) -> "Sequence[types.Tool]":
        async with asyncio.timeout(LIST_S if self._session else START_S):
            if self._session is None:
                self._session = _Session(self._connecting())
            client = await self._session.client()
            found, cursor = [], None
            for _ in range(PAGES):
                page = await client.list_tools(cursor=cursor)
                found += page.tools
                cursor = page.next_cursor
                if not cursor:
                    break
            return found

    def _connecting(self) -> "AbstractAsyncContextManager[mcp.Client]":
        """Raises MissingExtra, and Invalid for a program that is not there."""
        if find_spec("mcp") is None:
            raise MissingExtra("core.missing_extra", name="mcp.json", library="mcp", extra="mcp")
        path = self.entry.env.get("PATH")
        if self.entry.command and shutil.which(self.entry.command, path=path) is None:
            raise Invalid("tools.no_command", name=self.name, command=self.entry.command)
        return _connected(self.entry, self._log)

    def _fault(self, failure: Exception) -> MofangError:
        """What went wrong, as far as it can be told."""
        first: BaseException = failure
        while isinstance(first, BaseExceptionGroup):
            first = first.exceptions[0]
        if isinstance(first, MofangError):
            return first
        slow = isinstance(first, TimeoutError)
        why = (
            say("tools.too_slow", seconds=int(START_S))
            if slow
            else self.entry.hidden(str(first) or type(first).__name__)
        )
        return Unreachable("tools.server_failed", name=self.name, why=why, log=self._log.name)


class _Session:
    """A connection, held open by a task of its own: what the SDK opens must be closed by the task that opened it."""

    def __init__(self, connecting: "AbstractAsyncContextManager[mcp.Client]") -> None:
        self._connecting = connecting
        self._ready: asyncio.Future[mcp.Client] = asyncio.get_running_loop().create_future()
        self._leave = asyncio.Event()
        # It belongs to no request: nothing of the one that happened to be first goes with it.
        self._task = asyncio.create_task(self._hold(), name="mcp", context=Context())

    async def client(self) -> "mcp.Client":
        """Once it is connected. Raises what keeps it from being."""
        return await asyncio.shield(self._ready)

    async def close(self) -> None:
        self._leave.set()
        if not self._ready.done():
            self._task.cancel()
        _, late = await asyncio.wait({self._task}, timeout=CLOSE_S)
        if late:
            self._task.cancel()
            await asyncio.wait({self._task}, timeout=CLOSE_S)
        if self._ready.done() and not self._ready.cancelled():
            self._ready.exception()  # seen, also where nobody waited for it any more

    async def _hold(self) -> None:
        try:
            async with self._connecting as client:
                self._ready.set_result(client)
                await self._leave.wait()
        except Exception as failure:  # after it was ready: whoever asks next finds the connection closed
            if not self._ready.done():
                self._ready.set_exception(failure)
        finally:
            self._ready.cancel()


@asynccontextmanager
async def _connected(entry: Entry, log: Path) -> AsyncIterator["mcp.Client"]:
    """A client of the server, its standard error in `log` (of its last start only)."""
    import httpx2
    from mcp import Client, StdioServerParameters
    from mcp.client.stdio import stdio_client
    from mcp.client.streamable_http import streamable_http_client

    from mofang.server.auth import is_loopback  # it knows the backend, which knows us

    if entry.url:
        timeout = httpx2.Timeout(30.0, read=CALL_S)
        beyond = not is_loopback(urlsplit(entry.url).hostname or "")  # a proxy is for what is elsewhere
        async with (
            httpx2.AsyncClient(headers=entry.headers, timeout=timeout, trust_env=beyond) as http,
            Client(streamable_http_client(entry.url, http_client=http), cache=None) as client,
        ):
            yield client
        return
    command, *arguments = platform.tied([entry.command, *entry.args])
    program = StdioServerParameters(command=command, args=arguments, env=entry.env, cwd=entry.cwd)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w", encoding="utf-8") as errors:
        async with Client(stdio_client(program, errlog=errors), cache=None) as client:
            yield client


# ---- what they say ----


def _listed(server: str, tool: "types.Tool") -> Listed:
    title = tool.title or (tool.annotations.title if tool.annotations else None) or tool.name
    return Listed(f"{server}{MARK}{tool.name}", title, tool.description or "", tool.input_schema, server)


def check(schema: Mapping[str, Any], arguments: Mapping[str, Any]) -> None:
    """Raises Invalid for arguments that a JSON schema refuses. A schema that is none refuses nothing: the server judges."""
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import SchemaError, best_match
    from referencing import Registry
    from referencing.exceptions import Unresolvable

    with suppress(SchemaError, Unresolvable):
        Draft202012Validator.check_schema(schema)
        judge = Draft202012Validator(schema, registry=Registry())  # an empty one: no schema is fetched from anywhere
        if error := best_match(judge.iter_errors(arguments)):
            at = ".".join(str(step) for step in error.absolute_path)
            raise Invalid(
                "tools.bad_arguments", param="arguments", why=f"{at}: {error.message}" if at else error.message
            )


def _text(result: "types.CallToolResult") -> str:
    """The result as a text: its texts, else its structure; what is neither is named."""
    parts = [_part(block) for block in result.content]
    if not parts and result.structured_content is not None:
        return json.dumps(result.structured_content, ensure_ascii=False)
    return "\n".join(parts)


def _part(block: Any) -> str:
    kinds: dict[str, Callable[[], str | None]] = {
        "text": lambda: block.text,
        "resource": lambda: getattr(block.resource, "text", None),
        "resource_link": lambda: str(block.uri),
    }
    text = kinds.get(block.type, lambda: None)()
    return say("tools.not_text", kind=block.type) if text is None else text
