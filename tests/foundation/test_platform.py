"""Children end with us; memory and disk are numbers that make sense."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from mofang import platform

CHILD = """
import time
from mofang.platform import end_with_parent
end_with_parent()
print("up", flush=True)
time.sleep(60)
"""
GRANDCHILD = """
import subprocess, sys
grandchild = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print(grandchild.pid, flush=True)
"""
PARENT = f"""
import subprocess, sys, time
from mofang.platform import start_child
child = start_child([sys.executable, "-c", {CHILD!r}], stdout=subprocess.PIPE)
assert child.stdout.readline() == b"up\\n"
print(child.pid, flush=True)
time.sleep(60)
"""


def _gone(pid: int, within_s: float) -> bool:
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        if not platform.is_alive(pid):
            return True
        time.sleep(0.02)
    return False


def test_a_child_ends_when_its_parent_is_killed() -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE) as parent:
        assert parent.stdout
        pid = int(parent.stdout.readline())
        assert platform.is_alive(pid)
        os.kill(parent.pid, signal.SIGKILL)
    assert _gone(pid, within_s=2)


def test_end_child_ends_its_descendants_too() -> None:
    child = platform.start_child([sys.executable, "-c", GRANDCHILD + CHILD], stdout=subprocess.PIPE)
    assert child.stdout
    grandchild = int(child.stdout.readline())
    platform.end_child(child)
    child.stdout.close()
    assert child.returncode is not None
    assert _gone(grandchild, within_s=2)


def test_the_log_gets_what_the_child_says(tmp_path: Path) -> None:
    log = tmp_path / "child.log"
    child = platform.start_child(
        [sys.executable, "-c", "print('你好'); import sys; print('错', file=sys.stderr)"], log=log
    )
    child.wait(timeout=10)
    platform.end_child(child)
    assert set(log.read_text(encoding="utf-8").split()) == {"你好", "错"}


def test_memory_and_disk(tmp_path: Path) -> None:
    now = platform.memory()
    assert 0 < now.available <= now.total
    assert platform.free_disk(tmp_path / "not" / "there" / "yet") > 0
    assert 1 <= platform.n_cores() <= (os.cpu_count() or 1)


@pytest.mark.parametrize(
    ("cpu_max", "n"), [("max 100000", 8), ("250000 100000", 3), ("50000 100000", 1), ("6400000 100000", 8), ("", 8)]
)
def test_a_containers_share_of_time_is_no_more_cores(
    cpu_max: str, n: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform.os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(platform.psutil, "cpu_count", lambda logical: 16)
    monkeypatch.setattr(platform, "CGROUP", tmp_path)
    assert platform.n_threads() == 8, "no file, no limit"
    (tmp_path / "cpu.max").write_text(cpu_max)
    assert (platform.n_threads(), platform.n_cores()) == (n, n)


def test_numa_nodes_are_this_process_s_threads_by_their_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform.os, "sched_getaffinity", lambda _: {0, 1, 2, 5, 6}, raising=False)
    assert platform.numa_nodes(tmp_path) == [{0, 1, 2, 5, 6}]
    for name, threads in (("node0", "0-1,4-5\n"), ("node1", "2-3,6-7\n"), ("node2", "8-9\n"), ("node3", "\n")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "cpulist").write_text(threads)
    assert platform.numa_nodes(tmp_path) == [{0, 1, 5}, {2, 6}]
    assert platform.loopback() in psutil.net_if_addrs()


def test_is_alive_knows_the_dead() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        pass
    assert not platform.is_alive(child.pid)
    assert platform.is_alive(os.getpid())


def test_a_library_that_is_not_there() -> None:
    assert not platform.has_library("libno-such-thing.so.9")


async def test_background_work_gives_way_and_leaves_no_thread() -> None:
    before = threading.active_count()
    niceness = os.getpriority(os.PRIO_PROCESS, 0)
    found = await platform.in_background(lambda: os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
    assert found == platform.BACKGROUND
    assert os.getpriority(os.PRIO_PROCESS, 0) == niceness
    assert threading.active_count() == before


async def test_what_background_work_raises_arrives() -> None:
    with pytest.raises(ZeroDivisionError):
        await platform.in_background(lambda: 1 // 0)


def test_lower_priority() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        platform.lower_priority(child.pid, platform.BESIDE_CHAT)
        assert psutil.Process(child.pid).nice() == platform.BESIDE_CHAT
    platform.lower_priority(child.pid, platform.BACKGROUND)  # gone by now: no error


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_memory_that_was_freed_goes_back_to_the_system() -> None:
    """Blocks below the size that is mapped apart, every other one kept: holes that the allocator would keep."""
    held = [bytearray(100_000) for _ in range(2000)]
    del held[::2]
    before = psutil.Process().memory_info().rss
    platform.give_back_memory()
    assert before - psutil.Process().memory_info().rss > 50_000_000
    assert len(held) == 1000


def test_the_peak_is_the_process_s_own() -> None:
    """Not its parent's, whose peak a child that is started begins with in the system's own count."""
    held = bytearray(300_000_000)
    code = "from mofang.platform import peak_memory; print(peak_memory())"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert 5_000_000 < int(told) < 200_000_000 < platform.peak_memory()
    assert len(held) == 300_000_000
