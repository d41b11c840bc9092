"""A call that must be made (tool_choice "required", or a tool by name), made certain.

llama.cpp's own "required" lets a model write whatever it likes before its call, and a small one then never calls
(Qwen2.5-Coder-0.5B, 2026-11-24: JSON in a code block and line breaks to the end); a named choice it passes over. Here the
prompt shows the tools as always, and the answer is held to {"name": …, "arguments": …} by a schema, whose text becomes
the pieces of one call. Knows nothing of connections.
"""

import json
import re
import secrets
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from mofang.messages import Delta

_HEAD = re.compile(r'\s*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"arguments"\s*:\s*')
_TAIL = re.compile(r"[\s}]*$")


def is_forced(options: Mapping[str, Any]) -> bool:
    choice = options.get("tool_choice")
    return choice == "required" or isinstance(choice, dict)


def forcing(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options under which the answer is the text of one call. A format of what is said beside it means nothing."""
    choice = options["tool_choice"]
    functions = [tool["function"] for tool in options["tools"]]
    if isinstance(choice, dict):
        functions = [one for one in functions if one["name"] == choice["function"]["name"]]
    definitions: dict[str, Any] = {}
    calls = [_call_schema(function, f"{number}_", definitions) for number, function in enumerate(functions)]
    schema = {**(calls[0] if len(calls) == 1 else {"anyOf": calls})}
    if definitions:
        schema["$defs"] = definitions
    kept = {name: value for name, value in options.items() if name not in ("response_format", "parallel_tool_calls")}
    return {**kept, "tool_choice": "none", "json_schema": schema}


def _call_schema(function: Mapping[str, Any], prefix: str, definitions: dict[str, Any]) -> dict[str, Any]:
    parameters = {"type": "object", **(function.get("parameters") or {})}
    for name in ("$defs", "definitions"):  # references count from the root
        for key, inner in parameters.pop(name, {}).items():
            definitions[prefix + key] = _renamed(inner, prefix)
    properties = {"name": {"const": function["name"]}, "arguments": _renamed(parameters, prefix)}
    return {"type": "object", "properties": properties, "required": list(properties)}


def _renamed(schema: Any, prefix: str) -> Any:
    """With references to definitions that stand at the root under a prefix."""
    if isinstance(schema, list):
        return [_renamed(one, prefix) for one in schema]
    if not isinstance(schema, dict):
        return schema
    shown = {key: _renamed(value, prefix) for key, value in schema.items()}
    if isinstance(reference := schema.get("$ref"), str):
        shown["$ref"] = re.sub(r"^#/(?:\$defs|definitions)/", f"#/$defs/{prefix}", reference)
    return shown


class Call:
    """The text of one call, as it comes."""

    def __init__(self) -> None:
        self._head = ""
        self._named = False
        self._held = ""
        """What may belong to the end of the text around the arguments."""

    def pieces(self, text: str) -> list[dict[str, Any]]:
        if self._named:
            return self._arguments(text)
        self._head += text
        found = _HEAD.match(self._head)
        if found is None:
            return []
        self._named = True
        function = {"name": json.loads(found[1]), "arguments": ""}
        head = {"index": 0, "id": f"call_{secrets.token_hex(12)}", "type": "function", "function": function}
        return [head, *self._arguments(self._head[found.end() :])]

    def end(self, *, whole: bool) -> list[dict[str, Any]]:
        """The rest of the arguments: without the outer brace, unless the text was cut before it."""
        rest = self._held
        if whole:
            rest = rest.rstrip().removesuffix("}").rstrip()
        return [{"index": 0, "function": {"arguments": rest}}] if rest and self._named else []

    def _arguments(self, text: str) -> list[dict[str, Any]]:
        text = self._held + text
        tail = _TAIL.search(text)
        at = tail.start() if tail else len(text)
        self._held = text[at:]
        return [{"index": 0, "function": {"arguments": text[:at]}}] if at else []


async def as_calls(deltas: AsyncGenerator[Delta, None]) -> AsyncGenerator[Delta, None]:
    """The pieces of answers that are calls, one for each of the `n`."""
    calls: dict[int, Call] = {}
    async with aclosing(deltas):
        async for delta in deltas:
            call = calls.setdefault(delta.index, Call())
            if delta.content:
                pieces = call.pieces(delta.content)
                if pieces or delta.reasoning or delta.logprobs:
                    yield replace(delta, content="", tool_calls=pieces or None)
                continue
            if delta.finish_reason:
                if rest := call.end(whole=delta.finish_reason == "stop"):
                    yield Delta(tool_calls=rest, index=delta.index)
                if delta.finish_reason == "stop":
                    delta = replace(delta, finish_reason="tool_calls")
            yield delta
