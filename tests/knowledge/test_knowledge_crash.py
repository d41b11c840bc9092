"""kill -9 in the middle of an add: the base stays whole, each document old or new, and the next add finishes the work."""

import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import whole
from knowledge_bench import Bench

pytestmark = pytest.mark.usefixtures("small_index")
WRITER = Path(__file__).parent / "killed_writer.py"
N_FILES = 12
Kill = Callable[[Path, Path], None]
"""Start the writer on a home and a folder of files, and see that it dies by SIGKILL."""


async def _check(bench: Bench, kill: Kill, scale: int = 1) -> None:
    folder = bench.folder / "files"
    folder.mkdir()
    files = [(f"{i:02}.txt", folder / f"{i:02}.txt") for i in range(N_FILES)]
    for i, (_, path) in enumerate(files):
        path.write_text(whole.text(i, "v", scale), encoding="utf-8")
    await bench.add(*files[: N_FILES // 2])
    for i, (_, path) in enumerate(files):
        path.write_text(whole.text(i, "w", scale), encoding="utf-8")

    kill(bench.library.folder, folder)

    whole.is_whole(bench)
    whole.index_agrees(bench)
    documents = {d.name: d for d in bench.library.documents("库")}
    assert set(documents) >= {name for name, _ in files[: N_FILES // 2]}, "no old document is lost"
    new = set()
    for i, (name, _) in enumerate(files):
        if name in documents:
            text = bench.library.text("库", documents[name].id)["text"]
            assert text in (
                (whole.text(i, "v", scale), whole.text(i, "w", scale))
                if i < N_FILES // 2
                else (whole.text(i, "w", scale),)
            )
            new |= {name} if text == whole.text(i, "w", scale) else set()

    report = await bench.add(*files)
    assert report.failed == []
    assert {file.name for file in report.files if file.status == "unchanged"} == new, "it goes on where it stopped"
    whole.is_whole(bench)
    whole.index_agrees(bench)
    whole.is_tidy(bench, N_FILES)
    assert len(bench.library.documents("库")) == N_FILES, "nothing doubled"
    for i in (0, N_FILES - 1):
        hits = await bench.library.search(["库"], f"w{i}k3")
        (best,) = [hit for hit in hits if hit.bm25_rank == 1]
        assert best.title == f"{i:02}.txt" and f"编号w{i}k3。" in best.text


def _at(moment: str) -> Kill:
    def kill(home: Path, folder: Path) -> None:
        child = subprocess.run([sys.executable, str(WRITER), str(home), str(folder), moment], timeout=120)
        assert child.returncode == -signal.SIGKILL

    return kill


@pytest.mark.parametrize(
    "moment", ["read:8", "embed:4", "commit:1", "commit:7", "moved:3", "index:3", "named:1", "swept:1"]
)
async def test_killed_in_the_middle(moment: str, bench: Bench) -> None:
    await _check(bench, _at(moment))


# ---- at random moments ----


def _run(home: Path, folder: Path, kill_after_s: float | None) -> tuple[bool, str, float]:
    """Whether it was killed, the last it said, and the seconds from its beginning to its end."""
    child = subprocess.Popen(
        [sys.executable, str(WRITER), str(home), str(folder), "never"], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "begin\n"
    began = time.monotonic()
    if kill_after_s is not None:
        time.sleep(kill_after_s)
        child.kill()
    said, _ = child.communicate(timeout=120)
    assert child.returncode in (0, -signal.SIGKILL)
    return child.returncode != 0, (said.splitlines() or ["begin"])[-1], time.monotonic() - began


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(20))
async def test_killed_at_random_moments(seed: int, bench: Bench, tmp_path: Path) -> None:
    """At any moment between the first file and the end of the index, by the clock, so inside of libraries too."""

    def kill(home: Path, folder: Path) -> None:
        before = tmp_path / "before"
        shutil.copytree(home, before)
        _, _, whole_s = _run(home, folder, None)
        share = random.Random(seed).random()
        while True:
            shutil.rmtree(home)
            shutil.copytree(before, home)
            killed, said, _ = _run(home, folder, share * whole_s)
            if killed:
                break
            share *= 0.9  # this time it was faster
        print(f"seed {seed}: killed after {share:.0%} of {whole_s:.1f} s, at {said!r}")

    await _check(bench, kill, scale=20)
