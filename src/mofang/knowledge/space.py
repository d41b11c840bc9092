"""A disk that takes no more, in our words, whoever of this room was writing."""

import errno
import sqlite3
from pathlib import Path

from mofang import platform
from mofang.errors import NoSpace

_ERRNOS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_SQLITE = frozenset({sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_WRITE, sqlite3.SQLITE_IOERR_SHMSIZE})
"""A quota or a limit of file size is "WRITE"; where there is no room for the memory that a base's readers share (32 KB
beside the file), it is "SHMSIZE", and the base cannot even be read."""


def disk_full(path: Path) -> NoSpace:
    return NoSpace("knowledge.disk_full", path=path, free=f"{platform.free_disk(path) / 1e6:,.1f} MB")


def out_of_space(error: BaseException, path: Path) -> NoSpace | None:
    """The error of ours when `error` says that `path` could not be written for want of room; None for any other."""
    full = isinstance(error, OSError) and error.errno in _ERRNOS
    full_base = isinstance(error, sqlite3.Error) and getattr(error, "sqlite_errorcode", 0) in _SQLITE
    return disk_full(path) if full or full_base else None
