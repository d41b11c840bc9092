"""What every child process that holds a model needs of us: looked at while it loads, its log kept small, ended."""

import asyncio
import os
import shutil
import subprocess
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import psutil

from mofang.messages import Progress
from mofang.models.base import ModelRef
from mofang.platform import end_child

LOG_BYTES = 1_000_000
"""A longer log moves to <name>.log.1, which the next one replaces."""
LOOK_S = 0.25
"""How often a loading child is looked at."""
LAST_LINES = 8

T = TypeVar("T")


def loading(ref: ModelRef, progress: Callable[[Progress], None]) -> Callable[[int], None]:
    """What turns a loading child's resident bytes into progress. Never whole before it is: buffers and cache are
    resident, too."""

    def report(resident: int) -> None:
        done = min(resident, ref.size_bytes * 99 // 100)
        progress(Progress("load", done, ref.size_bytes, "bytes", detail=ref.name))

    return report


async def watched(child: "subprocess.Popen[bytes]", word: Awaitable[T], report: Callable[[int], None]) -> T:
    """What the child says when it has loaded; `report` hears its resident bytes meanwhile."""
    waiting = asyncio.ensure_future(word)
    try:
        while not (await asyncio.wait({waiting}, timeout=LOOK_S))[0]:
            report(resident(child.pid))
        return waiting.result()
    finally:
        waiting.cancel()


def end(child: "subprocess.Popen[bytes]") -> None:
    """End the child, and let go of its output: last, so that a thread that still reads there meets the end first."""
    end_child(child)
    if child.stdout:
        child.stdout.close()


def resident(pid: int) -> int:
    """Resident memory of a process in bytes; 0 when it is gone."""
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.NoSuchProcess:
        return 0


def last_lines(log: Path) -> str:
    """The end of the log: why a child ended stands there."""
    try:
        lines = log.read_bytes()[-8000:].decode("utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return "\n".join(line for line in lines[-LAST_LINES:] if line.strip())


def trim(log: Path) -> None:
    """Keep the log small, also under a child that is writing: it appends, and goes on at the new end."""
    with suppress(FileNotFoundError):
        if log.stat().st_size > LOG_BYTES:
            shutil.copyfile(log, log.with_name(log.name + ".1"))
            os.truncate(log, 0)
