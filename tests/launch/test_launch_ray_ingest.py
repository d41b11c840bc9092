"""Documents taken in by a Ray cluster: the same base as by one process, whoever is killed on the way, and nothing left running."""

import asyncio
import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

import ingested
import mofang
from mofang.client import ApiError
from mofang.engine.hashed import HashEmbedder
from mofang.errors import Invalid, MofangError
from mofang.knowledge.base import AddReport
from mofang.knowledge.ingest import BATCH
from mofang.knowledge.library import Library
from mofang.launch import INGESTING
from mofang.messages import Progress
from mofang.settings import Settings
from store_places import PLACES, chroma_server

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(300)]
BASE = "库"
ELSEWHERE = [
    pytest.param("chroma", chroma_server, id="chroma"),
    *(pytest.param(name, PLACES[name], id=name, marks=pytest.mark.soak) for name in ("pgvector", "opensearch")),
]
Tell = Callable[[Progress], None]


def descendants(name: str) -> list[psutil.Process]:
    """Of this process, those whose command line holds `name`; Ray's workers are named after what they hold."""
    found = []
    for one in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if name in " ".join(one.cmdline()) and one.status() != psutil.STATUS_ZOMBIE:
                found.append(one)
    return found


def desks() -> list[psutil.Process]:
    return descendants("ray::Desk")


def driver() -> psutil.Process:
    return descendants("ray_ingest_child")[0]


TWO_MACHINES = """
import sys
from ray.cluster_utils import Cluster
node = {"num_cpus": 1, "object_store_memory": 100_000_000}
cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
second = cluster.add_node(**node)
cluster.wait_for_nodes()
print(cluster.address, flush=True)
for line in sys.stdin:
    if line == "lose\\n":
        cluster.remove_node(second, allow_graceful=False)
    else:
        second = cluster.add_node(**node)
        cluster.wait_for_nodes()
    print("done", flush=True)
cluster.shutdown()
"""


class Machines:
    """A cluster in a process of its own: two machines, both of them this one. The second can be lost, and come again."""

    def __init__(self, plugin: Path) -> None:
        path = os.pathsep.join([str(plugin), os.environ.get("PYTHONPATH", "")])
        self._process = subprocess.Popen(
            [sys.executable, "-c", TWO_MACHINES], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONPATH": path, "RAY_USAGE_STATS_ENABLED": "0"}, stderr=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
        self.address = self._said()
        assert self.address

    def _said(self) -> str:
        assert self._process.stdout
        return self._process.stdout.readline().strip()

    def second(self, word: str) -> None:
        assert self._process.stdin
        self._process.stdin.write(f"{word}\n")
        self._process.stdin.flush()
        assert self._said() == "done"

    def close(self) -> None:
        family = psutil.Process(self._process.pid).children(recursive=True)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.communicate(timeout=30)
        for each in [self._process, *family]:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    """One for all tests."""
    machines = Machines(ingested.plugin(tmp_path_factory.mktemp("plugin")))
    yield machines
    machines.close()


@asynccontextmanager
async def _hash(_: str) -> AsyncIterator[HashEmbedder]:
    yield HashEmbedder()


class Home:
    """A home with the slow embedder and an empty base, and the same documents taken in by this process, in another."""

    def __init__(self, folder: Path, cluster: str) -> None:
        self.settings = Settings(home=folder)
        self.log = ingested.install(folder)
        self.library = Library(folder / "knowledge", _hash)
        self.library.create(BASE, embedding_model="hash")
        self.base = folder / "knowledge" / BASE
        self.cluster = cluster

    async def add(self, files: list[tuple[str, Path]], tell: Tell = lambda _: None, **options: Any) -> AddReport:
        wanted = {"cluster": self.cluster, "workers": 2} | options
        ingester = INGESTING.get("ray")(self.settings, **wanted)
        return await self.library.add(BASE, files, progress=tell, ingester=ingester)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, Path]]:
    return ingested.documents(tmp_path_factory.mktemp("documents"))


@pytest.fixture(scope="module")
def local(
    tmp_path_factory: pytest.TempPathFactory, files: list[tuple[str, Path]]
) -> tuple[Path, AddReport, list[Progress]]:
    """The base that this process makes of them, what it said of each file, and on the way."""
    folder, told = tmp_path_factory.mktemp("local"), []
    library = Library(folder, _hash)
    library.create(BASE, embedding_model="hash")
    return folder / BASE, asyncio.run(library.add(BASE, files, progress=told.append)), told


@pytest.fixture
def at(home: Path, cluster: Machines) -> Home:
    return Home(home, cluster.address)


async def test_the_base_is_the_one_that_one_process_makes(
    at: Home, files: list[tuple[str, Path]], local: tuple[Path, AddReport, list[Progress]]
) -> None:
    base, report, progress = local
    told: list[Progress] = []
    found = await at.add(files, told.append)
    assert found.files == report.files, "names, what happened, counts, errors and notes"
    assert {file.status for file in found.files} == {"added", "failed", "unpacked"} and len(found.failed) == 7
    ingested.same(base, at.base)
    assert ingested.order(base) == ingested.order(at.base), "committed in the order of the files"
    for stage in ("read", "embed"):
        assert [(p.done, p.total, p.unit, p.detail) for p in told if p.stage == stage] == [
            (p.done, p.total, p.unit, p.detail) for p in progress if p.stage == stage
        ]
    assert any(p.rate > 0 for p in told), "and how fast it goes"
    assert ["2 个工作进程" in p.detail for p in told if p.stage == "notice"] == [True]
    lines = at.log.read_text().splitlines()
    assert len({line.split()[0] for line in lines}) == 2, "both embedded"
    assert ingested.embedded(at.log) == len(ingested.vectors(base)), "no passage twice"
    assert (await at.library.search([BASE], "怎样办理第7项手续"))[0].title == "办事.csv"
    assert not desks(), "they end with the ingest"

    again: list[Progress] = []
    report = await at.add(files, again.append)
    assert {file.status for file in report.files} == {"unchanged", "failed", "unpacked"}
    assert ingested.embedded(at.log) == len(ingested.vectors(base))
    assert not any(p.stage == "embed" for p in again)


async def test_an_unchanged_folder_costs_no_ray(at: Home, files: list[tuple[str, Path]]) -> None:
    whole = [file for file in files if file[0].startswith("章/")]
    await at.library.add(BASE, whole, progress=lambda _: None)
    told: list[Progress] = []
    report = await at.add(whole, told.append, cluster="127.0.0.1:1")
    assert {file.status for file in report.files} == {"unchanged"}, "it did not even look for the cluster"
    assert not any(p.stage == "notice" for p in told)


async def test_a_killed_desk_is_replaced_and_its_batches_asked_of_the_other(
    at: Home, files: list[tuple[str, Path]], local: tuple[Path, AddReport, list[Progress]]
) -> None:
    killed: list[int] = []

    def tell(progress: Progress) -> None:
        if progress.stage == "embed" and len(killed) < 2 and progress.done > progress.total * (len(killed) + 1) / 4:
            victim = desks()[0]
            killed.append(victim.pid)
            victim.kill()

    report = await at.add(files, tell)
    assert len(killed) == 2
    assert report.files == local[1].files
    ingested.same(local[0], at.base)
    ingested.is_whole(at.base)
    n = len(ingested.vectors(at.base))
    assert n <= ingested.embedded(at.log) <= n + 2 * 2 * BATCH, (
        "what was at a killed desk is embedded again, and no more"
    )


async def test_a_machine_is_lost_and_its_desk_finds_room_on_the_other(
    at: Home, cluster: Machines, files: list[tuple[str, Path]], local: tuple[Path, AddReport, list[Progress]]
) -> None:
    lost = False

    def tell(progress: Progress) -> None:
        nonlocal lost
        if progress.stage == "embed" and not lost and progress.done > progress.total / 4:
            lost = True
            cluster.second("lose")

    try:
        report = await at.add(files, tell)
    finally:
        if lost:
            cluster.second("come")
    assert lost and report.files == local[1].files
    ingested.same(local[0], at.base)
    ingested.is_whole(at.base)


async def test_a_reader_that_is_killed_is_begun_anew(
    at: Home, files: list[tuple[str, Path]], local: tuple[Path, AddReport, list[Progress]]
) -> None:
    done = asyncio.Event()

    async def kill_readers() -> int:
        n = 0
        while not done.is_set():
            for one in descendants("ray::_read"):
                with contextlib.suppress(psutil.NoSuchProcess):
                    one.kill()
                    n += 1
                    return n
            await asyncio.sleep(0.01)
        return n

    killing = asyncio.create_task(kill_readers())
    report = await at.add(files)
    done.set()
    assert await killing == 1
    assert report.files == local[1].files
    ingested.same(local[0], at.base)


STAGES = ("start", "read", "embed")
MOMENTS = [(stage, 0) for stage in STAGES]
MORE = [pytest.param(stage, seed, marks=pytest.mark.soak) for seed in range(1, 4) for stage in STAGES][:7]


@pytest.mark.parametrize(("stage", "seed"), [*MOMENTS, *MORE])
async def test_the_driver_is_killed_and_the_next_add_does_the_rest(
    stage: str, seed: int, at: Home, files: list[tuple[str, Path]], local: tuple[Path, AddReport, list[Progress]]
) -> None:
    """At a random moment: while Ray is begun, by the clock; while files are read; while passages are embedded."""
    chosen, seen = random.Random(seed), 0
    moment = chosen.randrange(1, sum(p.stage == stage for p in local[2]) - 3) if stage != "start" else 0

    def tell(progress: Progress) -> None:
        nonlocal seen
        seen += progress.stage == stage
        if seen == moment and progress.stage == stage:
            driver().kill()

    async def kill_at_once() -> None:
        while not descendants("ray_ingest_child"):
            await asyncio.sleep(0.01)
        await asyncio.sleep(chosen.random() * 2)
        driver().kill()

    early = asyncio.create_task(kill_at_once()) if stage == "start" else None
    with pytest.raises(MofangError) as raised:
        await at.add(files, tell)
    if early:
        await early
    assert raised.value.code == "ray_driver_lost" and "接着做" in raised.value.hint("zh")
    assert not descendants("ray_ingest_child")
    ingested.is_whole(at.base)
    assert not ingested.doubled(at.base)
    until(lambda: not desks())

    there, before = set(ingested.vectors(at.base)), ingested.embedded(at.log)
    names = {document.name for document in at.library.documents(BASE)}
    report = await at.add(files)
    assert {file.name for file in report.files if file.status == "unchanged"} == names, "it goes on where it stopped"
    ingested.same(local[0], at.base)
    ingested.is_whole(at.base)
    missing = set(ingested.vectors(local[0])) - there
    assert ingested.embedded(at.log) - before == len(missing), "only what is missing"


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")  # Chroma's own
@pytest.mark.parametrize(("store", "place"), ELSEWHERE)
async def test_an_index_elsewhere_answers_as_the_built_in_one_does(
    store: str,
    place: Callable[[Path], Any],
    at: Home,
    files: list[tuple[str, Path]],
    local: tuple[Path, AddReport, list[Progress]],
    tmp_path: Path,
) -> None:
    """Though the driver was killed on the way. Only the committer speaks to the store."""
    here = Library(local[0].parent, _hash)
    with place(tmp_path) as settings:
        at.library.remove(BASE)
        at.library = Library(at.base.parent, _hash, settings=settings)
        at.library.create(BASE, embedding_model="hash", store=store)

        def tell(progress: Progress) -> None:
            if progress.stage == "embed" and progress.done > progress.total / 2:
                driver().kill()

        with pytest.raises(MofangError):
            await at.add(files, tell)
        await at.add(files)
        for words in ("怎样办理第7项手续", "第3章", "报销"):
            notices: list[str] = []
            there = await at.library.search([BASE], words, notices=notices)
            assert [(hit.title, hit.text) for hit in there] == [
                (hit.title, hit.text) for hit in await here.search([BASE], words)
            ]
            assert there and not notices
        ingested.same(local[0], at.base)
        ingested.is_whole(at.base)
        at.library.close()


def until(true: Callable[[], bool], timeout_s: float = 30.0) -> None:
    end = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


async def test_leaving_ends_everything_at_once(at: Home, files: list[tuple[str, Path]]) -> None:
    begun = asyncio.Event()

    def tell(progress: Progress) -> None:
        if progress.stage == "embed" and progress.done > progress.total / 3:
            begun.set()

    task = asyncio.create_task(at.add(files, tell))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not descendants("ray_ingest_child")
    ingested.is_whole(at.base)
    assert 0 < len(at.library.documents(BASE)) < len(files)
    until(lambda: not desks())


# ---- what is wrong ----


async def test_a_cluster_that_is_not_there(at: Home, files: list[tuple[str, Path]]) -> None:
    with pytest.raises(MofangError) as raised:
        await at.add(files, cluster="127.0.0.1:1")
    assert raised.value.code == "ray_no_cluster" and "127.0.0.1:1" in raised.value.message("zh")
    ingested.is_whole(at.base)


async def test_a_model_that_cannot_be_loaded_is_said_once(at: Home, files: list[tuple[str, Path]]) -> None:
    (at.settings.home / "models" / "hash" / "manifest.json").unlink()
    with pytest.raises(MofangError) as raised:
        await at.add(files[:2])
    assert raised.value.code == "model_not_found"


def test_what_is_said_wrongly_is_told_before_anything_begins(home: Path) -> None:
    with pytest.raises(Invalid) as raised:
        INGESTING.get("ray")(Settings(home=home), cluster="somewhere", workers=0)
    assert "主机:端口" in raised.value.message("zh")
    with pytest.raises(Invalid) as raised:
        INGESTING.get("local")(Settings(home=home), cluster="", workers=3)
    assert raised.value.code == "ingest_not_local" and "--workers" in raised.value.message("zh")


# ---- from Python, and the command ----


def test_python_takes_in_by_a_cluster_too(
    at: Home, files: list[tuple[str, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOFANG_EMBEDDING_MODEL", "hash")
    paths = [path for _, path in files if path.suffix == ".md"]
    with mofang.KnowledgeBase("又一个") as base:
        with pytest.raises(ApiError) as raised:
            base.add(*paths, workers=2)
        assert raised.value.code == "ingest_not_local" and base.documents() == []
        told = base.add(*paths, launcher="ray", cluster=at.cluster, workers=1)
        assert {file["status"] for file in told} == {"added"} and len(base.documents()) == len(paths)
        assert base.add(*paths)[0]["status"] == "unchanged"
    assert ingested.embedded(at.log) == len(ingested.vectors(at.base.parent / "又一个"))


def test_the_command_is_killed_is_stopped_and_goes_on(
    home: Path, tmp_path: Path, files: list[tuple[str, Path]], local: tuple[Path, AddReport, list[Progress]]
) -> None:
    log = ingested.install(home)
    path = os.pathsep.join([str(ingested.plugin(tmp_path / "plugin")), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "RAY_ADDRESS": "127.0.0.1:1", "MOFANG_EMBEDDING_MODEL": "hash"}
    folder = files[0][1].parent.parent
    command = [sys.executable, "-m", "mofang", "kb", "add", BASE, ".", "--launcher", "ray", "--workers", "1"]

    def begin() -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip

    def family(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
        return psutil.Process(process.pid).children(recursive=True)

    base = home / "knowledge" / BASE
    for number, end in ((signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130)):
        process, before = begin(), ingested.embedded(log)
        until(lambda before=before: ingested.embedded(log) > before, 90)  # type: ignore[misc]
        everybody = family(process)
        assert any("raylet" in " ".join(each.cmdline()) for each in everybody)
        process.send_signal(number)
        said, _ = process.communicate(timeout=60)
        assert process.returncode == end, said.decode()
        assert not psutil.wait_procs(everybody, timeout=30)[1], "nothing is left"
    process = begin()
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 1, "some cannot be read"
    assert "失败" in said.decode()
    ingested.same(local[0], base)
    ingested.is_whole(base)
