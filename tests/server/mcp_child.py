"""A small MCP server, for tests of those who use one: `python mcp_child.py [MODE]` speaks on standard input and output.

crash: leaves at once, saying why; deaf: says nothing, and stays when its input closes.
"""

import asyncio
import os
import sys
import time
from typing import Annotated, Any

from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from pydantic import Field


def server() -> MCPServer[Any]:
    found = MCPServer[Any]("child")

    @found.tool(title="相加", description="两个数的和")
    def add(a: int, b: Annotated[int, Field(ge=0)]) -> str:
        return str(a + b)

    @found.tool()
    def pid() -> str:
        return str(os.getpid())

    @found.tool()
    def environment(name: str) -> str:
        return os.environ.get(name, "-")

    @found.tool()
    def long() -> str:
        return "字" * 20_000

    @found.tool()
    def fail() -> str:
        raise ToolError("这样不行")

    @found.tool()
    def die() -> str:
        os._exit(3)

    @found.tool()
    async def hang() -> str:
        await asyncio.sleep(3600)
        return "醒了"

    return found


def deaf() -> None:
    print("正在等天亮", file=sys.stderr, flush=True)
    while True:
        time.sleep(60)


if __name__ == "__main__":
    mode = sys.argv[1] if len(sys.argv) > 1 else ""
    if mode == "crash":
        sys.exit("没有配置文件，口令是 geheim-4711")
    deaf() if mode == "deaf" else server().run("stdio")
