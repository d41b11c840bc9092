"""The tools that answers may ask for, and people's decisions about their calls."""

from typing import Any

from fastapi import APIRouter, Query

from mofang.server.faults import fault
from mofang.server.routes.generations import start
from mofang.server.routes.here import Here, Lang
from mofang.server.tools.base import Listed
from mofang.server.tools.mcp import Group
from mofang.wire import GenerationRequest, ToolDecision

router = APIRouter(tags=["tools"])


@router.get("/v1/tools")
async def list_tools(backend: Here, lang: Lang, again: bool = Query(default=False)) -> dict[str, Any]:
    """Ours, and those of the MCP servers of mcp.json. What is wrong with a server stands beside its name; `again` tries
    those that failed a moment ago."""
    found = await backend.tools.listed(lang, again=again)
    tools = [*found.own, *(tool for group in found.groups for tool in group.tools)]
    servers = [_server(group, lang) for group in found.groups]
    return {"object": "list", "data": [_shape(tool) for tool in tools], "servers": servers}


def _shape(tool: Listed) -> dict[str, Any]:
    return {
        "name": tool.name,
        "object": "tool",
        "title": tool.title,
        "description": tool.description,
        "parameters": tool.parameters,
        "server": tool.server,
    }


def _server(group: Group, lang: str) -> dict[str, Any]:
    """A server without a name is the file itself, which cannot be read."""
    return {
        "name": group.server,
        "n_tools": len(group.tools),
        "fault": None if group.fault is None else fault(group.fault, lang),
    }


@router.post("/v1/conversations/{conversation_id}/tool_calls")
async def decide(conversation_id: str, body: ToolDecision, backend: Here, lang: Lang) -> dict[str, Any]:
    """Make a call that an answer asks for, or refuse it: the message with the result, below the answer. Once a call."""

    async def go_on(parent_id: str) -> None:
        await start(GenerationRequest(conversation_id=conversation_id, parent_id=parent_id), backend, lang)

    return await backend.calls.decide(conversation_id, body, lang=lang, go_on=go_on if body.go_on else None)


@router.post("/v1/conversations/{conversation_id}/tool_calls/{message_id}/stop")
async def stop(conversation_id: str, message_id: str, backend: Here) -> dict[str, Any]:
    """End a call that is being made; `message_id` is its result's. The answer does not go on by itself after it."""
    return await backend.calls.stop(conversation_id, message_id)
