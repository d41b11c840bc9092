"""A child that adds a folder to a base and dies by SIGKILL when told: `killed_writer.py HOME FOLDER MOMENT`.

MOMENT: "read:n" before the nth file is read, "embed:n" before the nth batch, "commit:n" inside the nth transaction,
after its rows are written and before it commits, "moved:n" there too, after the original has its place,
"index:n" before the nth file of the index is checked, "named:1" before the new index becomes current, "swept:1" after
that and before the old one is removed; "never": whoever started it ends it. It says on its output how far it is.
"""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from mofang.engine.hashed import HashEmbedder
from mofang.knowledge import ingest, store
from mofang.knowledge.index import snapshot
from mofang.knowledge.library import Library
from mofang.knowledge.stores import builtin
from mofang.messages import Progress

FILES_FROM, GRAPH_FROM = 20, 40
"""Chunks from which on this child and its tests keep an index in files, and with a graph."""
BATCH = 4


def die_at(owner: Any, name: str, n: int, *, after: bool = False, into: str = "") -> None:
    """Let the nth call of owner.name end this process, before it does anything or after it is done.

    into: only those calls count whose last argument is a path in the folder of this name."""
    real, calls = getattr(owner, name), 0

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += not into or args[-1].parent.name == into
        result = real(*args, **kwargs) if after else None
        if calls == n:
            os.kill(os.getpid(), signal.SIGKILL)
        return result if after else real(*args, **kwargs)

    setattr(owner, name, counted)


MOMENTS: dict[str, Callable[[int], None]] = {
    "read": lambda n: die_at(ingest, "parse", n),
    "embed": lambda n: die_at(HashEmbedder, "embed", n),
    "commit": lambda n: die_at(store, "_drop_unused_vectors", n),
    "moved": lambda n: die_at(type(Path()), "replace", n, after=True, into="files"),
    "index": lambda n: die_at(snapshot, "_checksum", n),
    "named": lambda n: die_at(type(Path()), "replace", n, into=snapshot.FOLDER),
    "swept": lambda n: die_at(snapshot, "sweep", n),
    "never": lambda _: None,
}


@asynccontextmanager
async def embedder(_: str) -> AsyncIterator[HashEmbedder]:
    yield HashEmbedder()


def tell(progress: Progress) -> None:
    print(progress.stage, f"{progress.done}/{progress.total}", flush=True)


def main(home: Path, folder: Path, moment: str) -> None:
    place, _, n = moment.partition(":")
    MOMENTS[place](int(n or 0))
    ingest.BATCH, builtin.FILES_FROM, builtin.GRAPH_FROM = BATCH, FILES_FROM, GRAPH_FROM
    files = [(path.name, path) for path in sorted(folder.iterdir())]
    print("begin", flush=True)
    asyncio.run(Library(home, embedder).add("库", files, progress=tell))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
