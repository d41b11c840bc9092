"""What a tool is to those who are given it and to those who run it."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from mofang.server.rooms import Rooms
from mofang.wire import Request, Tool


@dataclass(frozen=True, slots=True)
class Listed:
    """A tool as people and models are told of it."""

    name: str
    title: str
    description: str
    parameters: dict[str, Any]
    """JSON schema of its arguments."""
    server: str = ""
    """The MCP server that has it; "": our own."""

    def function(self) -> Tool:
        """OpenAI's shape."""
        function = {"name": self.name, "description": self.description, "parameters": self.parameters}
        return Tool.model_validate({"type": "function", "function": function})


@dataclass(frozen=True, slots=True)
class Result:
    """What the model is told of a call."""

    text: str
    failed: bool = False


@dataclass(frozen=True, slots=True)
class Own:
    """A tool of ours: a file of its own. Its title and descriptions are sentences of strings/<lang>/tools.toml:
    <name>_title, <name>_description, <name>_<argument>."""

    arguments: type[Request]
    run: Callable[[Any, Rooms], Awaitable[str]]
    """The result of a call with these arguments, in the language of the block at hand. Raises MofangError."""
