"""An MCP server over stdio: other programs search our bases and ask them, through the gateway. Extra [mcp].

Model Context Protocol, with its official SDK (modelcontextprotocol.io). Standard output belongs to the protocol.
"""

import asyncio
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from pydantic import BaseModel, Field

from mofang import __version__
from mofang.client import Client
from mofang.errors import MissingExtra, MofangError, NotFound
from mofang.strings import say

if TYPE_CHECKING:
    from mcp.server.mcpserver import MCPServer

T = TypeVar("T")


class Base(BaseModel):
    name: str
    title: str
    n_documents: int


class Passage(BaseModel):
    """A span of a document's text, and where a person finds it."""

    knowledge: str
    document: str
    page: int | None = None
    headings: list[str] = []
    text: str
    start: int
    end: int


class CitedPassage(Passage):
    number: int
    """The n of the mark [n] in the answer."""
    cited: bool


class Reply(BaseModel):
    answer: str
    sources: list[CitedPassage]
    notices: list[str] = []


def server(client: Client, knowledge: Sequence[str] = ()) -> "MCPServer[Any]":
    """The tools list_knowledge, search and ask over `client`'s gateway.

    knowledge: names of the bases that are offered; none: all that the client's key may read. Raises MissingExtra.
    """
    if find_spec("mcp") is None:
        raise MissingExtra("core.missing_extra", name="mofang mcp", library="mcp", extra="mcp")
    from mcp.server.mcpserver import MCPServer
    from mcp.server.mcpserver.exceptions import ToolError
    from mcp.types import ToolAnnotations

    found = MCPServer[Any](
        "mofang", title="Mofang 模坊", instructions=say("mcp.instructions"), version=__version__, log_level="WARNING"
    )
    reads = ToolAnnotations(read_only_hint=True, open_world_hint=False)

    async def tried(call: Callable[[], T]) -> T:
        """`call` in a thread, its refusal as the tool's own: the program is told what the person would be."""
        try:
            return await asyncio.to_thread(call)
        except MofangError as error:
            raise ToolError(str(error)) from error

    def offered() -> list[dict[str, Any]]:
        return [base for base in client.knowledge() if not knowledge or base["name"] in knowledge]

    def chosen(names: Sequence[str] | None) -> list[str]:
        known = [str(base["name"]) for base in offered()]
        wanted = list(names or known)
        for name in wanted or [""]:
            if name not in known:
                raise NotFound("mcp.not_offered", name=name, known=", ".join(known) or "-")
        return wanted

    names = Annotated[list[str] | None, Field(description=say("mcp.which"))]

    async def list_knowledge() -> list[Base]:
        return [Base(**base) for base in await tried(offered)]

    async def search(
        query: Annotated[str, Field(description=say("mcp.query"))],
        knowledge: names = None,
        k: Annotated[int, Field(ge=1, le=50, description=say("mcp.k"))] = 8,
    ) -> list[Passage]:
        hits = await tried(lambda: client.search(chosen(knowledge), query, k))
        return [Passage(**_passage(hit)) for hit in hits]

    async def ask(
        question: Annotated[str, Field(description=say("mcp.question"))],
        knowledge: names = None,
    ) -> Reply:
        def asked() -> dict[str, Any]:
            messages = [{"role": "user", "content": question}]
            body = {"model": "auto", "messages": messages, "knowledge": chosen(knowledge)}
            return dict(client.request("POST", "/v1/chat/completions", body))

        answer = await tried(asked)
        sources = answer.get("sources") or []
        return Reply(
            answer=answer["choices"][0]["message"]["content"] or "",
            sources=[CitedPassage(**_passage(one), number=one["number"], cited=one["cited"]) for one in sources],
            notices=[notice["message"] for notice in answer.get("notices") or []],
        )

    for tool in (list_knowledge, search, ask):
        found.add_tool(tool, description=say(f"mcp.{tool.__name__}"), annotations=reads)
    return found


def _passage(shape: dict[str, Any]) -> dict[str, Any]:
    """A hit or source of the API as a Passage's fields."""
    same = ("knowledge", "page", "headings", "text", "start", "end")
    return {**{name: shape[name] for name in same}, "document": shape["title"]}


async def serve(client: Client, knowledge: Sequence[str] = ()) -> None:
    """Speak the protocol on standard input and output until the other side closes them."""
    await server(client, knowledge).run_stdio_async()
