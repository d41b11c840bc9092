"""A call that must be made: the schema that it is held to, and its text as the pieces of a call."""

import json
from collections.abc import AsyncGenerator
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from mofang.engine.llama.forced import as_calls, forcing
from mofang.messages import Delta, Usage

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text('长城龘🙂}"\\ a', max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("键}a", max_size=3), inner, max_size=3),
    max_leaves=8,
)
ARGUMENTS = st.dictionaries(st.text('键}"a', max_size=4), VALUES, max_size=4)


def _tool(name: str, **parameters: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


@given(ARGUMENTS, st.sampled_from([None, 1, 2]), st.lists(st.integers(1, 5), max_size=60), st.booleans())
async def test_the_call_however_its_text_is_cut(
    arguments: dict[str, Any], indent: int | None, sizes: list[int], whole: bool
) -> None:
    text = json.dumps({"name": '查"天气', "arguments": arguments}, ensure_ascii=False, indent=indent) + "\n" * whole
    shown = text if whole else text[: max(0, len(text.rstrip()) - 1)].rstrip()

    async def said() -> AsyncGenerator[Delta, None]:
        left = shown
        for size in [*sizes, len(shown)]:
            if left:
                yield Delta(left[:size])
            left = left[size:]
        yield Delta(finish_reason="stop" if whole else "length", usage=Usage(1, 1))

    pieces = [delta async for delta in as_calls(said())]
    calls = [call for delta in pieces for call in delta.tool_calls or ()]
    assert not any(delta.content for delta in pieces)
    assert calls[0]["function"]["name"] == '查"天气' and all("name" not in call["function"] for call in calls[1:])
    assert json.loads("".join(call["function"]["arguments"] for call in calls)) == arguments
    assert pieces[-1].finish_reason == ("tool_calls" if whole else "length")


def test_one_tool_by_name_and_all_of_them() -> None:
    tools = [_tool("a", properties={"x": {"type": "integer"}}), _tool("b")]
    named = forcing({"tools": tools, "tool_choice": {"type": "function", "function": {"name": "b"}}, "top_k": 1})
    assert named["tools"] == tools and (named["tool_choice"], named["top_k"]) == ("none", 1)
    assert named["json_schema"]["properties"] == {"name": {"const": "b"}, "arguments": {"type": "object"}}
    every = forcing({"tools": tools, "tool_choice": "required"})["json_schema"]["anyOf"]
    assert [one["properties"]["name"]["const"] for one in every] == ["a", "b"]
    assert every[0]["properties"]["arguments"] == {"type": "object", "properties": {"x": {"type": "integer"}}}


def test_definitions_of_two_tools_do_not_meet() -> None:
    def tool(name: str, kind: str) -> dict[str, Any]:
        return _tool(name, properties={"x": {"$ref": "#/$defs/X"}}, **{"$defs": {"X": {"type": kind}}})

    options = {"tools": [tool("a", "string"), tool("b", "integer")], "tool_choice": "required"}
    schema = forcing(options)["json_schema"]
    assert schema["$defs"] == {"0_X": {"type": "string"}, "1_X": {"type": "integer"}}
    references = [one["properties"]["arguments"]["properties"]["x"]["$ref"] for one in schema["anyOf"]]
    assert references == ["#/$defs/0_X", "#/$defs/1_X"]
