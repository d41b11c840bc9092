"""Two processes that add to one base at once, and a third that searches it meanwhile."""

import asyncio
import sys
from pathlib import Path

import pytest
import whole
from knowledge_bench import Bench

WRITER = Path(__file__).parent / "killed_writer.py"
N_EACH, N_SHARED = 6, 4


@pytest.mark.usefixtures("small_index")
async def test_two_processes_add_to_one_base_at_once(bench: Bench) -> None:
    """Each has files of its own, and some that both have under one name, as a folder that two people share."""
    folders = [bench.folder / one for one in "vw"]
    for folder in folders:
        folder.mkdir()
        for i in range(N_SHARED):
            (folder / f"共{i}.txt").write_text(whole.text(i, "v", 2), encoding="utf-8")
        for i in range(N_SHARED, N_EACH + N_SHARED):
            (folder / f"{folder.name}{i}.txt").write_text(whole.text(i, folder.name, 2), encoding="utf-8")
    writers = [
        await asyncio.create_subprocess_exec(
            sys.executable,
            str(WRITER),
            str(bench.library.folder),
            str(folder),
            "never",
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
        for folder in folders
    ]
    ends = asyncio.gather(*(writer.communicate() for writer in writers))
    seen = 0
    while not ends.done():
        documents = {document.name for document in bench.library.documents("库")}
        found = {hit.title for hit in await bench.library.search(["库"], "编号v0k3 编号w5k3")}
        assert len(documents) >= seen and found <= {document.name for document in bench.library.documents("库")}
        assert not documents or found, "what is there is found"
        seen = len(documents)
        await asyncio.sleep(0.05)
    assert [writer.returncode for writer in writers] == [0, 0], await ends
    n_files = N_SHARED + 2 * N_EACH
    whole.is_whole(bench)
    whole.index_agrees(bench)
    assert len(bench.library.documents("库")) == n_files, "what both have is there once"

    report = await bench.add(*((path.name, path) for folder in folders for path in folder.iterdir()))
    assert {file.status for file in report.files} == {"unchanged"}
    whole.is_tidy(bench, n_files)
    whole.index_agrees(bench)
