"""The files that slots are saved in: an index with checksums, a limit for all together. Knows nothing of servers."""

import json
import logging
import os
import time
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path

_log = logging.getLogger(__name__)

INDEX = "index.json"


@dataclass(frozen=True, slots=True)
class Saved:
    """A file with one slot's state."""

    file: str
    n_tokens: int
    size_bytes: int
    crc32: int
    saved_at: float
    """Seconds since 1970."""


class Folder:
    """The files of one model and their index. Blocks; a damaged file is deleted and told to the log."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def read(self) -> list[Saved]:
        """What the index names, the newest first; files are looked at by `check`."""
        try:
            rows = json.loads((self.place / INDEX).read_text(encoding="utf-8"))
            found = [Saved(**row) for row in rows]
        except FileNotFoundError:
            return []
        except (OSError, ValueError, TypeError) as error:
            _log.warning("%s is damaged (%s): the saved prompts beside it are deleted", self.place / INDEX, error)
            self.write([])
            return []
        return sorted(found, key=lambda one: -one.saved_at)

    def check(self, one: Saved) -> bool:
        """Whether the file is as it was written. Marks it as used."""
        path = self.place / one.file
        if not path.is_file():  # cleared away for its size
            return False
        if (path.stat().st_size, _crc32(path)) != (one.size_bytes, one.crc32):
            self.drop(one, "its checksum is wrong")
            return False
        os.utime(path)
        return True

    def drop(self, one: Saved, why: str) -> None:
        _log.warning("the saved prompt %s is deleted: %s", self.place / one.file, why)
        (self.place / one.file).unlink(missing_ok=True)

    def adopt(self, part: str, n_tokens: int) -> Saved:
        """Give a file that llama.cpp wrote aside its name."""
        path = self.place / part
        size, crc32 = path.stat().st_size, _crc32(path)
        one = Saved(f"{crc32:08x}-{n_tokens}.bin", n_tokens, size, crc32, time.time())
        path.replace(self.place / one.file)
        return one

    def write(self, kept: list[Saved]) -> None:
        """The index now names these; other files go."""
        aside = self.place / f"{INDEX}.part"
        aside.write_text(json.dumps([asdict(one) for one in kept]), encoding="utf-8")
        aside.replace(self.place / INDEX)
        names = {INDEX, *(one.file for one in kept)}
        for path in self.place.iterdir():
            if path.name not in names:
                path.unlink()


def prune(top: Path, limit: int) -> None:
    """Delete the files that were used longest ago until all of them together have at most `limit` bytes."""
    files = sorted(((path.stat().st_mtime, path) for path in top.glob("*/*.bin")), reverse=True)
    left = limit
    for _, path in files:
        left -= path.stat().st_size
        if left < 0:
            _log.info("%s is deleted: saved prompts have reached MOFANG_SLOT_CACHE_MB", path)
            path.unlink()


def _crc32(path: Path) -> int:
    found = 0
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            found = zlib.crc32(piece, found)
    return found
