"""A file on this machine or a mounted share, copied into the home folder: resumed like a download.

To use a file where it lies, without a copy, there is ModelStore.add.
"""

import asyncio
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mofang.errors import Invalid, MofangError, NoSpace, NotFound, Unreadable
from mofang.models.formats import gguf
from mofang.models.progress import Meter, Report, size
from mofang.models.sources.base import Fetched, HubAnswers, RemoteFile, Spec, disk_is_full, need_disk
from mofang.settings import Settings

CHUNK = 1 << 22


class LocalPath:
    """A Source. spec: path of a .gguf file (of a split model: the first), sha256 (optional)."""

    def __init__(self, settings: Settings, spec: Spec | None = None, *, answers: HubAnswers | None = None) -> None:
        self.path = Path(str((spec or {}).get("path", "")))
        self.sha256 = (spec or {}).get("sha256")

    @classmethod
    def parse(cls, address: str) -> dict[str, Any]:
        """The spec of an absolute path to a .gguf file. Raises Invalid."""
        path = Path(address).expanduser()
        if not path.is_absolute() or path.suffix != ".gguf":
            raise Invalid("models.bad_source", param="source", source=address)
        return {"path": str(path)}

    @property
    def where(self) -> str:
        return str(self.path)

    async def probe(self) -> bool:
        return self.path.exists()

    def silence(self) -> MofangError:
        return NotFound("models.no_such_file", path=self.path)

    async def files(self) -> list[RemoteFile]:
        if not self.path.is_file():
            raise self.silence()
        parts = gguf.parts(self.path)
        digest = self.sha256 if len(parts) == 1 else None
        stated_by = "pinned" if digest else ""
        return [RemoteFile(part.name, str(part), part.stat().st_size, digest, stated_by) for part in parts]

    async def fetch(self, files: Sequence[RemoteFile], folder: Path, report: Report) -> list[Fetched]:
        return [await _copy(file, folder, report) for file in files]


async def _copy(file: RemoteFile, folder: Path, report: Report) -> Fetched:
    target, part = folder / file.name, folder / f"{file.name}.part"
    if target.exists():
        target.replace(part)
    digest, done, total = hashlib.sha256(), 0, file.size_bytes or 0
    meter = Meter(report, "download", total, detail=file.name)
    need_disk(folder, total - (part.stat().st_size if part.exists() else 0))
    try:
        with Path(file.url).open("rb") as source, part.open("ab+", buffering=0) as out:  # noqa: ASYNC230
            out.seek(0)
            while chunk := await asyncio.to_thread(source.read, CHUNK):
                there = await asyncio.to_thread(out.read, len(chunk))
                if there != chunk:  # beyond what an earlier call copied, or not what is there now
                    out.truncate(done)
                    out.seek(0, 2)
                    await asyncio.to_thread(_write, out, chunk)
                await asyncio.to_thread(digest.update, chunk)
                done += len(chunk)
                meter.at(done)
            out.truncate(done)
    except OSError as error:
        if disk_is_full(error):
            raise NoSpace("models.disk_full", path=part, kept=size(done)) from error
        raise
    if done != total:
        part.unlink()
        raise Unreadable("models.size_mismatch", file=file.name, expected=total, found=done)
    part.replace(target)
    return Fetched(target, done, digest.hexdigest())


def _write(out: Any, chunk: bytes) -> None:
    view = memoryview(chunk)
    while view:
        view = view[out.write(view) or 0 :]
