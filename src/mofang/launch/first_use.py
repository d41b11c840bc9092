"""What a home needs before its first conversation: the default models, and Mofang's own documents as a knowledge base.

Everything goes over the gateway's HTTP API, so it can be watched in the workbench as well. Nothing here is fatal:
what could not be had is said, and the rest works.
"""

from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

from mofang.client import ApiError, Client
from mofang.errors import MofangError
from mofang.strings import say

HANDBOOK = "handbook"
"""Name of the knowledge base that holds Mofang's own documents."""

Report = Callable[[str], None]
Show = Callable[[dict[str, Any]], None]


def prepare(client: Client, *, report: Report, show: Show) -> None:
    """Bring what is missing. `report` gets lines for people, `show` the events of running jobs."""
    ready = _ready(client)
    if not (ready.get("chat_model") and ready.get("embedding_model")):
        report(say("launch.bringing_models"))
    for kind in ("chat", "embedding"):
        if ready.get(f"{kind}_model"):
            continue
        try:
            model = _finish(client, client.pull("auto", kind=kind), show)
        except MofangError as error:
            report(say("launch.model_missing", why=error.message(), hint=error.hint()))
            continue
        report(say("launch.model_ready", name=model["id"], kind=kind))
        if kind == "chat":
            client.load_model(model["id"])
    if ready.get("chat_model"):
        client.load_model(ready["chat_model"])
    if _ready(client).get("embedding_model"):
        _handbook(client, report=report, show=show)


def _ready(client: Client) -> dict[str, Any]:
    try:
        return client.ready()
    except ApiError as error:
        if error.status != 503:
            raise
        return dict(error.fault)


def _finish(client: Client, job: dict[str, Any], show: Show) -> Any:
    """Follow a job to its end and return its result. Raises ApiError when it failed or was stopped."""
    for event in client.follow_job(job["id"]):
        show(event)
        if event["type"] == "done":
            return event["result"]
        if event["type"] in ("error", "stopped"):
            raise ApiError(502, event.get("error") or {"message": event["type"], "code": event["type"]})
    raise ApiError(502, {"message": "the job's events ended without a result", "code": "job_lost"})


def _handbook(client: Client, *, report: Report, show: Show) -> None:
    try:
        if HANDBOOK not in {base["name"] for base in client.knowledge()}:
            report(say("launch.reading_handbook", name=HANDBOOK))
            client.create_knowledge(HANDBOOK, title=say("launch.handbook_title"))
        pages = [(name, path.read_bytes()) for name, path in handbook_pages()]
        result = _finish(client, client.add_documents(HANDBOOK, pages), show)
        failed = [file for file in result["files"] if file["status"] == "failed"]
        for file in failed:
            report(say("launch.handbook_failed", why=f"{file['name']}: {file['error']}"))
        gone = {document["name"]: document["id"] for document in client.documents(HANDBOOK)}
        for name in gone.keys() - {name for name, _ in pages}:  # pages that this version no longer has
            client.remove_document(HANDBOOK, gone[name])
        report(say("launch.handbook_ready", name=HANDBOOK, documents=len(pages) - len(failed)))
    except MofangError as error:
        report(say("launch.handbook_failed", why=error.message()))


def handbook_pages() -> Iterator[tuple[str, Path]]:
    """The Chinese pages of docs/ for users, wherever this installation keeps them: (relative name, path)."""
    packaged = Path(str(files("mofang"))) / "handbook"
    folder = packaged if packaged.is_dir() else Path(__file__).parents[3] / "docs"
    for path in sorted(folder.rglob("*.md")):
        if not path.name.endswith(".en.md") and path.name != "log.md" and path.parent.name != "decisions":
            yield path.relative_to(folder).as_posix(), path
