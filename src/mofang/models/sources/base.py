"""What a source of models offers, and what all of them share.

A source is made for one model: `Source(settings, spec, answers=…)`, where `spec` is what the catalogue (or a person,
by `parse`) says of it. Without a spec it can still `probe`. Sources bring bytes and state what they know of them; who
checks, records and publishes is models/pull.py.
"""

import asyncio
import contextlib
import errno
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import httpx

from mofang.errors import MofangError, NoSpace
from mofang.models.progress import Report, size
from mofang.platform import free_disk

Spec = Mapping[str, Any]

RESERVE_BYTES = 64_000_000
"""Left free beside a download: databases and logs on the same disk must be able to go on."""


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """One file to bring."""

    name: str
    """As it will be called here; never a path."""
    url: str
    """Where it is, for people and for the manifest."""
    size_bytes: int | None = None
    sha256: str | None = None
    stated_by: str = ""
    """Who says that this is the digest: "pinned" (computed by us, in the catalogue), "hub", or "" for nobody."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """One file that was brought, whole; its digest as computed here, not yet compared."""

    path: Path
    size_bytes: int
    sha256: str


@runtime_checkable
class Source(Protocol):
    """See the module. `where` names it in messages."""

    @property
    def where(self) -> str: ...

    async def probe(self) -> bool:
        """Whether it can be asked at all: within settings.hub_timeout_s, once for all who share `answers`."""
        ...

    def silence(self) -> MofangError:
        """What a probe that said no means to a person."""
        ...

    async def files(self) -> list[RemoteFile]:
        """What there is to bring. Raises NotFound, Denied (gated), Unreachable, MissingSystem."""
        ...

    async def fetch(self, files: Sequence[RemoteFile], folder: Path, report: Report) -> list[Fetched]:
        """Bring the files into `folder`. Cancelled or broken off, it leaves there what the next call goes on from.

        Raises Unreachable, NotFound, Denied, NoSpace, Unreadable for content that cannot be what was stated.
        """
        ...


class HubAnswers:
    """Which hubs answered. Each is asked once, however many ask: who comes second waits for the first's answer."""

    def __init__(self) -> None:
        self._known: dict[str, bool] = {}
        self._asking: dict[str, asyncio.Future[bool]] = {}

    async def of(self, hub: str, ask: Callable[[], Awaitable[bool]]) -> bool:
        if hub in self._known:
            return self._known[hub]
        if hub not in self._asking:
            self._asking[hub] = asyncio.ensure_future(self._ask(hub, ask))
        return await asyncio.shield(self._asking[hub])

    async def _ask(self, hub: str, ask: Callable[[], Awaitable[bool]]) -> bool:
        try:
            self._known[hub] = await ask()
        finally:
            del self._asking[hub]
        return self._known[hub]


def http(url: str) -> httpx.AsyncClient:
    """A client for `url`: redirects followed, the user's proxies respected except on this machine.

    httpx drops the Authorization header when a redirect leads to another host, so a token never reaches a mirror's CDN.
    """
    loopback = httpx.URL(url).host in ("127.0.0.1", "localhost", "::1")
    return httpx.AsyncClient(
        follow_redirects=True,
        timeout=httpx.Timeout(30.0, connect=10.0),
        headers={"User-Agent": "mofang", "Accept-Encoding": "identity"},
        trust_env=not loopback,
    )


async def answers(url: str, timeout_s: float) -> bool:
    """Whether anybody answers at `url` in that time; what the answer says does not matter."""
    with contextlib.suppress(TimeoutError, httpx.HTTPError):
        async with asyncio.timeout(timeout_s), http(url) as client:
            answer = await client.head(url, follow_redirects=False)
            return answer.status_code < 500
    return False


def plain_name(path: str) -> str:
    """The last part of a remote path, which will be a file's name here. Raises ValueError when it cannot be one."""
    name = path.replace("\\", "/").rsplit("/", 1)[-1]
    if not name or name.startswith(".") or "\0" in name or len(name.encode()) > 200:
        raise ValueError(f"not a file name: {path!r}")
    return name


def need_disk(folder: Path, needed: int) -> None:
    """Raises NoSpace when `needed` bytes and a reserve do not fit on the disk of `folder`."""
    free = free_disk(folder)
    if needed + RESERVE_BYTES > free:
        raise NoSpace("core.no_space", path=folder, needed=size(needed + RESERVE_BYTES), free=size(free))


def disk_is_full(error: OSError) -> bool:
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def kept_bytes(folder: Path) -> int:
    """Bytes that lie in a folder, with all that is in it; files that vanish meanwhile do not count."""
    total = 0
    for root, _, files in os.walk(folder):  # passes over folders that vanish, which rglob does not
        for name in files:
            with contextlib.suppress(OSError):
                total += Path(root, name).lstat().st_size
    return total
