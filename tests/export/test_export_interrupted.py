"""Killed anywhere, or out of disk: no half model has a name, what was left goes at the next start, and a rerun works."""

import importlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import tiny_llama
from mofang.errors import Conflict
from mofang.export import folder
from mofang.launch import home as homes
from mofang.models.store import ModelStore
from mofang.runs import Run
from tiny_llama import write_gguf

Start = Callable[..., Run]
SOURCE = [str(Path(folder.__file__).parents[2]), str(Path(tiny_llama.__file__).parent)]
WORKERS = {
    "merge": "mofang.export.merge",
    "import": "mofang.export.imports",
    "gptq": "mofang.export.gptq.worker",
    "gguf": "mofang.export.gguf",
}
KILLED = """
import importlib, json, os, signal, sys
sys.path[:0] = {paths!r}
from mofang.engine.llama import library
from mofang.models.store import ModelStore
from mofang.runs import Reporter, Run
library.mark_alone()
worker = importlib.import_module({module!r})

def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

def until(point):
    kind, n = point
    publish, call, seen = ModelStore.publish, Reporter.__call__, [0]

    def published(*given):
        publish(*given)
        die()

    def counted(self, stage, *given, **more):
        seen[0] += stage == kind
        die() if seen[0] == n and stage == kind else None
        return call(self, stage, *given, **more)

    ModelStore.publish = {{"before": die, "after": published}}.get(kind, publish)
    Reporter.__call__ = counted

for place, point in json.loads(sys.argv[1]):
    child = os.fork()
    if child == 0:
        until(point)
        run = Run(__import__("pathlib").Path(place))
        worker.run(run.recipe(), run)
        os._exit(7)  # it came to its end
    _, status = os.waitpid(child, 0)
    print("ended by", os.WTERMSIG(status) if os.WIFSIGNALED(status) else -os.WEXITSTATUS(status), flush=True)
"""


def kill(kind: str, runs: list[tuple[Run, tuple[str, int]]]) -> None:
    """Start each run in a process of its own that is killed at its point."""
    script = KILLED.format(paths=SOURCE, module=WORKERS[kind])
    told = json.dumps([(str(run.folder), point) for run, point in runs])
    done = subprocess.run(
        [sys.executable, "-c", script, told], capture_output=True, text=True, timeout=600, check=False
    )
    ends = [line for line in done.stdout.splitlines() if line.startswith("ended by")]
    assert ends == ["ended by 9"] * len(runs), done.stdout + done.stderr[-2000:]


def names(store: ModelStore) -> set[str]:
    return {ref.name for ref in store.list()}


def again(kind: str, run: Run) -> dict[str, Any]:
    return importlib.import_module(WORKERS[kind]).run(run.recipe(), run)


@pytest.fixture
def fields(base: Path, store: ModelStore, tmp_path: Path) -> dict[str, dict[str, Any]]:
    """What each exporter is told."""
    text = tmp_path / "text.txt"
    text.write_text("回答在这里，第三个问题。" * 40, encoding="utf-8")
    store.add(write_gguf(base, tmp_path / "plain.gguf"), "plain")
    adapter = tiny_llama.make_adapter(tmp_path / "adapter")
    return {
        "merge": {"model": str(adapter), "base": "tiny"},
        "import": {"model": "plain", "dtype": "float32"},
        "gptq": {"model": "tiny", "calibration": str(text), "samples": 4, "length": 48, "group_size": 32},
        "gguf": {"model": "tiny", "type": "f16"},
    }


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(sys.platform == "win32", reason="fork and SIGKILL")
@pytest.mark.parametrize(
    "kind, points",
    [
        ("merge", [("merge", 1), ("merge", 12), ("check", 1)]),
        ("import", [("import", 1), ("import", 12)]),
        ("gptq", [("read", 1), ("quantize", 2), ("quantize", 8), ("write", 1)]),
        ("gguf", [("convert", 1), ("convert", 3)]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_killed_export_leaves_no_half_model_and_goes_on(
    kind: str, points: list[tuple[str, int]], fields: dict, converter: Path, store: ModelStore, start: Start
) -> None:
    points = [*points, ("after", 1), ("before", 1)]
    runs = [start(kind, name=f"m{n}", **fields[kind]) for n in range(len(points))]
    before = names(store)
    kill(kind, list(zip(runs, points, strict=True)))
    published = f"m{len(points) - 2}"
    assert names(store) == before | {published}, "only what was whole has its name"
    assert store.problems() == []
    left = {path.name for path in store.folder.glob(".export-*")}
    assert left == {f".export-{runs[-1].id}"}, "each swept what the one before left"
    with folder.aside(start("merge", **fields["merge"])):  # whoever comes next
        assert not left & {path.name for path in store.folder.iterdir()}
    for number, run in enumerate(runs):
        assert again(kind, run)["model"] == f"m{number}"
        assert not run.checkpoints.exists()
    assert names(store) == before | {f"m{n}" for n in range(len(points))} and not list(store.folder.glob(".export-*"))
    if kind != "gguf":
        made = [load_file(store.get(f"m{n}").path / "model.safetensors") for n in range(len(points))]
        for other in made[1:]:
            assert made[0].keys() == other.keys() and all(torch.equal(made[0][name], other[name]) for name in other)


def test_the_gateway_sweeps_when_it_begins(base: Path, store: ModelStore, start: Start, home: Path) -> None:
    run = start("merge", model="x")
    running = start("merge", model="x")
    running.update(status="running", pid=os.getpid(), pid_started=__import__("psutil").Process().create_time())
    for each in (run, running):
        (store.folder / f".export-{each.id}").mkdir()
    (store.folder / "tiny").rename(store.folder / ".replaced-tiny")  # killed between two names
    assert names(store) == set()
    homes.prepare(home)
    with homes.own(home):
        assert names(store) == {"tiny"}
        assert {path.name for path in store.folder.glob(".*")} == {f".export-{running.id}"}
    (store.folder / ".replaced-tiny").mkdir()  # its successor came to the name
    folder.sweep()
    assert names(store) == {"tiny"} and not (store.folder / ".replaced-tiny").exists()


def test_a_run_replaces_what_it_made_itself_and_nothing_else(base: Path, start: Start) -> None:
    run = start("merge", model="x")
    with pytest.raises(Conflict):
        folder.free_name("tiny", overwrite=False, run=run)


FULL = """
import importlib, json, os, subprocess, sys
from pathlib import Path
sys.path[:0] = {paths!r}
home, told, workers, toolchain = json.loads(sys.argv[1])
if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "none", home]).returncode:
    sys.exit(77)
os.environ["MOFANG_HOME"] = home
os.environ["HF_HUB_OFFLINE"] = "1"
from mofang import settings
from mofang.engine.llama import library
from mofang.errors import NoSpace
from mofang.models.store import ModelStore
from mofang.models.sources import base
library.mark_alone()
from mofang.recipes import parse, recipe_class
from mofang.runs import Runs
store = ModelStore(settings.load())
for name, path in told["models"].items():
    store.add(Path(path), name)
if toolchain:
    os.symlink(toolchain, Path(home, "toolchain"))
base.need_disk = lambda *_: None  # the room was there when it was asked for
ballast = Path(home, "ballast")

def fill(free):
    ballast.unlink(missing_ok=True)
    state = os.statvfs(home)
    ballast.write_bytes(bytes(state.f_bavail * state.f_frsize - free))

for kind, fields in told["exports"].items():
    worker = importlib.import_module(workers[kind])
    run = Runs(Path(home)).create(parse(recipe_class(kind), {{**fields, "name": "made"}}))
    fill(told["free"][kind])
    try:
        worker.run(run.recipe(), run)
        print(kind, "went through")
    except NoSpace as error:
        left = sorted(path.name for path in store.folder.iterdir())
        ballast.unlink()
        made = worker.run(run.recipe(), run)["model"]
        print(kind, error.code, json.dumps(left), made)
        store.remove("made")
    except BaseException as error:
        print(kind, type(error).__name__, error)
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(sys.platform != "linux" or not shutil.which("unshare"), reason="needs a small file system")
def test_a_disk_that_becomes_full_is_said_and_leaves_nothing(
    fields: dict, base: Path, converter: Path, home: Path, tmp_path: Path
) -> None:
    """On a real file system of 64 MB, whose rest is nine tenths of what each export writes."""
    place, size = tmp_path / "small", (base / "model.safetensors").stat().st_size
    place.mkdir()
    told = {
        "models": {"tiny": str(base), "plain": str(tmp_path / "plain.gguf")},
        "exports": {kind: fields[kind] for kind in ("merge", "import", "gguf", "gptq")},
        # GPTQ: beside each layer the states before and behind it lie on the disk
        "free": {"merge": int(size * 0.9), "import": int(size * 0.9), "gguf": int(size * 0.45), "gptq": 120_000},
    }
    script = FULL.format(paths=SOURCE)
    arguments = json.dumps([str(place), told, WORKERS, str(home / "toolchain")])
    flags = ["-m"] if os.geteuid() == 0 else ["-rm"]
    done = subprocess.run(
        ["unshare", *flags, sys.executable, "-c", script, arguments],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    if done.returncode in (1, 77) and not done.stdout:
        pytest.skip(f"no file system can be mounted here: {done.stderr[-200:]}")
    said = done.stdout.splitlines()
    wanted = json.dumps(["plain", "tiny"])
    assert [line for line in said if " disk_full " in line] == [
        f"{kind} disk_full {wanted} made" for kind in told["exports"]
    ], done.stdout + done.stderr[-2000:]
