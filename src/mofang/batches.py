"""Many requests from a file, their answers into a file: OpenAI's batch format in and out.

A line of the input:  {"custom_id", "method": "POST", "url": "/v1/chat/completions", "body": {…}}
A line of the output: {"id", "custom_id", "response": {"status_code", "request_id", "body"}, "error"}

Answers are appended as they come, whole lines only, in whatever order they are done. Begun again with the same files, what
was answered is not asked again, so a break costs the requests that were under way. What the server refuses (a wrong field,
a model that is not there) is an answer too: its error stands in its line, and the others go on.

Format: https://platform.openai.com/docs/guides/batch
"""

import contextlib
import json
import threading
import time
import uuid
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from mofang.client import ApiError, Client
from mofang.errors import Conflict, Invalid, NotFound, Unreadable

ROUTES = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses")
"""Where requests may go."""
FULL = (429, 503)
"""The gateway's queue is full, or it is about to come back: asked again a little later."""
WAIT_S, PATIENCE_S = 1.0, 600.0
"""Seconds before a full gateway is asked again, and how long it may stay full."""

Tell = Callable[[int, int], None]
"""Hears how many of the requests have an answer, and how many there are."""


@dataclass(frozen=True, slots=True)
class Request:
    """One line of the input."""

    custom_id: str
    url: str
    body: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a file."""

    path: str
    requests: int
    answered: int
    """With an answer of a model, those of earlier starts among them."""
    refused: int
    """With an error in their line."""
    kept: int
    """Answered by an earlier start, and not asked again."""
    tokens: int
    """That models wrote for this start's requests, as the answers tell."""
    seconds: float


def read(path: Path, model: str | None = None) -> list[Request]:
    """The requests of a file; `model` in place of what their bodies name. Raises NotFound, Unreadable, Invalid for the
    first line that is no request."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError as error:
        raise NotFound("client.batch_no_file", path=path) from error
    except (OSError, UnicodeDecodeError) as error:
        raise Unreadable("client.batch_unreadable", path=path, why=error) from error
    found: dict[str, Request] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        request = _request(path, number, line, model)
        if request.custom_id in found:
            raise Invalid("client.batch_twice", path=path, line=number, custom_id=request.custom_id)
        found[request.custom_id] = request
    if not found:
        raise Invalid("client.batch_empty", path=path)
    return list(found.values())


def _request(path: Path, number: int, line: str, model: str | None) -> Request:
    def wrong(field: str, why: str) -> Invalid:
        return Invalid("client.batch_line", path=path, line=number, field=field, why=why)

    try:
        row = json.loads(line)
    except ValueError as error:
        raise wrong("-", str(error)) from error
    if not isinstance(row, dict):
        raise wrong("-", "{…}")
    custom_id, url, body = row.get("custom_id"), row.get("url"), row.get("body")
    if not isinstance(custom_id, str) or not custom_id:
        raise wrong("custom_id", '"request-1"')
    if row.get("method", "POST") != "POST":
        raise wrong("method", '"POST"')
    if url not in ROUTES:
        raise wrong("url", " | ".join(ROUTES))
    if not isinstance(body, dict):
        raise wrong("body", "{…}")
    if body.get("stream"):
        raise wrong("body.stream", "false")
    return Request(custom_id, url, {**body, "model": model or body.get("model") or "auto"})


def run(
    client: Client,
    requests: list[Request],
    out: Path,
    *,
    concurrency: int,
    again: bool = False,
    tell: Tell | None = None,
) -> Outcome:
    """Ask what `out` holds no answer to, `concurrency` at a time, and append the answers to it.

    `again`: ask anew what was refused before. Raises Conflict for a file of other requests or one that another process
    writes, Unreachable when the gateway is gone: what was answered by then is kept.
    """
    begun = time.monotonic()
    with _held(out):
        kept = _answered(out, {request.custom_id for request in requests}, again)
        left = [request for request in requests if request.custom_id not in kept]
        done, tokens, refused = len(kept), 0, sum(not fine for fine in kept.values())
        with out.open("ab") as file, contextlib.closing(_lines(client, left, concurrency)) as lines:
            if tell:
                tell(done, len(requests))
            for line in lines:
                file.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
                file.flush()
                done += 1
                refused += not _is_fine(line)
                tokens += ((line["response"]["body"] or {}).get("usage") or {}).get("completion_tokens") or 0
                if tell:
                    tell(done, len(requests))
    return Outcome(
        str(out), len(requests), done - refused, refused, len(kept), tokens, round(time.monotonic() - begun, 3)
    )


def _lines(client: Client, requests: list[Request], concurrency: int) -> Generator[dict[str, Any], None, None]:
    """The answers, each as soon as it is there; never more than `concurrency` requests are under way."""
    leaving = threading.Event()
    pool = ThreadPoolExecutor(concurrency, thread_name_prefix="batch")
    try:
        waiting = iter(requests)
        under_way: set[Future[dict[str, Any]]] = set()
        while True:
            for request in islice(waiting, concurrency - len(under_way)):
                under_way.add(pool.submit(_line, client, request, leaving))
            if not under_way:
                return
            finished, under_way = wait(under_way, return_when=FIRST_COMPLETED)
            for each in finished:
                yield each.result()
    finally:  # whoever leaves in the middle closes the client, which ends the requests that are under way
        leaving.set()
        pool.shutdown(wait=False, cancel_futures=True)


def _line(client: Client, request: Request, leaving: threading.Event) -> dict[str, Any]:
    """The answer to one request as a line of the output. Raises Unreachable."""
    until = time.monotonic() + PATIENCE_S
    while True:
        try:
            status, body = 200, client.request("POST", request.url, request.body)
        except ApiError as error:
            if error.status in FULL and time.monotonic() < until and not leaving.wait(WAIT_S):
                continue
            status, body = error.status, {"error": dict(error.fault)}
        return {
            "id": f"batch_req_{uuid.uuid4().hex}",
            "custom_id": request.custom_id,
            "response": {"status_code": status, "request_id": str((body or {}).get("id") or ""), "body": body},
            "error": None,
        }


def _is_fine(line: Mapping[str, Any]) -> bool:
    return bool(line["response"]["status_code"] == 200)


# ---- the output ----


@contextlib.contextmanager
def _held(out: Path) -> Iterator[None]:
    """Nobody else writes the output for the length of the block. Raises Conflict."""
    out.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(out.with_name(f".{out.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise Conflict("client.batch_busy", path=out) from error
    try:
        yield
    finally:
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


def _answered(out: Path, wanted: set[str], again: bool) -> dict[str, bool]:
    """By custom_id, whether what an earlier start wrote is a model's answer. A last line that a kill tore goes; with
    `again`, refusals go too."""
    if not out.exists():
        return {}
    written, kept, lines = out.read_bytes(), {}, []
    for number, line in enumerate(written.split(b"\n")[:-1], 1):
        try:
            row = json.loads(line)
            name, fine = row["custom_id"], _is_fine(row)
        except (ValueError, KeyError, TypeError) as error:
            raise Conflict("client.batch_not_ours", path=out, line=number) from error
        if name not in wanted:
            raise Conflict("client.batch_other", path=out, custom_id=name)
        if fine or not again:
            kept[name] = fine
            lines.append(line)
    whole = b"".join(line + b"\n" for line in lines)
    if whole != written:
        aside = out.with_name(f".{out.name}.part")
        aside.write_bytes(whole)
        aside.replace(out)
    return kept
