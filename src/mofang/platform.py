"""What differs between systems, in one file: child processes, memory, CPU features, free disk."""

import asyncio
import contextlib
import ctypes
import importlib.util
import math
import os
import platform as _platform
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeVar

import psutil

if sys.platform == "linux":
    import fcntl


def start_child(
    arguments: Sequence[str],
    *,
    log: Path | None = None,
    env: Mapping[str, str] | None = None,
    stdout: int | IO[Any] | None = None,
) -> subprocess.Popen[bytes]:
    """Start a child that ends with us, also when we are killed with SIGKILL.

    The child must call `end_with_parent()`: its standard input is a pipe whose other end only this process holds, so
    the pipe closes when we die, on every system. It is in a process group of its own, so Ctrl-C in the terminal
    reaches us first and we end it in order. `log` receives its standard error (and output, unless `stdout` is given).
    """
    sink: int | IO[Any] = log.open("ab") if log else subprocess.DEVNULL
    try:
        return subprocess.Popen(
            arguments,
            stdin=subprocess.PIPE,
            stdout=sink if stdout is None else stdout,
            stderr=sink,
            env={**os.environ, **(env or {})},
            start_new_session=os.name == "posix",
            creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
        )
    finally:
        if not isinstance(sink, int):
            sink.close()


def start_program(
    arguments: Sequence[str], *, log: Path, env: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """Start a program that is not ours and that ends with us all the same, also when we are killed with SIGKILL.

    It cannot call `end_with_parent`. Linux is told to send it SIGIO, which ends a program that has no handler for it,
    when the pipe on its standard input closes; elsewhere a small process of ours stands in between (mofang.keeper).
    """
    if sys.platform != "linux":
        return start_child([sys.executable, "-m", "mofang.keeper", *arguments], log=log, env=env)
    read_end, write_end = os.pipe()
    try:
        with log.open("ab") as sink:
            child = subprocess.Popen(
                arguments,
                stdin=read_end,
                stdout=sink,
                stderr=sink,
                env={**os.environ, **(env or {})},
                start_new_session=True,
            )
        fcntl.fcntl(read_end, fcntl.F_SETOWN, child.pid)
        fcntl.fcntl(read_end, fcntl.F_SETFL, fcntl.fcntl(read_end, fcntl.F_GETFL) | os.O_ASYNC)
    except BaseException:
        os.close(write_end)
        raise
    finally:
        os.close(read_end)
    child.stdin = os.fdopen(write_end, "wb")
    return child


TIED = (
    "import ctypes, os, signal, sys\n"
    "ctypes.CDLL(None).prctl(1, signal.SIGKILL)\n"  # PR_SET_PDEATHSIG, which execve keeps
    "if os.getppid() == int(sys.argv[1]): os.execvp(sys.argv[2], sys.argv[2:])\n"
)
"""Becomes another program that is killed when its parent dies, unless that has died already."""


def tied(arguments: Sequence[str]) -> list[str]:
    """How a program that is not ours is started by somebody else's code, so that it ends with us all the same.

    Such programs read our requests from standard input and should leave when it closes; Linux sees to those that hang.
    """
    if sys.platform != "linux":
        return list(arguments)
    return [sys.executable, "-I", "-S", "-c", TIED, str(os.getpid()), *arguments]


def start_detached(
    arguments: Sequence[str], *, log: Path, env: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """Start a process that outlives us, at the priority of work beside a chat; `log` receives all that it says, `env` is
    added to our environment."""
    with log.open("ab") as sink:
        process = subprocess.Popen(
            arguments,
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=sink,
            env={**os.environ, **(env or {})},
            start_new_session=os.name == "posix",
            creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
        )
    lower_priority(process.pid, BESIDE_CHAT)
    # Reaps it when it ends, so that it does not stay as a zombie for as long as we live.
    threading.Thread(target=process.wait, name=f"reap {process.pid}", daemon=True).start()
    return process


def end_process(pid: int, *, grace_s: float = 5.0) -> None:
    """End a process that is not ours to wait for, and its descendants."""
    try:
        family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for process in family:
        _quietly(process.terminate)
    _, alive = psutil.wait_procs(family, timeout=grace_s)
    for process in alive:
        _quietly(process.kill)
    psutil.wait_procs(alive, timeout=grace_s)


T = TypeVar("T")

BACKGROUND, BESIDE_CHAT = 19, 10
"""Niceness of work that nobody waits for, and of work that somebody waits for but less than for an answer.

A model's threads wait for each other, spinning: one other process at the same priority takes two thirds of their speed
(Qwen2.5-0.5B on 2 cores: 42 tokens/s alone, 14 beside a busy process, 37 at niceness 10, 41 at 19; bench/priority.py).
"""


def lower_priority(pid: int, nice: int) -> None:
    """Let process `pid`, and what it starts from now on, have less of the CPU than others."""
    with contextlib.suppress(psutil.NoSuchProcess):
        psutil.Process(pid).nice(nice if os.name == "posix" else getattr(psutil, "BELOW_NORMAL_PRIORITY_CLASS", nice))


async def in_background(function: Callable[..., T], *arguments: Any) -> T:
    """Call a function that computes for long, in a thread of its own that gives way to everything else."""
    with ThreadPoolExecutor(1, initializer=_lower_this_thread) as executor:
        return await asyncio.get_running_loop().run_in_executor(executor, function, *arguments)


def _lower_this_thread() -> None:
    if sys.platform == "linux":  # elsewhere niceness belongs to processes
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), BACKGROUND)


def end_with_parent() -> None:
    """Called by a child of `start_child`: leave as soon as standard input closes. Returns at once."""
    pipe = sys.stdin.buffer.raw if hasattr(sys.stdin.buffer, "raw") else sys.stdin.buffer
    if sys.platform == "linux":
        # A thread cannot look at the pipe while a C extension holds the interpreter's lock, as loading a model does
        # for seconds or minutes. The kernel can: it sends SIGIO when the pipe closes, which ends a process that has
        # no handler for it.
        fcntl.fcntl(pipe, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(pipe, fcntl.F_SETFL, fcntl.fcntl(pipe, fcntl.F_GETFL) | os.O_ASYNC)

    def watch() -> None:
        while pipe.read(4096):
            pass
        os._exit(0)

    threading.Thread(target=watch, name="end-with-parent", daemon=True).start()


def end_child(child: subprocess.Popen[bytes], *, grace_s: float = 3.0) -> None:
    """Ask the child and its descendants to end, then make them. Blocks for at most `grace_s` and a little."""
    try:
        family = [psutil.Process(child.pid), *psutil.Process(child.pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        family = []
    if child.stdin:
        child.stdin.close()
    for process in family:
        _quietly(process.terminate)
    _, alive = psutil.wait_procs(family, timeout=grace_s)
    for process in alive:
        _quietly(process.kill)
    child.wait(timeout=grace_s)


def _quietly(action: Any) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):  # it was faster than we
        action()


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of main memory that this process may use (a container's limit counts)."""

    total: int
    available: int


def memory() -> Memory:
    """What the machine, or the container that we are in, has and has left."""
    machine = psutil.virtual_memory()
    total, available = machine.total, machine.available
    limit, used = _cgroup("memory.max"), _cgroup("memory.current")
    if limit is not None and limit < total:
        total, available = limit, min(available, max(0, limit - (used or 0) + _file_cache()))
    return Memory(total, available)


def _file_cache() -> int:
    """Bytes of files in the control group's memory: counted as used there, and given back on demand."""
    try:
        lines = (CGROUP / "memory.stat").read_text().splitlines()
    except OSError:
        return 0
    counts = dict(line.split() for line in lines)
    return int(counts.get("active_file", 0)) + int(counts.get("inactive_file", 0))


@dataclass(frozen=True, slots=True)
class Held:
    """Bytes of main memory that a process holds."""

    resident: int
    private: int
    """Without mapped files, which `memory().available` counts as available already."""


def held(pid: int | None) -> Held:
    """What a process holds; nothing when there is none."""
    if pid is None:
        return Held(0, 0)
    try:
        found = psutil.Process(pid).memory_info()
    except psutil.NoSuchProcess:
        return Held(0, 0)
    return Held(int(found.rss), int(found.rss) - int(getattr(found, "shared", 0)))


CGROUP = Path("/sys/fs/cgroup")
"""The control group (v2) of this process, as containers see it."""


def _cgroup(name: str) -> int | None:
    """A number of the control group; None when there is no limit."""
    try:
        text = (CGROUP / name).read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def _quota() -> float:
    """Cores' worth of time that the control group may take (`docker run --cpus`); infinite when there is no limit."""
    try:
        quota, period = (CGROUP / "cpu.max").read_text().split()
    except (OSError, ValueError):
        return math.inf
    return int(quota) / int(period) if quota.isdigit() else math.inf


def busy(seconds: float = 0.5) -> float:
    """Share of this machine's processor time (0 to 1) that is taken while we wait for so long."""
    return float(psutil.cpu_percent(interval=seconds)) / 100


def n_cores() -> int:
    """Physical cores that this process may run on; at least 1. Hyper-threads do not speed up matrix products."""
    return max(1, min(psutil.cpu_count(logical=False) or n_threads(), n_threads()))


def numa_nodes(folder: Path = Path("/sys/devices/system/node")) -> list[set[int]]:
    """The hardware threads that this process may run on, by the memory that they are next to; one node where that
    cannot be told. Threads of one node work at one memory without waiting for the other's."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    found = []
    for path in sorted(folder.glob("node[0-9]*/cpulist")):
        spans = (part.split("-") for part in path.read_text().strip().split(",") if part)
        threads = {number for span in spans for number in range(int(span[0]), int(span[-1]) + 1)}
        found += [threads & allowed] if threads & allowed else []
    return found or [set(allowed)]


def stay_on(threads: set[int]) -> None:
    """Let this process run on these hardware threads only, where the system can be told so."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, threads)


def loopback() -> str:
    """The name of the network interface that leads to this machine itself."""
    found = ((name, each.address) for name, addresses in psutil.net_if_addrs().items() for each in addresses)
    return next((name for name, address in found if address == "127.0.0.1"), "lo")


def n_threads() -> int:
    """Hardware threads that this process may run on, and no more than its container's share of time keeps busy."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(allowed, math.ceil(min(_quota(), allowed))))


def cpu_flags() -> frozenset[str]:
    """Instruction-set names as Linux spells them ("avx2", "avx512f", "amx_tile"); empty where we cannot tell."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("flags", "Features")):
                return frozenset(line.split(":", 1)[1].split())
    except OSError:
        pass
    return frozenset()


def cpu_name() -> str:
    """The processor's name as its maker writes it; "" where we cannot tell."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return _platform.processor()


def has_avx2() -> bool | None:
    """Whether this is an x86 CPU with AVX2; None where that does not matter or cannot be told."""
    if _platform.machine().lower() not in {"x86_64", "amd64"}:
        return None
    flags = cpu_flags()
    return "avx2" in flags if flags else None


FAST_BFLOAT16 = frozenset({"amx_bf16", "avx512_bf16", "bf16"})
"""CPU features with which bfloat16 products are computed, and not emulated at a fraction of float32's speed."""


def has_fast_bfloat16() -> bool:
    """Whether this CPU computes bfloat16 products."""
    return bool(cpu_flags() & FAST_BFLOAT16)


def has_library(soname: str) -> bool:
    """Whether the dynamic loader finds `soname` ("libgomp.so.1")."""
    try:
        ctypes.CDLL(soname)
    except OSError:
        return False
    return True


def peak_memory() -> int:
    """Most bytes that this process ever held in main memory; 0 where that cannot be told."""
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    if sys.platform == "darwin":
        import resource  # not on Windows

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    status = Path("/proc/self/status")  # Linux' getrusage begins with what the parent held: exec keeps its peak
    return int(status.read_text(encoding="utf-8").partition("VmHWM:")[2].split()[0]) * 1024 if status.is_file() else 0


def give_back_memory() -> None:
    """Give the system what this process freed and its allocator holds, holes amid the heap included. glibc only; others
    do so by themselves."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none
        if trim:
            trim(0)


def limit_process(*, memory_bytes: int, cpu_s: int) -> None:
    """Let the system end this process beyond these limits, for what may not be trusted. Windows has none; macOS keeps
    the time only."""
    if sys.platform == "win32":
        return
    import resource  # not on Windows

    for limit, most in ((resource.RLIMIT_AS, memory_bytes), (resource.RLIMIT_CPU, cpu_s)):
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(limit, (most, most))


def free_disk(path: Path) -> int:
    """Bytes left on the disk that holds `path` (or the nearest folder above it that exists)."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return shutil.disk_usage(path).free


def is_alive(pid: int) -> bool:
    """Whether a process with that id exists and is not a zombie."""
    try:
        return str(psutil.Process(pid).status()) != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def started_at(pid: int) -> float:
    """When that process began, in seconds since 1970; 0 when there is none."""
    try:
        return float(psutil.Process(pid).create_time())
    except psutil.NoSuchProcess:
        return 0.0


def is_same_process(pid: int, began: float) -> bool:
    """Whether the process `pid` that began at `began` is still alive: ids come round again."""
    return pid > 0 and is_alive(pid) and abs(started_at(pid) - began) < 1.0


def has_module(name: str) -> bool:
    """Whether `import name` would find something, without importing it."""
    return importlib.util.find_spec(name) is not None


def describe() -> dict[str, str | int]:
    """The machine in words, for `mofang doctor` and reports; no names of hosts or users."""
    return {
        "system": f"{_platform.system()} {_platform.release()}",
        "machine": _platform.machine(),
        "python": _platform.python_version(),
        "cores": n_cores(),
        "memory_bytes": memory().total,
    }
