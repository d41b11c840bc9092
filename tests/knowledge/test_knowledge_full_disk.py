"""A disk that takes no more: what does not fit is told, what was there stays, and with room again the rest comes in."""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import whole
from knowledge_bench import Bench

from mofang.errors import NoSpace

resource = pytest.importorskip("resource", reason="limits are set the POSIX way")
CHILD = Path(__file__).parent / "full_disk.py"


@contextmanager
def no_file_above(n_bytes: int) -> Iterator[None]:
    """The system refuses to let a file of this process grow beyond, as a quota does (EFBIG)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.usefixtures("small_index")
@pytest.mark.parametrize("room", [40_000, 150_000, 400_000])
async def test_what_does_not_fit_fails_alone_and_comes_in_later(room: int, bench: Bench) -> None:
    """By place: a large original, the base, its log."""
    large = bench.write("大.txt", whole.text(9, "v", 45))
    files = [bench.write(f"{i:02}.txt", whole.text(i, "v", 4)) for i in range(6)]
    await bench.add(files[0])
    with no_file_above(room):
        report = await bench.add(*files, large)
        assert {file.code for file in report.failed} == {"disk_full"}
        (told,) = [file for file in report.failed if file.name == "大.txt"]
        assert str(bench.library.folder / "库") in told.error and "MOFANG_HOME" in told.hint
        (unchanged, *_) = report.files
        assert (unchanged.name, unchanged.status) == ("00.txt", "unchanged")
        found = await bench.library.search(["库"], "v0k3")
        assert found[0].title == "00.txt"
    whole.is_whole(bench)
    whole.index_agrees(bench)
    report = await bench.add(*files, large)
    assert report.failed == []
    whole.is_whole(bench)
    whole.index_agrees(bench)
    whole.is_tidy(bench, 7)


@pytest.mark.usefixtures("small_index")
async def test_an_index_that_cannot_be_written_fails_no_document(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        patch.setattr("mofang.knowledge.index.snapshot.np.save", full)
        report = await bench.put("文.txt", whole.text(4, "v", 4))
    assert [file.status for file in report.files] == ["added"]
    assert "写不进去" in caplog.text or "cannot be written" in caplog.text
    whole.index_agrees(bench)
    with monkeypatch.context() as patch, pytest.raises(NoSpace):
        patch.setattr("mofang.knowledge.index.snapshot.np.save", full)
        await bench.library.rebuild("库", progress=lambda _: None)
    await bench.put("文.txt", whole.text(4, "v", 4))
    whole.is_tidy(bench, 1)


async def test_no_base_is_created_by_half(bench: Bench) -> None:
    before = sorted(bench.library.folder.iterdir())
    with no_file_above(10_000), pytest.raises(NoSpace) as fault:
        bench.library.create("新", embedding_model="hash")
    assert fault.value.code == "disk_full"
    assert sorted(bench.library.folder.iterdir()) == before
    bench.library.create("新", embedding_model="hash")
    assert set(bench.library.names()) == {"库", "新"}


def _may_mount() -> bool:
    try:
        return subprocess.run(["unshare", "-Urm", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]).returncode == 0
    except OSError:
        return False


@pytest.mark.slow
def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    if not _may_mount():
        pytest.skip("this system lets nobody mount a disk of their own")
    done = subprocess.run(
        ["unshare", "-Urm", sys.executable, str(CHILD), str(tmp_path)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)
    assert [one["held"] for one in results] == sorted(one["held"] for one in results), "more room, more documents"
    assert results[0]["said"] == {"disk_full": 1}, "the base cannot even be read: one error, no report"
    assert any({"disk_full", "added"} <= set(one["said"]) for one in results), "some came in, some did not"
    assert results[-1]["said"] == {"unchanged": 1, "added": 5}
