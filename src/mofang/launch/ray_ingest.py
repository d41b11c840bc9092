"""Taking documents in on a Ray cluster: `mofang kb add … --launcher ray`.

    gateway            owns the home; brings the base's index up to date afterwards, whatever its store
      driver           a child (mofang.launch.ray_ingest_child): mofang.knowledge.ingest, the one that commits
        readers, desks on the cluster's machines (mofang.launch.ray_hands): a file's chunks, passages' vectors

The driver is a process of its own because Ray ends a driver whose cluster is lost, and one process cannot be in two
clusters: neither may happen to a gateway. It writes into the base as any second process may (mofang.knowledge.store): each
document in one transaction. So whoever is killed, the base is whole, and the same command goes on with what it lacks.
Nothing of Ray is imported here.
"""

import asyncio
import pickle
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast

from mofang.engine import children
from mofang.errors import MofangError
from mofang.knowledge.base import AddReport
from mofang.knowledge.ingest import Cutting, Ingester, Report
from mofang.knowledge.store import Store
from mofang.messages import Progress
from mofang.platform import start_child
from mofang.recipes import launcher_of
from mofang.recipes.launchers import Ray
from mofang.settings import Settings, secrets
from mofang.strings import language

DRIVER = "mofang.launch.ray_ingest_child"


@dataclass(frozen=True, slots=True)
class Order:
    """What the driver is told, in its first bytes of standard input."""

    base: Path
    files: list[tuple[str, Path]]
    cutting: Cutting
    settings: Settings
    """Without secrets: they go on to other machines."""
    cluster: str
    workers: int
    lang: str
    """Of what it says in the documents' notes."""


Word = Progress | AddReport | MofangError
"""What the driver says on its standard output, pickled; the last one is no Progress."""


def spread(settings: Settings, *, cluster: str, workers: int) -> Ingester:
    """Raises Invalid for what names no cluster."""
    launcher = cast(Ray, launcher_of({"launcher": "ray", "cluster": cluster, "workers": workers}))
    return partial(_ingest, settings, launcher)


async def _ingest(
    settings: Settings,
    launcher: Ray,
    store: Store,
    files: Sequence[tuple[str, Path]],
    cutting: Cutting,
    report: Report,
) -> AddReport:
    """Raises what the driver raises, and MofangError when it is gone without a word."""
    told = settings.model_copy(update=dict.fromkeys(secrets()))
    order = Order(store.folder, list(files), cutting, told, launcher.cluster, launcher.workers, language())
    log = settings.home / "logs" / "ray-ingest.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    children.trim(log)
    environment = {"MOFANG_HOME": str(settings.home)}
    driver = start_child([sys.executable, "-m", DRIVER], log=log, stdout=subprocess.PIPE, env=environment)
    try:
        await asyncio.to_thread(_tell, driver, order)
        while isinstance(word := await asyncio.to_thread(_next, driver, log), Progress):
            report(word)
    finally:
        await asyncio.shield(asyncio.to_thread(_end, driver, store))
    if isinstance(word, MofangError):
        raise word
    return word


def _tell(driver: "subprocess.Popen[bytes]", order: Order) -> None:
    assert driver.stdin
    with suppress(BrokenPipeError):  # it ended at once: `_next` says why
        pickle.dump(order, driver.stdin)
        driver.stdin.flush()


def _next(driver: "subprocess.Popen[bytes]", log: Path) -> Word:
    assert driver.stdout
    try:
        return cast(Word, pickle.load(driver.stdout))  # noqa: S301  # a pipe that only our own child has
    except (EOFError, pickle.UnpicklingError):
        return MofangError("launch.ray_driver_lost", why=children.last_lines(log) or "-", log=log)


def _end(driver: "subprocess.Popen[bytes]", store: Store) -> None:
    """With all that it began. What it had staged is swept away, unless the base is gone meanwhile."""
    children.end(driver)
    with suppress(MofangError):
        store.sweep()
