"""A child with a small disk of its own (`unshare -Urm`): `full_disk.py FOLDER` adds documents with more and more room.

It prints how each add ended, as JSON; what must hold each time is asserted here, where the disk is.
"""

import asyncio
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import whole
from killed_writer import FILES_FROM, GRAPH_FROM
from knowledge_bench import Bench

from mofang.errors import NoSpace
from mofang.knowledge.stores import builtin

N_FILES = 6
SCALE = 4


def leave(disk: Path, n_bytes: int) -> Path:
    """A file that takes all of the disk but `n_bytes`."""
    filler = disk / "filler"
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(1, shutil.disk_usage(disk).free - n_bytes))
    return filler


async def check(disk: Path, n_bytes: int) -> dict[str, Any]:
    bench = Bench(disk)
    files = [bench.write(f"{i:02}.txt", whole.text(i, "v", SCALE)) for i in range(N_FILES)]
    await bench.add(*files[:1])
    filler = leave(disk, n_bytes)
    try:
        report = await bench.add(*files)
        said = Counter(file.code or file.status for file in report.files)
        assert {file.code for file in report.failed} <= {"disk_full"}
    except NoSpace as error:
        assert error.code == "disk_full"
        said = Counter([error.code])
    filler.unlink()

    whole.is_whole(bench)
    whole.index_agrees(bench)
    held = {document.name: document.id for document in bench.library.documents("库")}
    for i, (name, _) in enumerate(files):
        if name in held:
            assert bench.library.text("库", held[name])["text"] == whole.text(i, "v", SCALE)
    assert list((disk / "knowledge/库/incoming").iterdir()) == []

    report = await bench.add(*files)
    assert report.failed == []
    assert {file.name for file in report.files if file.status == "unchanged"} == set(held)
    whole.is_whole(bench)
    whole.index_agrees(bench)
    whole.is_tidy(bench, N_FILES)
    return {"room": n_bytes, "said": dict(said), "held": len(held)}


async def main(folder: Path) -> None:
    builtin.FILES_FROM, builtin.GRAPH_FROM = FILES_FROM, GRAPH_FROM
    results = []
    for n_bytes in (0, 50_000, 300_000, 700_000, 1_100_000, 1_500_000, 2_000_000, 8_000_000):
        disk = folder / str(n_bytes)
        disk.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(disk)], check=True)
        results.append(await check(disk, n_bytes))
    print(json.dumps(results))


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
