"""Long work that is neither an answer nor a request: pulls and ingests. A task, an event log, and a way to stop it.

Jobs live in memory: what they achieve (a model file, a document's version) is kept by the rooms that they call.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from mofang.engine.base import CALLER
from mofang.errors import NotFound
from mofang.messages import Progress
from mofang.server.access import may_see
from mofang.server.answer import progress_shape
from mofang.server.events import Event, EventLog, on_this_loop, thinned
from mofang.server.faults import fault, internal
from mofang.server.store import new_id, now
from mofang.settings import Settings
from mofang.strings import speaking

log = logging.getLogger("mofang.server")

KEPT = 100
"""Finished jobs that stay listed."""

Work = Callable[[Callable[[Progress], None]], Awaitable[Any]]


@dataclass(eq=False)
class Job:
    kind: str
    title: str
    id: str = field(default_factory=lambda: new_id("job"))
    owner: str = field(default_factory=CALLER.get)
    """The key that started it; "": the machine's own user."""
    status: str = "running"
    created_at: str = field(default_factory=now)
    progress: dict[str, Any] | None = None
    result: Any = None
    error: dict[str, Any] | None = None
    events: EventLog = field(default_factory=EventLog)
    task: "asyncio.Task[None] | None" = None

    def shape(self) -> dict[str, Any]:
        names = ("id", "kind", "title", "status", "created_at", "progress", "result", "error")
        return {name: getattr(self, name) for name in names}


class Jobs:
    """Every job of this process, newest last. A key sees its own, the machine's own user all."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._jobs: dict[str, Job] = {}

    def all(self) -> list[Job]:
        return [job for job in self._jobs.values() if may_see(job.owner)]

    def get(self, job_id: str) -> Job:
        """Raises NotFound."""
        job = self._jobs.get(job_id)
        if job is None or not may_see(job.owner):
            raise NotFound("server.job_not_found", id=job_id)
        return job

    def find_running(self, kind: str, title: str) -> Job | None:
        same = (job for job in self.all() if (job.kind, job.title) == (kind, title))
        return next((job for job in same if job.status == "running"), None)

    def start(self, kind: str, title: str, work: Work, *, lang: str) -> Job:
        """Run `work(report)` as a task; its JSON result becomes the job's. What it says is said in `lang`."""
        job = Job(kind, title)
        self._jobs[job.id] = job
        job.task = asyncio.create_task(self._run(job, work, lang), name=job.id)
        self._forget()
        return job

    async def stop(self, job_id: str) -> Job:
        """Stop it and wait until it has; one that has ended stays as it ended."""
        job = self.get(job_id)
        if job.task and not job.task.done():
            job.task.cancel()
            await asyncio.wait({job.task})
        return job

    def follow(self, job_id: str, after: int) -> AsyncGenerator[tuple[int, Event], None]:
        return self.get(job_id).events.follow(after)

    async def close(self) -> None:
        """Stop all of them."""
        for job in self.all():
            await self.stop(job.id)

    async def _run(self, job: Job, work: Work, lang: str) -> None:
        told = thinned(lambda progress: _tell(job, progress))

        def report(progress: Progress) -> None:
            job.progress = progress_shape(progress)
            told(progress)

        try:
            with speaking(lang):
                job.result = await work(on_this_loop(report))
            job.status = "done"
            job.events.append({"type": "done", "result": job.result})
        except asyncio.CancelledError:
            job.status = "stopped"
            job.events.append({"type": "stopped"})
        except Exception as error:
            job.status, job.error = "error", fault(internal(error, self._settings), lang)
            log.info("job %s (%s) failed: %s", job.id, job.kind, job.error["code"])
            job.events.append({"type": "error", "error": job.error})
        finally:
            job.events.close()

    def _forget(self) -> None:
        ended = [job_id for job_id, job in self._jobs.items() if job.status != "running"]
        for job_id in ended[:-KEPT]:
            del self._jobs[job_id]


def _tell(job: Job, progress: Progress) -> None:
    job.events.append({"type": "progress", **progress_shape(progress)})
