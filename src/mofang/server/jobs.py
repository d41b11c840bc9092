"""Long work that is neither an answer nor a request: pulls and ingests. A task, an event log, and a way to stop it.

Jobs live in memory: what they achieve (a model file, a document's version) is kept by the rooms that they call. One that
can be gone on with (`wish`) can be paused, and stands on disk until it has ended: a gateway that starts again lists it
as paused, whether it was or the gateway went away under it.
"""

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mofang.engine.base import CALLER
from mofang.errors import Conflict, NotFound
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

OPEN = ("running", "paused")
"""What has not ended."""

Wish = dict[str, Any]
Work = Callable[[Callable[[Progress], None]], Awaitable[Any]]


@dataclass(frozen=True, slots=True)
class Lasting:
    """A kind of job that can be gone on with: the work that a wish asks for, and what deletes all that it has brought
    so far."""

    work: Callable[[Wish], Work]
    discard: Callable[[Wish], Awaitable[None]]


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
    wish: Wish | None = None
    """What makes its work anew, as JSON; None: it cannot be gone on with."""
    lang: str = ""
    events: EventLog = field(default_factory=EventLog)
    task: "asyncio.Task[None] | None" = None
    pausing: bool = False
    """It is being stopped to be gone on with."""

    def shape(self) -> dict[str, Any]:
        """`pausable`: whether it can be paused, and gone on with."""
        names = ("id", "kind", "title", "status", "created_at", "progress", "result", "error")
        return {**{name: getattr(self, name) for name in names}, "pausable": self.wish is not None}


KEPT_FIELDS = ("id", "kind", "title", "owner", "created_at", "progress", "wish", "lang")
"""Of a job on disk."""


class Jobs:
    """Every job of this process, newest last. A key sees its own, the machine's own user all.

    lasting: the kinds that can be gone on with. Those of them that have not ended stand in `file`; `restore` reads it.
    """

    def __init__(self, settings: Settings, file: Path, lasting: Mapping[str, Lasting]) -> None:
        self._settings = settings
        self._file = file
        self._kinds = lasting
        self._jobs: dict[str, Job] = {}

    def all(self) -> list[Job]:
        return [job for job in self._jobs.values() if may_see(job.owner)]

    def get(self, job_id: str) -> Job:
        """Raises NotFound."""
        job = self._jobs.get(job_id)
        if job is None or not may_see(job.owner):
            raise NotFound("server.job_not_found", id=job_id)
        return job

    def find_open(self, kind: str, title: str) -> Job | None:
        """The one of that kind and title that runs or is paused."""
        same = (job for job in self.all() if (job.kind, job.title) == (kind, title))
        return next((job for job in same if job.status in OPEN), None)

    def start(self, kind: str, title: str, work: Work, *, lang: str) -> Job:
        """Run `work(report)` as a task; its JSON result becomes the job's. What it says is said in `lang`."""
        return self._begin(Job(kind, title, lang=lang), work)

    def start_lasting(self, kind: str, title: str, wish: Wish, *, lang: str) -> Job:
        """Start what can be paused and gone on with; the one that is open, where there is one: paused, it goes on."""
        job = self.find_open(kind, title)
        if job is None:
            return self._begin(Job(kind, title, wish=wish, lang=lang), self._kinds[kind].work(wish))
        if job.status == "paused":
            job.wish, job.lang = wish, lang
        return self.resume(job.id)

    async def stop(self, job_id: str) -> Job:
        """Stop it and wait until it has; one that has ended stays as it ended."""
        job = self.get(job_id)
        await self._cancel(job)
        if job.status == "paused":
            self._end(job, "stopped")
        return job

    async def pause(self, job_id: str) -> Job:
        """Stop it so that it can be gone on with. Raises Conflict for one that cannot be, or has ended."""
        job = self._lasting(job_id)
        job.pausing = True
        await self._cancel(job)
        return job

    def resume(self, job_id: str) -> Job:
        """Go on with a paused one. Raises Conflict as `pause`."""
        job = self._lasting(job_id)
        if job.status == "paused":
            assert job.wish is not None
            job.events.append({"type": "resumed"})
            self._begin(job, self._kinds[job.kind].work(job.wish))
        return job

    async def drop(self, job_id: str) -> Job:
        """Stop it, and delete what it has brought. Raises Conflict as `pause`."""
        job = self._lasting(job_id)
        await self.stop(job_id)
        assert job.wish is not None
        if job.status == "stopped":
            await self._kinds[job.kind].discard(job.wish)
        return job

    def _lasting(self, job_id: str) -> Job:
        job = self.get(job_id)
        if job.wish is None or job.status not in OPEN:
            raise Conflict("server.job_not_pausable", id=job_id, status=job.status)
        return job

    def follow(self, job_id: str, after: int) -> AsyncGenerator[tuple[int, Event], None]:
        return self.get(job_id).events.follow(after)

    def restore(self) -> None:
        """List as paused what an earlier process left open. Blocks; a file that cannot be read is told of and left."""
        try:
            kept = json.loads(self._file.read_text(encoding="utf-8"))
            jobs = [Job(**one, status="paused") for one in kept if one["kind"] in self._kinds]
        except FileNotFoundError:
            return
        except (OSError, ValueError, TypeError, KeyError) as error:
            log.warning("the paused jobs of %s cannot be read: %s", self._file, error)
            return
        self._jobs |= {job.id: job for job in jobs}

    async def close(self) -> None:
        """Stop all of them; those that can be gone on with stay on disk."""
        for job in self.all():
            job.pausing = job.wish is not None
            await self._cancel(job)

    def _begin(self, job: Job, work: Work) -> Job:
        self._jobs[job.id] = job
        job.status, job.pausing = "running", False
        job.task = asyncio.create_task(self._run(job, work, job.lang), name=job.id)
        self._forget()
        self._save(job)
        return job

    async def _cancel(self, job: Job) -> None:
        """Wait until its work has stopped, where there is some; the job is then paused or stopped."""
        if job.task and not job.task.done():
            job.task.cancel()
            await asyncio.wait({job.task})
            if job.status == "running":  # cancelled before its first step
                self._end(job, "paused" if job.pausing else "stopped")

    def _end(self, job: Job, status: str, **last: Any) -> None:
        """Its last word, or, paused, its last for now."""
        job.status = status
        job.events.append({"type": status, **last})
        if status not in OPEN:
            job.events.close()
        self._save(job)

    def _save(self, job: Job) -> None:
        """Those that can be gone on with, as they are now: a few lines, written when one of them begins, pauses, ends."""
        if job.wish is None:
            return
        kept = [one for one in self._jobs.values() if one.wish is not None and one.status in OPEN]
        aside = self._file.with_name(f".{self._file.name}.part")
        shapes = [{name: getattr(one, name) for name in KEPT_FIELDS} for one in kept]
        try:
            aside.write_text(json.dumps(shapes, ensure_ascii=False), encoding="utf-8")
            aside.replace(self._file)
        except OSError as error:  # a full disk: the work itself says so where it needs room
            log.warning("%s was not written: %s", self._file, error)

    async def _run(self, job: Job, work: Work, lang: str) -> None:
        told = thinned(lambda progress: _tell(job, progress))

        def report(progress: Progress) -> None:
            job.progress = progress_shape(progress)
            told(progress)

        try:
            with speaking(lang):
                job.result = await work(on_this_loop(report))
            self._end(job, "done", result=job.result)
        except asyncio.CancelledError:
            self._end(job, "paused" if job.pausing else "stopped")
        except Exception as error:
            job.error = fault(internal(error, self._settings), lang)
            log.info("job %s (%s) failed: %s", job.id, job.kind, job.error["code"])
            self._end(job, "error", error=job.error)

    def _forget(self) -> None:
        ended = [job_id for job_id, job in self._jobs.items() if job.status not in OPEN]
        for job_id in ended[:-KEPT]:
            del self._jobs[job_id]


def _tell(job: Job, progress: Progress) -> None:
    job.events.append({"type": "progress", **progress_shape(progress)})
