"""`mofang mcp`: the knowledge bases for other programs, over the Model Context Protocol."""

from typing import Annotated

import typer

from mofang.strings import say


def mcp(
    knowledge: Annotated[list[str] | None, typer.Option("--kb", metavar="KB", help=say("mcp.option_kb"))] = None,
    url: Annotated[str | None, typer.Option(metavar="URL", help=say("mcp.option_url"))] = None,
) -> None:
    from mofang import api

    api.serve_mcp(knowledge or (), url=url)
