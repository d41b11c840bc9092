"""One file by HTTP: resumed where it stopped, its digest computed while it streams, renamed when it is whole.

The file grows as NAME.part; NAME appears only when it is complete. A connection that breaks is taken up again from
where it was, with growing pauses, as long as it makes progress. Knows nothing of hubs.
Source: RFC 9110 section 14 (Range, Content-Range, If-Range).
"""

import asyncio
import hashlib
import io
import json
import os
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx

from mofang.errors import Denied, MofangError, NoSpace, NotFound, Unreachable, Unreadable
from mofang.models.progress import Meter, Report, size
from mofang.models.sources.base import Fetched, RemoteFile, disk_is_full, need_disk

CHUNK = 1 << 20
FRUITLESS_TRIES = 6
"""Connections in a row that brought nothing before we give up; with the pauses about half a minute."""
FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 10.0


class _Again(Exception):
    """The hub asks us to come again."""


class Download:
    """Brings one RemoteFile into a folder. `variable` names the token's environment variable in messages."""

    def __init__(
        self,
        client: httpx.AsyncClient,
        file: RemoteFile,
        folder: Path,
        *,
        hub: str,
        variable: str = "",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.client = client
        self.file = file
        self.target = folder / file.name
        self.part = folder / f"{file.name}.part"
        self.notes = folder / f"{file.name}.part.json"
        self.hub = hub
        self.variable = variable
        self.headers = dict(headers or {})
        self.total = file.size_bytes or 0
        self.done = 0
        self.digest = hashlib.sha256()

    async def run(self, report: Report) -> Fetched:
        """Raises Unreachable (the part is kept), NotFound, Denied, NoSpace, Unreadable for a wrong size."""
        if self.target.exists():
            await self._read_back(self.target, Meter(report, "verify", self.target.stat().st_size))
            if self.total in (0, self.done):
                return self._fetched()
            self.target.unlink()
        await self._read_back(self.part, Meter(report, "verify", self.total))
        need_disk(self.target.parent, max(0, self.total - self.done))
        meter = Meter(report, "download", self.total, detail=self.file.name)
        fruitless, most = 0, self.done
        while not (self.total and self.done == self.total):
            try:
                if await self._connect(meter):
                    break
                why: Exception = _Again("…")
            except (httpx.TransportError, _Again) as error:
                why = error
            fruitless = 0 if self.done > most else fruitless + 1
            most = max(most, self.done)
            if fruitless >= FRUITLESS_TRIES:
                kept = size(self.done)
                raise Unreachable("models.download_broken", file=self.file.name, why=_words(why), kept=kept) from why
            await asyncio.sleep(self._pause_s(fruitless))
        meter.total = self.done
        meter.at(self.done, always=True)
        return await self._finish()

    async def _connect(self, meter: Meter) -> bool:
        """One connection. True: the answer ended where it said. Raises TransportError or _Again to be called again."""
        headers = dict(self.headers)
        if self.done:
            headers["Range"] = f"bytes={self.done}-"
            validator = self._notes().get("etag")
            if validator and not self.file.sha256:
                headers["If-Range"] = validator
        async with self.client.stream("GET", self.file.url, headers=headers) as answer:
            if answer.status_code == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE:
                return await self._beyond_the_end(answer)
            if answer.status_code == httpx.codes.TOO_MANY_REQUESTS or answer.status_code >= 500:
                await self._hold_on(answer)
                raise _Again(f"HTTP {answer.status_code}")
            self._refuse(answer)
            self._place(answer)
            with self.part.open("ab", buffering=0) as out:
                async for chunk in answer.aiter_bytes(CHUNK):
                    await self._write(out, chunk)
                    meter.total = self.total
                    meter.at(self.done)
        return not self.total or self.done == self.total

    def _place(self, answer: httpx.Response) -> None:
        """Go on, or begin anew, where the answer begins; and learn the size."""
        start = 0
        if answer.status_code == httpx.codes.PARTIAL_CONTENT:
            start = _first_byte(answer.headers.get("Content-Range", "")) or 0
        if start != self.done or (start == 0 and self.part.exists()):
            if start:
                raise httpx.RemoteProtocolError(f"asked for byte {self.done}, got {start}")
            self._begin_anew()
        length = answer.headers.get("Content-Length")
        if length and length.isdigit() and not self.file.size_bytes:
            self.total = start + int(length)
            need_disk(self.target.parent, int(length))
        etag = answer.headers.get("ETag", "")
        self.notes.write_text(json.dumps({"url": self.file.url, "etag": "" if etag.startswith("W/") else etag}))

    async def _write(self, out: io.FileIO, chunk: bytes) -> None:
        if self.file.size_bytes and self.done + len(chunk) > self.file.size_bytes:
            out.close()
            self._delete()
            raise self._wrong_size(f"> {self.file.size_bytes}")

        def work() -> None:
            view = memoryview(chunk)
            while view:
                view = view[out.write(view) or 0 :]
            self.digest.update(chunk)

        try:
            await asyncio.to_thread(work)
            self.done += len(chunk)
        except OSError as error:
            if disk_is_full(error):
                raise NoSpace("models.disk_full", path=self.part, kept=size(self.done)) from error
            raise

    async def _beyond_the_end(self, answer: httpx.Response) -> bool:
        """416: what we have is all of it, when the size is unknown or matches; otherwise it is of another file."""
        whole = _whole_size(answer.headers.get("Content-Range", ""))
        if whole is not None and whole == self.done:
            if self.file.size_bytes in (None, whole):
                return True
            self._delete()
            raise self._wrong_size(whole)
        self._begin_anew()
        raise _Again("HTTP 416")

    async def _hold_on(self, answer: httpx.Response) -> None:
        after = answer.headers.get("Retry-After", "")
        if after.isdigit():
            await asyncio.sleep(min(int(after), LONGEST_PAUSE_S))

    def _refuse(self, answer: httpx.Response) -> None:
        if not answer.is_success:
            raise refusal(answer, hub=self.hub, url=self.file.url, variable=self.variable)

    async def _read_back(self, path: Path, meter: Meter) -> None:
        """The digest of what an earlier call left."""
        self._reset()
        if not path.exists():
            return
        with path.open("rb") as stream:
            while chunk := await asyncio.to_thread(stream.read, CHUNK):
                await asyncio.to_thread(self.digest.update, chunk)
                self.done += len(chunk)
                meter.at(self.done)
        if self.total and self.done > self.total:
            path.unlink()
            self._reset()

    def _begin_anew(self) -> None:
        self.part.unlink(missing_ok=True)
        self._reset()

    def _reset(self) -> None:
        self.done, self.digest = 0, hashlib.sha256()

    async def _finish(self) -> Fetched:
        if self.file.size_bytes and self.done != self.file.size_bytes:
            self._delete()
            raise self._wrong_size(self.done)
        await asyncio.to_thread(_flush, self.part)
        self.part.replace(self.target)
        self.notes.unlink(missing_ok=True)
        return self._fetched()

    def _wrong_size(self, found: int | str) -> Unreadable:
        return Unreadable("models.size_mismatch", file=self.file.name, expected=self.file.size_bytes, found=found)

    def _fetched(self) -> Fetched:
        return Fetched(self.target, self.done, self.digest.hexdigest())

    def _delete(self) -> None:
        self.part.unlink(missing_ok=True)
        self.notes.unlink(missing_ok=True)

    def _notes(self) -> dict[str, Any]:
        try:
            notes = json.loads(self.notes.read_text())
        except (OSError, ValueError):
            return {}
        return notes if isinstance(notes, dict) and notes.get("url") == self.file.url else {}

    @staticmethod
    def _pause_s(fruitless: int) -> float:
        """Doubling, with a jitter so that many machines behind one office line do not come back together."""
        return min(FIRST_PAUSE_S * 2.0**fruitless, LONGEST_PAUSE_S) * random.uniform(0.5, 1.0)


def refusal(answer: httpx.Response, *, hub: str, url: str, variable: str = "") -> MofangError:
    """What a status that is no success means to a person."""
    status = answer.status_code
    if status in (401, 403):
        return Denied("models.gated", hub=hub, status=status, url=url, variable=variable or "-")
    if status in (404, 410):
        return NotFound("models.file_not_found", hub=hub, url=url)
    return Unreachable("models.hub_error", hub=hub, status=status, url=url)


def _flush(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _first_byte(content_range: str) -> int | None:
    """5 of "bytes 5-99/100"."""
    unit, _, rest = content_range.partition(" ")
    first = rest.partition("-")[0]
    return int(first) if unit == "bytes" and first.isdigit() else None


def _whole_size(content_range: str) -> int | None:
    """100 of "bytes */100"."""
    whole = content_range.rpartition("/")[2]
    return int(whole) if whole.isdigit() else None


def _words(why: object) -> str:
    return str(why) or type(why).__name__
