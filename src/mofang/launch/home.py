"""One home, one owner: the folder's layout version, the lock, and how others find the gateway that holds it.

`gateway.lock` is held by the process that owns the home, for as long as it lives; the system frees it when the
process dies, however it dies. `gateway.json` (readable by its user only) tells other commands where to knock.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx
from filelock import FileLock, Timeout

from mofang import __version__
from mofang.errors import Conflict, Invalid, MissingSystem
from mofang.platform import is_alive

LAYOUT = 1
"""Version of the home's layout; a home with a higher one was written by a newer Mofang."""


@dataclass(frozen=True, slots=True)
class Owner:
    """The gateway that owns a home."""

    pid: int
    url: str
    key: str | None
    workbench: str | None = None
    version: str = __version__


def prepare(home: Path) -> None:
    """Make the home, or check that we know its layout. Raises Conflict for a newer one."""
    try:
        home.mkdir(parents=True, exist_ok=True)
        mark = home / "layout.json"
        if not mark.exists():
            mark.write_text(json.dumps({"version": LAYOUT}), encoding="utf-8")
    except OSError as error:
        raise MissingSystem("launch.home_unusable", path=home, why=error.strerror or error) from error
    try:
        found = int(json.loads(mark.read_text(encoding="utf-8"))["version"])
    except (ValueError, KeyError, TypeError) as error:
        raise Invalid("launch.layout_unreadable", path=mark) from error
    if found > LAYOUT:
        raise Conflict("core.newer_home", path=home, found=found, known=LAYOUT)


@contextmanager
def own(home: Path) -> Iterator[None]:
    """Hold the home's lock for the length of the block. Raises Conflict with the owner's address when it is taken."""
    lock = FileLock(home / "gateway.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        owner = read(home)
        raise Conflict(
            "launch.home_in_use", path=home, pid=owner.pid if owner else "?", url=owner.url if owner else "?"
        ) from error
    try:
        from mofang.export import folder  # which reads models: not needed by who only looks for the owner

        folder.sweep(home)
        yield
    finally:
        (home / "gateway.json").unlink(missing_ok=True)
        lock.release()


def announce(home: Path, owner: Owner) -> None:
    """Tell other commands of this user where the gateway is."""
    aside = home / "gateway.json.part"
    with os.fdopen(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        json.dump(asdict(owner), file)
    aside.replace(home / "gateway.json")


def read(home: Path) -> Owner | None:
    """What the last owner announced, whether or not it still lives; None when there is nothing readable."""
    try:
        return Owner(**json.loads((home / "gateway.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def find(home: Path) -> Owner | None:
    """The gateway that owns this home now and answers; None when there is none."""
    owner = read(home)
    if owner is None or not is_alive(owner.pid):
        return None
    try:
        healthy = httpx.get(f"{owner.url}/healthz", timeout=5.0, trust_env=False).is_success
    except httpx.TransportError:
        return None
    return owner if healthy else None
