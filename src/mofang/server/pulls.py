"""Pulls as jobs that can be paused, and gone on with after a restart. A wish is {"name", "kind", "source"}."""

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mofang.server import described
from mofang.server.jobs import Job, Lasting, Wish, Work
from mofang.server.rooms import Report
from mofang.wire import PullRequest

if TYPE_CHECKING:
    from mofang.server.backend import Backend

KIND = "pull"
"""Of the job."""


def lasting(backend: "Backend") -> Mapping[str, Lasting]:
    """For the table of jobs that can be gone on with."""

    def work_of(wish: Wish) -> Work:
        async def work(report: Report) -> Any:
            ref = await backend.pull(wish["name"], wish["kind"], wish["source"], report)
            return await asyncio.to_thread(described.model, backend, ref)

        return work

    async def discard(wish: Wish) -> None:
        await asyncio.to_thread(backend.discard_pull, wish["name"], wish["kind"])

    return {KIND: Lasting(work_of, discard)}


def start(backend: "Backend", body: PullRequest, lang: str) -> Job:
    """The job of a pull: the open one of the same model, where there is one."""
    title = body.name if body.name != "auto" else f"auto ({body.kind})"
    wish = {"name": body.name, "kind": body.kind, "source": body.source}
    return backend.jobs.start_lasting(KIND, title, wish, lang=lang)
