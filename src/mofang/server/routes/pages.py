"""OpenAI's lists: a page of items that have an id, and how to ask for the next one. No routes here."""

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import Query

from mofang.errors import Invalid

Limit = Annotated[int, Query(ge=1, le=10_000)]
Order = Literal["asc", "desc"]
After = Annotated[str | None, Query(max_length=200)]
Before = Annotated[str | None, Query(max_length=200)]


def page(
    items: Sequence[dict[str, Any]], *, limit: int, order: Order, after: str | None = None, before: str | None = None
) -> dict[str, Any]:
    """`items`, oldest first, as one page. Raises Invalid for a cursor that is none of theirs."""
    rows = list(items) if order == "asc" else list(items)[::-1]
    ids = [row["id"] for row in rows]
    for name, cursor in (("after", after), ("before", before)):
        if cursor is not None and cursor not in ids:
            raise Invalid("server.bad_cursor", param=name, cursor=cursor)
    start = ids.index(after) + 1 if after is not None else 0
    end = ids.index(before) if before is not None else len(rows)
    rows = rows[start:end]
    shown = rows[:limit]
    return {
        "object": "list",
        "data": shown,
        "first_id": shown[0]["id"] if shown else None,
        "last_id": shown[-1]["id"] if shown else None,
        "has_more": len(rows) > len(shown),
    }


def unix(moment: str) -> int:
    """Seconds since 1970 of a time in ISO 8601."""
    return int(datetime.fromisoformat(moment).timestamp())
