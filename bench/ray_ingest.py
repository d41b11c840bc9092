"""What Ray costs an ingest: the same pages by `--launcher ray` with one worker and by this process, in turn.

    python bench/ray_ingest.py [--every 20] [--rounds 3] [--workers 1] [--json FILE]

One machine, so this is about overhead, not about speed-up: passages a second from the first batch to the last, medians of
rounds, and the seconds beside it (starting Ray, reading, loading the model, the index). Pages are every n-th of
bench/ingest.py's. Both make the same base, which is counted. Needs `pip install 'mofang[ray]'`.
"""

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from ingest import MODEL, NAME, PAGES, pages
from mofang.engine.pool import Pool
from mofang.knowledge.library import Library
from mofang.launch import INGESTING
from mofang.messages import Progress
from mofang.models.store import ModelStore
from mofang.settings import Settings


async def one(files: list[tuple[str, Path]], side: str, options: dict[str, Any]) -> dict[str, Any]:
    marks: list[tuple[float, int]] = []

    def tell(progress: Progress) -> None:
        if progress.stage == "embed":
            marks.append((time.perf_counter(), progress.done))

    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(home=Path(folder), auto_tune=False)
        models = ModelStore(settings)
        models.add(MODEL, NAME)
        pool = Pool(settings, models)

        @asynccontextmanager
        async def opened(name: str) -> AsyncIterator[Any]:
            async with pool.use(name, "embedding") as engine:
                yield engine

        library = Library(settings.home / "knowledge", opened)
        library.create("help", embedding_model=NAME)
        ingester = INGESTING.get(side)(settings, **options)
        begun = time.perf_counter()
        try:
            await library.add("help", files, progress=tell, ingester=ingester)
            seconds, passages = time.perf_counter() - begun, library.info("help").n_chunks
        finally:
            await pool.close()
    (first, before), (last, after) = marks[0], marks[-1]
    return {"speed": (after - before) / (last - first), "other_s": seconds - (last - first), "passages": passages}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--every", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    files = [(path.relative_to(PAGES).as_posix(), path) for path in pages()[:: given.every]]
    options: dict[str, dict[str, Any]] = {"local": {}, "ray": {"cluster": "", "workers": given.workers}}
    found: dict[str, list[dict[str, Any]]] = {side: [] for side in options}
    for _ in range(given.rounds):
        for side, sides in found.items():
            sides.append(asyncio.run(one(files, side, options[side])))
            print(f"{side:6} {sides[-1]['speed']:7.1f} passages/s   {sides[-1]['other_s']:5.1f} s beside", flush=True)
    made = {each["passages"] for sides in found.values() for each in sides}
    if len(made) > 1:
        sys.exit(f"they made different bases: {found}")
    speeds = {side: statistics.median(each["speed"] for each in sides) for side, sides in found.items()}
    beside = {side: statistics.median(each["other_s"] for each in sides) for side, sides in found.items()}
    more = beside["ray"] - beside["local"]
    print(f"{len(files)} pages, {made.pop()} passages; ray / local: ", end="")
    print(f"{speeds['ray'] / speeds['local']:.3f} of the passages a second, {more:+.1f} s an add")
    if given.json:
        given.json.write_text(json.dumps({"pages": len(files), "found": found}, indent=1))


if __name__ == "__main__":
    main()
