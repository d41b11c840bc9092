"""Several machines on one: Linux network namespaces joined by virtual cables that a test can cut.

    with joined() as (first, second):
        subprocess.Popen(first.command("ray", "start", …))   # its address is first.address
        second.cut()                                          # as when its cable is pulled out: nothing comes back
        second.mend()
        first.inside(function)                                # in a thread of ours whose sockets are the first one's

Files, users and processes are those of this machine. Needs root and iproute2: `why_not` says what is missing.
"""

import ctypes
import os
import secrets
import shutil
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

CLONE_NEWNET = 0x40000000
"""Of linux/sched.h; os.setns comes with Python 3.12."""

T = TypeVar("T")


def ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True)
    assert done.returncode == 0, (words, done.stderr)


def why_not() -> str:
    """Why namespaces cannot be made here; "" where they can."""
    if not shutil.which("ip"):
        return "needs `ip` (iproute2)"
    probe = f"mf-probe-{secrets.token_hex(3)}"
    tried = subprocess.run(["ip", "netns", "add", probe], capture_output=True, text=True)
    if tried.returncode:
        return f"needs root that may make network namespaces: {tried.stderr.strip()}"
    ip("netns", "delete", probe)
    return ""


@dataclass(frozen=True)
class Machine:
    name: str
    """Of its namespace."""
    address: str
    cable: str
    """Its network interface."""

    def command(self, *words: str, own: Path | None = None) -> list[str]:
        """How to run it there; `own` is a folder, empty at first, that the others do not see."""
        private = ["sh", "-c", 'mount -t tmpfs mofang "$0" && exec "$@"', str(own)] if own else []
        return ["ip", "netns", "exec", self.name, *private, *words]

    def cut(self) -> None:
        ip("-n", self.name, "link", "set", self.cable, "down")

    def mend(self) -> None:
        ip("-n", self.name, "link", "set", self.cable, "up")

    def runs(self, pid: int) -> bool:
        """Whether that process is on this machine."""
        here = Path("/run/netns", self.name).stat()
        there = Path(f"/proc/{pid}/ns/net").stat()
        return (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino)

    def inside(self, function: Callable[[], T]) -> T:
        """What it returns, called in a thread that is on this machine."""

        def call() -> T:
            with Path("/run/netns", self.name).open() as there:
                libc = ctypes.CDLL(None, use_errno=True)
                assert libc.setns(there.fileno(), CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
            return function()

        with ThreadPoolExecutor(1) as one:
            return one.submit(call).result()


@contextmanager
def joined() -> Iterator[tuple[Machine, Machine]]:
    """Two machines that reach each other and nobody else."""
    mark = secrets.token_hex(3)
    two = tuple(Machine(f"mf-{mark}-{end}", f"10.213.7.{end}", f"mf{mark}{end}") for end in (1, 2))
    try:
        for machine in two:
            ip("netns", "add", machine.name)
            ip("-n", machine.name, "link", "set", "lo", "up")
        ip(
            "link",
            "add",
            two[0].cable,
            "netns",
            two[0].name,
            "type",
            "veth",
            "peer",
            "name",
            two[1].cable,
            "netns",
            two[1].name,
        )
        for machine in two:
            ip("-n", machine.name, "address", "add", f"{machine.address}/24", "dev", machine.cable)
            machine.mend()
        yield two[0], two[1]
    finally:
        for machine in two:
            subprocess.run(["ip", "netns", "delete", machine.name], capture_output=True)
