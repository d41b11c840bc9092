"""A child that adds a folder to a base and dies by SIGKILL when told: `killed_writer.py HOME FOLDER MOMENT`.

MOMENT: "read:n" before the nth file is read, "embed:n" before the nth batch, "commit:n" inside the nth transaction,
after its rows are written and before it commits.
"""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from mofang.engine.hashed import HashEmbedder
from mofang.knowledge import ingest, store
from mofang.knowledge.library import Library


def die_at(owner: Any, name: str, n: int) -> None:
    """Let the nth call of owner.name end this process at its start."""
    real, calls = getattr(owner, name), 0

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == n:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **kwargs)

    setattr(owner, name, counted)


@asynccontextmanager
async def embedder(_: str) -> AsyncIterator[HashEmbedder]:
    yield HashEmbedder()


def main(home: Path, folder: Path, moment: str) -> None:
    place, n = moment.split(":")
    owner, name = {
        "read": (ingest, "parse"),
        "embed": (HashEmbedder, "embed"),
        "commit": (store, "_drop_unused_vectors"),
    }[place]
    die_at(owner, name, int(n))
    ingest.BATCH = 4
    files = [(path.name, path) for path in sorted(folder.iterdir())]
    asyncio.run(Library(home, embedder).add("库", files, progress=lambda _: None))


main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
