"""The tools that a model may be given in a conversation: our own, and those of MCP servers (mcp.py).

A tool is offered by its name: ours as it is, a server's as server__tool. Nothing here decides whether a call is made: a
person does (server/calls.py). MCP servers run with the rights of the machine's own user, so they are there for that
user alone; to a key they do not exist.
"""

import asyncio
import difflib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from mofang.engine.base import CALLER
from mofang.errors import Invalid
from mofang.server.faults import fit, internal
from mofang.server.rooms import Rooms
from mofang.server.tools.base import Listed, Result
from mofang.server.tools.calculate import CALCULATE
from mofang.server.tools.current_time import CURRENT_TIME
from mofang.server.tools.mcp import CALL_S, MARK, Group, Servers
from mofang.server.tools.search_documents import SEARCH_DOCUMENTS
from mofang.strings import language, say, speaking
from mofang.wire import Tool

OWN: Final = {
    "search_documents": SEARCH_DOCUMENTS,
    "calculate": CALCULATE,
    "current_time": CURRENT_TIME,
}

RESULT_CHARS: Final = 8_000
"""Of a result: about half of a context of 8192 tokens in Chinese. What is cut is said."""


@dataclass(frozen=True, slots=True)
class Listing:
    """What can be chosen from."""

    own: tuple[Listed, ...]
    groups: tuple[Group, ...]
    """The MCP servers, each with its tools or its fault; one without a name: mcp.json itself cannot be read."""


class Tools:
    """Every tool of this gateway, for whoever asks (CALLER)."""

    def __init__(self, rooms: Rooms, home: Path) -> None:
        self._rooms = rooms
        self._servers = Servers(home / "mcp.json", home / "logs")

    async def listed(self, lang: str, *, again: bool = False) -> Listing:
        """`again`: MCP servers that failed just now are tried again."""
        with speaking(lang):
            groups = [] if CALLER.get() else await self._servers.listed(again=again)
            return Listing(tuple(own(name) for name in OWN), tuple(groups))

    async def functions(self, names: Sequence[str], lang: str) -> list[Tool]:
        """These tools in OpenAI's shape. Raises Invalid for a name that is none, or what is wrong with its server."""
        with speaking(lang):
            return [(await self._find(name)).function() for name in dict.fromkeys(names)]

    async def call(self, name: str, arguments: str, lang: str) -> Result:
        """What comes of a call. What goes wrong is told to the model, too: it can do better, or say so."""
        with speaking(lang):
            try:
                async with asyncio.timeout(2 * CALL_S):
                    result = await self._call(name, _decoded(arguments))
            except TimeoutError:
                return Result(say("tools.took_too_long", seconds=int(2 * CALL_S)), failed=True)
            except Exception as failure:
                return Result(str(internal(failure, self._rooms.settings)), failed=True)
            return Result(_bounded(result.text) or say("tools.empty"), result.failed)

    async def close(self) -> None:
        """MCP servers end."""
        await self._servers.close()

    async def _find(self, name: str) -> Listed:
        if name in OWN:
            return own(name)
        if not CALLER.get() and MARK in name and (found := await self._servers.tool(name)):
            return found
        near = difflib.get_close_matches(name, OWN, n=1)
        raise Invalid("tools.unknown_tool", param="tools", name=name, near=near[0] if near else "-")

    async def _call(self, name: str, arguments: dict[str, Any]) -> Result:
        await self._find(name)
        if name not in OWN:
            return await self._servers.call(name, arguments)
        tool = OWN[name]
        given = {field: value for field, value in arguments.items() if value is not None}  # models write null for "not"
        asked = fit(tool.arguments, given, field="arguments", lang=language())
        return Result(await tool.run(asked, self._rooms))


def own(name: str) -> Listed:
    """One of ours, described in the language of the block at hand."""
    schema = OWN[name].arguments.model_json_schema()
    described = {
        field: {"type": about["type"], "description": say(f"tools.{name}_{field}")}
        for field, about in schema["properties"].items()
    }
    parameters = {"type": "object", "properties": described, "required": schema.get("required", [])}
    return Listed(name, say(f"tools.{name}_title"), say(f"tools.{name}_description"), parameters)


def _decoded(arguments: str) -> dict[str, Any]:
    """What a model wrote as arguments. Raises Invalid that tells it what is wrong."""
    try:
        decoded = json.loads(arguments or "{}")
    except (ValueError, RecursionError) as error:
        raise Invalid("tools.bad_json", param="arguments", why=error) from error
    if not isinstance(decoded, dict):
        raise Invalid("tools.bad_json", param="arguments", why=say("tools.no_object"))
    return decoded


def _bounded(text: str) -> str:
    if len(text) <= RESULT_CHARS:
        return text
    return f"{text[:RESULT_CHARS]}\n{say('tools.cut', kept=RESULT_CHARS, all=len(text))}"
