"""The tool `search_documents`: passages of the knowledge bases that the one who asks may read."""

import asyncio
from dataclasses import asdict
from typing import Final

from pydantic import Field

from mofang.errors import Invalid
from mofang.knowledge.base import Hit
from mofang.server.rooms import Rooms
from mofang.server.tools.base import Own
from mofang.strings import say, where
from mofang.wire import Request

PASSAGES: Final = 6
"""A context has room for little more beside a conversation."""


class Arguments(Request):
    query: str = Field(min_length=1, max_length=4096)
    knowledge: str = ""
    """One base's name; "": all of them."""


async def run(asked: Arguments, rooms: Rooms) -> str:
    known = await asyncio.to_thread(rooms.library.names)
    names = [asked.knowledge] if asked.knowledge else known
    if not names:
        raise Invalid("tools.no_knowledge", param="knowledge")
    notices: list[str] = []
    hits = await rooms.library.search(names, asked.query, k=PASSAGES, notices=notices)
    passages = [_passage(number, hit) for number, hit in enumerate(hits, start=1)]
    return "\n\n".join([*passages, *notices]) or say("tools.nothing_found", names=", ".join(names))


def _passage(number: int, hit: Hit) -> str:
    place = " · ".join([hit.title, *where(asdict(hit))])
    return "\n".join(part for part in (f"[{number}] {place}", hit.lead, hit.text.strip()) if part)


SEARCH_DOCUMENTS = Own(Arguments, run)
