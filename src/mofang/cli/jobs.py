"""Run a job of the gateway (a pull, an ingest) to its end: progress on standard error, Ctrl-C stops the job."""

from collections.abc import Mapping
from typing import Any

from mofang.cli.follow import following
from mofang.cli.render import ProgressBar
from mofang.client import ApiError, Client
from mofang.errors import EngineFailed
from mofang.strings import say

PAUSES = ("paused", "resumed")
"""Said elsewhere, in the workbench or over HTTP; the job has not ended."""


class JobStopped(Exception):
    """The job was stopped, here or elsewhere. `progress` is how far it had come."""

    def __init__(self, progress: Mapping[str, Any]) -> None:
        super().__init__(progress)
        self.progress = progress


def finish(client: Client, job: Mapping[str, Any], *, title: str) -> Any:
    """The job's result. Raises ApiError when it failed, JobStopped when it was stopped."""
    job_id = job["id"]
    progress: Mapping[str, Any] = job.get("progress") or {}
    with (
        ProgressBar(title) as bar,
        following(lambda: client.follow_job(job_id), lambda: client.stop_job(job_id)) as events,
    ):
        for event in events:
            if event is None:
                continue
            if event["type"] == "done":
                return event.get("result")
            if event["type"] == "stopped":
                raise JobStopped(progress)
            if event["type"] == "error":
                raise ApiError(502, event.get("error") or {})
            if event["type"] in PAUSES:
                bar.say(say(f"cli.job_{event['type']}"))
                continue
            if event.get("stage") == "notice":  # a source passed over, a default skipped
                bar.say(str(event.get("detail") or ""))
                continue
            progress = event
            bar.update(event)
    raise EngineFailed("cli.job_lost")
