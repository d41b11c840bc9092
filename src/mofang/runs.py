"""A run on disk: what a training or an export was told, how far it is, and what came of it.

    home/runs/<id>/recipe.yaml     the resolved recipe
                  /launcher.yaml   which processes compute it, where that is not one alone
                  /state.json      status, progress, result; written by the worker alone while it runs
                  /metrics.jsonl   a line a step
                  /log.txt         what the worker said
                  /stop            there when somebody asked it to stop
                  /out/            what it makes; /checkpoints/, /measured/ to go on from
                  /report.md, /picture.png   for people, where it measured something

The worker is a process of its own that outlives whoever started it: closing a terminal, a tab or the gateway ends no
run. A run whose process is gone without a last word was interrupted, and can be resumed. Files are the only way
between the two sides, so every reader (command line, server, another program) sees the same.
"""

import builtins
import difflib
import json
import os
import re
import shutil
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from mofang.errors import Conflict, Invalid, MissingExtra, MofangError, NotFound, Unreadable
from mofang.messages import Progress
from mofang.platform import end_process, has_module, is_same_process, start_detached, started_at
from mofang.recipes import METHODS, Launcher, Recipe, launcher_of, parse, read_yaml, recipe_class
from mofang.strings import language

Status = Literal["created", "running", "done", "stopped", "failed", "interrupted"]

SHOWN = {"report.md": "text/markdown; charset=utf-8", "picture.png": "image/png"}
"""Files that a run may leave for people, and what they are; those of other names are nobody's to fetch over HTTP."""
WORKER = "mofang.launch.worker"
"""The module that a run's process is: `python -m mofang.launch.worker <folder>`."""
STARTING_S = 30.0
"""How long a fresh process may take to say that it is there."""
POLL_S = 0.1
TELL_EVERY_S = 0.2


@dataclass(frozen=True, slots=True)
class State:
    """What a run's worker last said of itself."""

    id: str
    kind: str
    title: str
    status: Status = "created"
    created_at: str = ""
    started_at: str = ""
    ended_at: str = ""
    pid: int = 0
    pid_started: float = 0.0
    """When that process began, as the system says: a number that came round again is another process."""
    progress: dict[str, Any] = field(default_factory=dict)
    """Shape of messages.Progress."""
    result: dict[str, Any] = field(default_factory=dict)
    """What it made: paths, models, figures."""
    error: dict[str, Any] = field(default_factory=dict)
    """code, message, hint in the language of the worker."""
    notes: list[str] = field(default_factory=list)
    """What a person should know: rows left out, texts cut, choices made."""


class Stopped(Exception):
    """Somebody asked the run to stop. Workers let it through after saving what they have."""


class Run:
    """One run's folder. Cheap: everything is read from disk when asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def id(self) -> str:
        return self.folder.name

    @property
    def out(self) -> Path:
        return self.folder / "out"

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def measured(self) -> Path:
        """What an export measured, until its model has its name. Not among checkpoints: a training that ends with an
        export has its own there."""
        return self.folder / "measured"

    @property
    def log(self) -> Path:
        return self.folder / "log.txt"

    # ---- reading ----

    def state(self) -> State:
        """The state now. A worker that is gone without a last word makes it "interrupted"."""
        state = self._written()
        if state.status == "running" and not is_same_process(state.pid, state.pid_started):
            state = self._written()  # it may have said its last word in between
            if state.status == "running":
                return replace(state, status="interrupted")
        return state

    def recipe(self) -> Recipe:
        """The resolved recipe that it runs by."""
        return parse(recipe_class(self._written().kind), read_yaml(self.folder / "recipe.yaml"))

    def launcher(self) -> Launcher:
        """Who computes it, as it was last started."""
        path = self.folder / "launcher.yaml"
        return launcher_of(read_yaml(path) if path.exists() else {})

    def relaunched(self, values: Mapping[str, Any]) -> Launcher | None:
        """The launcher that `values` (see recipes.launcher_of) make of its own; None when they say nothing."""
        return launcher_of({"launcher": self.launcher().kind, **values}) if values else None

    def metrics(self, after: int = -1) -> list[dict[str, Any]]:
        """The measured lines, in order; those of steps beyond `after`. A line being written is left for later."""
        try:
            text = (self.folder / "metrics.jsonl").read_text(encoding="utf-8")
        except FileNotFoundError:
            return []
        rows = [json.loads(line) for line in text.split("\n")[:-1] if line]
        return [row for row in rows if row.get("step", 0) > after]

    def samples(self) -> list[dict[str, Any]]:
        """What the model said on the way, oldest first: {"step", "prompt", "text"}."""
        path = self.folder / "samples.jsonl"
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []

    def keep_samples(self, step: int, rows: Sequence[dict[str, Any]]) -> None:
        """Those of one step; of it and of later ones none are left from before."""
        kept = [row for row in self.samples() if row["step"] < step]
        aside = self.folder / ".samples.jsonl.part"
        lines = (json.dumps({"step": step, **row}, ensure_ascii=False) + "\n" for row in (*kept, *rows))
        aside.write_text("".join(lines), encoding="utf-8")
        aside.replace(self.folder / "samples.jsonl")

    def tail(self, lines: int = 20) -> str:
        """The last lines of the log."""
        try:
            text = self.log.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return ""
        return "\n".join(text.rstrip("\n").split("\n")[-lines:])

    def shown(self, name: str) -> Path:
        """A file of SHOWN. Raises NotFound for another name, or where this run has none."""
        path = self.folder / name
        if name not in SHOWN or not path.is_file():
            raise NotFound("runs.no_file", id=self.id, name=name, known=", ".join(SHOWN))
        return path

    def stop_asked(self) -> bool:
        return (self.folder / "stop").exists()

    # ---- writing: the worker, or whoever holds a run that does not run ----

    def update(self, **changes: Any) -> State:
        """Write the state with `changes`, so that it is never seen half."""
        state = replace(self._written(), **changes)
        aside = self.folder / ".state.json.part"
        aside.write_text(json.dumps(asdict(state), ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
        aside.replace(self.folder / "state.json")
        return state

    def note(self, text: str) -> None:
        """Something that a person should know; said once."""
        notes = self._written().notes
        if text not in notes:
            self.update(notes=[*notes, text])
            print(text, flush=True)

    def record(self, row: dict[str, Any]) -> None:
        """Append one line of metrics."""
        with (self.folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def saved(self, checkpoint: Path) -> None:
        """A checkpoint lies there, whole: whoever keeps it elsewhere, too, does so now."""

    def forget_metrics(self, beyond: int) -> None:
        """Drop the lines of steps beyond `beyond`: they will be measured again."""
        kept = [row for row in self.metrics() if row.get("step", 0) <= beyond]
        aside = self.folder / ".metrics.jsonl.part"
        aside.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
        aside.replace(self.folder / "metrics.jsonl")

    def check_stop(self) -> None:
        """Raises Stopped when somebody asked for it."""
        if self.stop_asked():
            raise Stopped

    # ---- its process ----

    def start(self, launcher: Launcher | None = None) -> None:
        """Start the worker and wait until it is there; `launcher` in place of the one that it had.

        Raises Conflict when it runs, Invalid for a launcher of what is no training, MissingExtra before anything.
        """
        state = self.state()
        if state.status == "running":
            raise Conflict("runs.is_running", id=self.id)
        need(recipe_class(state.kind), launcher)
        need(type(launcher or self.launcher()))
        if launcher:
            aside = self.folder / ".launcher.yaml.part"
            aside.write_text(launcher.as_yaml(), encoding="utf-8")
            aside.replace(self.folder / "launcher.yaml")
        (self.folder / "stop").unlink(missing_ok=True)
        # Until the worker has put its own number here, ours stands for it; after that only the worker writes.
        self.update(
            status="running",
            pid=os.getpid(),
            pid_started=started_at(os.getpid()),
            started_at=now(),
            ended_at="",
            error={},
            progress={},
        )
        spoken = {"MOFANG_LANG": language()}  # of who starts it: what it tells, and its report, are read by them
        process = start_detached([sys.executable, "-m", WORKER, str(self.folder)], log=self.log, env=spoken)
        until = time.monotonic() + STARTING_S
        while process.poll() is None and time.monotonic() < until:
            if self._written().pid != os.getpid():
                return
            time.sleep(0.01)
        if self._written().pid == os.getpid():
            end_process(process.pid)
            failure = MofangError("runs.worker_failed", why=self.tail(3), log=self.log)
            self.update(status="failed", ended_at=now(), error=failed(failure))
            raise failure

    def stop(self, *, wait_s: float = 120.0) -> State:
        """Ask it to stop: it saves what it has and ends. After `wait_s` it is made to. Nothing happens to an ended one."""
        state = self.state()
        if state.status != "running":
            return state
        (self.folder / "stop").touch()
        until = time.monotonic() + wait_s
        while (state := self.state()).status == "running" and time.monotonic() < until:
            time.sleep(POLL_S)
        if state.status == "running":
            end_process(state.pid)
        return self.state()

    def wait(self, tell: Callable[[State, builtins.list[dict[str, Any]]], None] | None = None) -> State:
        """Return when it has ended; `tell` hears the state and the new lines of metrics as they come."""
        for state, rows in self.follow():
            if tell:
                tell(state, rows)
        return state

    def follow(self) -> Iterator[tuple[State, builtins.list[dict[str, Any]]]]:
        """State and new metrics whenever something changed, until it has ended."""
        seen, last = 0, None
        while True:
            state = self.state()  # before the metrics: what it wrote before its last word is then never missed
            rows = self.metrics()
            if len(rows) < seen:
                seen = 0
            if state != last or len(rows) > seen:
                yield state, rows[seen:]
            seen, last = len(rows), state
            if state.status not in ("running", "created"):
                return
            time.sleep(POLL_S)

    def _written(self) -> State:
        path = self.folder / "state.json"
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            known = {f.name for f in fields(State)}
            return State(**{key: value for key, value in values.items() if key in known})
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise Unreadable("runs.state_broken", path=path, why=error) from error


class Runs:
    """The runs of one home."""

    def __init__(self, home: Path) -> None:
        self.folder = home / "runs"

    def create(self, recipe: Recipe) -> Run:
        """A new run's folder; nothing starts yet."""
        stem = re.sub(r"[^\w.-]+", "-", getattr(recipe, "name", "") or recipe.kind).strip("-.") or recipe.kind
        run_id = f"{stem[:40]}-{datetime.now(UTC):%m%d-%H%M%S}"
        aside = self.folder / f".{uuid.uuid4().hex}"
        aside.mkdir(parents=True)
        (aside / "recipe.yaml").write_text(recipe.as_yaml(), encoding="utf-8")
        while True:
            state = State(run_id, recipe.kind, recipe.title(), created_at=now())
            (aside / "state.json").write_text(json.dumps(asdict(state), ensure_ascii=False), encoding="utf-8")
            try:
                aside.rename(self.folder / run_id)
                return Run(self.folder / run_id)
            except OSError:
                if not (self.folder / run_id).exists():
                    raise
                run_id += f"-{uuid.uuid4().hex[:4]}"

    def list(self) -> builtins.list[Run]:
        """Every run, the newest first."""
        folders = (
            [path for path in self.folder.iterdir() if (path / "state.json").is_file()] if self.folder.is_dir() else []
        )
        found = [(run.state().created_at, run) for run in map(Run, folders) if not run.id.startswith(".")]
        return [run for _, run in sorted(found, key=lambda pair: (pair[0], pair[1].id), reverse=True)]

    def get(self, run_id: str) -> Run:
        """The run of that id, or the one that begins so; "last" is the newest. Raises NotFound, Invalid if several."""
        runs = self.list()
        if run_id == "last" and runs:
            return runs[0]
        exact = [run for run in runs if run.id == run_id]
        begins = exact or [run for run in runs if run_id and run.id.startswith(run_id)]
        if len(begins) == 1:
            return begins[0]
        if begins:
            raise Invalid("runs.which", id=run_id, ids=", ".join(run.id for run in begins))
        near = difflib.get_close_matches(run_id, [run.id for run in runs], n=1, cutoff=0.3)
        raise NotFound("runs.not_found", id=run_id, near=near[0] if near else "-")

    def find(self, run_id: str) -> Run | None:
        """The run of exactly that id."""
        path = self.folder / run_id
        plain = bool(run_id) and Path(run_id).name == run_id and not run_id.startswith(".")
        return Run(path) if plain and (path / "state.json").is_file() else None

    def named(self, name: str) -> Run | None:
        """The run of exactly that id, or the newest training whose recipe gave its result that name."""
        exact = self.find(name)
        if exact:
            return exact
        trainings = (run for run in self.list() if run.state().kind in METHODS.names())
        return next((run for run in trainings if name and getattr(run.recipe(), "name", "") == name), None)

    def remove(self, run_id: str) -> None:
        """Delete a run that does not run. Raises Conflict."""
        run = self.get(run_id)
        if run.state().status == "running":
            raise Conflict("runs.is_running", id=run.id)
        trash = self.folder / f".removed-{uuid.uuid4().hex}"
        run.folder.rename(trash)
        shutil.rmtree(trash)


class Reporter:
    """Progress into the run's state, not too often; every call is also a chance to stop."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self._told, self._begun, self._first = 0.0, 0.0, 0
        self._stage = ""

    def __call__(self, stage: str, done: int, total: int = 0, unit: str = "bytes", detail: str = "") -> None:
        self.run.check_stop()
        clock = time.monotonic()
        if stage != self._stage:
            self._stage, self._begun, self._first, self._told = stage, clock, done, 0.0
        if clock - self._told < TELL_EVERY_S and done != total:
            return
        self._told = clock
        seconds = clock - self._begun
        rate = (done - self._first) / seconds if seconds > 0.5 else 0.0
        self.run.update(progress=asdict(Progress(stage, done, total, unit, rate, detail)))


def need(recipe: type[Recipe], launcher: Launcher | None = None) -> None:
    """Raises MissingExtra, with the pip line, when the libraries of this recipe's worker are not installed; Invalid for
    a launcher where nothing is trained."""
    if launcher and recipe.kind not in METHODS.names():
        raise Invalid("runs.not_launched", param="launcher", kind=recipe.kind)
    if recipe.library and not has_module(recipe.library):
        raise MissingExtra("core.missing_extra", name=recipe.kind, library=recipe.library, extra=recipe.extra)


def failed(error: MofangError) -> dict[str, Any]:
    """An error as State.error has it."""
    return {"code": error.code, "message": error.message(), "hint": error.hint()}


def work(folder: Path, call: Callable[[str, Recipe, Run], dict[str, Any]]) -> int:
    """The worker's whole life: say that it is there, do the work, say what came of it. Returns the exit code."""
    run = Run(folder)
    run.update(status="running", pid=os.getpid(), pid_started=started_at(os.getpid()))
    try:
        recipe = run.recipe()
        result = call(recipe.worker, recipe, run)
    except Stopped:
        run.update(status="stopped", ended_at=now())
        return 0
    except MofangError as error:
        print(error, file=sys.stderr, flush=True)
        run.update(status="failed", ended_at=now(), error=failed(error))
        return 1
    except BaseException as error:
        run.update(
            status="failed",
            ended_at=now(),
            error=failed(MofangError("runs.worker_failed", why=f"{type(error).__name__}: {error}", log=run.log)),
        )
        raise
    run.update(status="done", ended_at=now(), result=result)
    return 0


def now() -> str:
    """ISO 8601 in UTC, to the millisecond: runs are listed by it."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")
