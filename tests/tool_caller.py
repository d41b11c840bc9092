"""A small, honest stand-in for a model that calls tools and fills in schemas: it reads its arguments out of the question.

It calls a tool where one is offered and the last word is a person's: the one that the question or tool_choice names,
else the first. It knows no tool and no question; numbers and quoted words are what it understands.
"""

import json
import re
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

from fakes import TIMINGS, ScriptedEngine, Step
from mofang.messages import Delta, Message, Sampling, Usage


class ToolCaller(ScriptedEngine):
    def chat(self, messages: Sequence[Message], sampling: Sampling) -> AsyncIterator[Delta]:
        self.asked.append((list(messages), sampling))
        return self._follow(self.script or list(self._said(messages, sampling)))

    def _said(self, messages: Sequence[Message], sampling: Sampling) -> Iterator[Step]:
        options, question = sampling.options, messages[-1].text
        thoughts = "想一想。" if options.get("reasoning_effort") else ""
        yield from (Delta(reasoning=character) for character in thoughts)
        tool = _chosen(options, question) if messages[-1].role == "user" else None
        if tool is None:
            text = _formed(options, question) or f"好的：{question}"
            for stop in sampling.stop:
                text = text.partition(stop)[0]
            yield from (Delta(character) for character in text)
            finish = "stop"
        else:
            arguments = json.dumps(filled(tool.get("parameters") or {}, question), ensure_ascii=False)
            head = {"index": 0, "id": f"call_{len(self.asked)}", "type": "function"}
            yield Delta(tool_calls=[{**head, "function": {"name": tool["name"], "arguments": ""}}])
            for character in arguments:
                yield Delta(tool_calls=[{"index": 0, "function": {"arguments": character}}])
            text, finish = arguments, "tool_calls"
        prompt = sum(len(message.text) for message in messages) + 4
        usage = Usage(prompt, len(thoughts) + len(text), cached_tokens=3)
        yield Delta(finish_reason=finish, usage=usage, timings=TIMINGS)


def _chosen(options: dict[str, Any], question: str) -> dict[str, Any] | None:
    """The function to call, if any."""
    functions = [tool["function"] for tool in options.get("tools") or ()]
    choice = options.get("tool_choice", "auto")
    if not functions or choice == "none":
        return None
    named = choice["function"]["name"] if isinstance(choice, dict) else question
    return next((one for one in functions if one["name"] in named), functions[0])


def _formed(options: dict[str, Any], question: str) -> str | None:
    """An answer of the form that was asked for."""
    wanted = options.get("response_format", {"type": "text"})
    if wanted["type"] == "json_schema":
        return json.dumps(filled(wanted["json_schema"]["schema"], question), ensure_ascii=False)
    if wanted["type"] == "json_object":
        return json.dumps(dict.fromkeys(re.findall(r"'(\w+)'", question), question), ensure_ascii=False)
    return None


def filled(schema: dict[str, Any], text: str, root: dict[str, Any] | None = None) -> Any:
    """A value that fits the schema, from the numbers and quoted words of a text."""
    root = root or schema
    if "$ref" in schema:
        return filled(root["$defs"][schema["$ref"].rpartition("/")[2]], text, root)
    for several in ("anyOf", "allOf", "oneOf"):
        if several in schema:
            return filled(schema[several][0], text, root)
    if "enum" in schema or "const" in schema:
        return schema.get("const", (schema.get("enum") or [None])[0])
    kind = schema.get("type", "object" if "properties" in schema else "string")
    if kind == "object":
        return {name: filled(inner, text, root) for name, inner in schema.get("properties", {}).items()}
    if kind == "array":
        return [filled(schema.get("items", {}), text, root)]
    number = re.search(r"\d+", text)
    quoted = re.search(r"'([^']+)'", text)
    simple = {"integer": int(number[0]) if number else 1, "boolean": True, "null": None}
    simple["number"] = float(simple["integer"] or 1)
    return simple.get(kind, quoted[1] if quoted else text)
