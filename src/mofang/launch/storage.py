"""A run's checkpoints in an object store (S3, or what speaks like it), besides those in its folder.

    s3://bucket/prefix/training.json       what is trained, and whose turn it is to write here
                      /step-000050.json    a whole checkpoint: the folder that it lies in; each file's size and SHA-256
                      /step-000050-1f3a…/  its files, and those of the run that go with it

A checkpoint counts when its .json is there, which is written last and in one piece. So whoever is killed in the middle
leaves the one before; and what was left half is removed by the next one who writes here.

One run at a time writes to a prefix. One that begins there takes its turn, which ends the turn of any before: that one
is told when it would write next, be it on a machine that everybody thought was gone.

Keys are found where S3's own tools look for them: the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY), ~/.aws, the
machine's role. Docs: https://arrow.apache.org/docs/python/filesystems.html
"""

import hashlib
import json
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pyarrow import fs

from mofang.errors import Conflict, MofangError, Unreadable
from mofang.recipes import Recipe
from mofang.runs import Run
from mofang.strings import say
from mofang.train import checkpoint, lora

BESIDE = (
    "metrics.jsonl", "samples.jsonl", "base.json", "pace.json", "reference.safetensors", f"checkpoints/{checkpoint.BEST}",
)  # fmt: skip
"""Files of a run, by their place in its folder, without which a checkpoint would not go on as it did."""
OWN = (lora.WEIGHTS, checkpoint.OPTIMIZER, "state.json")
"""Files of a checkpoint."""
PLACES = {"base", "data", "eval_data", "tokenizer"}
"""Fields of a recipe that may be called otherwise on another machine. What they hold is compared by its digest."""
PIECE = 8 << 20
"""Bytes that are read and sent in one go."""


class Storage:
    """The place `uri` names, for the training by `recipe`; `keep` checkpoints stay there."""

    def __init__(self, uri: str, recipe: Recipe, keep: int) -> None:
        self.uri, self.recipe, self.keep = uri, recipe, keep
        self.turn = uuid.uuid4().hex
        with self._reached():
            self.files, root = fs.FileSystem.from_uri(uri)
        self.root = root.rstrip("/")

    def take(self, run: Run) -> None:
        """From here on this run writes there, and it has the newest whole checkpoint of those there and its own.

        Raises Conflict where another training's checkpoints are, Unreadable where all are broken; MofangError where the
        place cannot be reached or written.
        """
        told = {"kind": self.recipe.kind, **self.recipe.model_dump(mode="json")}
        with self._reached():
            found = self._read("training.json")
            if found:
                apart = {
                    name for name in told if name not in PLACES and told[name] != found.get("training", {}).get(name)
                }
                if apart:
                    raise Conflict("launch.storage_of_another", uri=self.uri, fields=", ".join(sorted(apart)))
            self._write("training.json", {"training": told, "run": run.id, "turn": self.turn})
            self._fetch(run)

    def put(self, path: Path, run: Run) -> None:
        """Keep a checkpoint of the run there, too. Raises Conflict when another run took its turn, MofangError where the
        place cannot be reached."""
        with self._reached():
            self._check_turn()
            folder = f"{path.name}-{uuid.uuid4().hex[:8]}"
            beside = [name for name in BESIDE if (run.folder / name).is_file()]
            sent = {name: self._send(path / name, f"{folder}/{name}") for name in OWN}
            sent |= {f"run/{name}": self._send(run.folder / name, f"{folder}/run/{name}") for name in beside}
            self._check_turn()  # sending may have taken long
            self._write(f"{path.name}.json", {"folder": folder, "files": sent})
            self._prune()

    # ---- what is there ----

    def _steps(self) -> list[str]:
        """Names of the whole checkpoints, the oldest first."""
        return sorted(name.removesuffix(".json") for name in self._names() if name.endswith(".json"))

    def _folders(self) -> list[str]:
        return [name for name in self._names() if not name.endswith(".json")]

    def _names(self) -> list[str]:
        selector = fs.FileSelector(self.root, allow_not_found=True)
        return [info.base_name for info in self.files.get_file_info(selector) if info.base_name.startswith("step-")]

    def _prune(self) -> None:
        """Remove all but the newest `keep`, and what belongs to none."""
        steps = self._steps()
        for name in steps[: -self.keep]:
            self.files.delete_file(f"{self.root}/{name}.json")
        kept = {(self._read(f"{name}.json") or {}).get("folder") for name in steps[-self.keep :]}
        for name in self._folders():
            if name not in kept:
                self.files.delete_dir(f"{self.root}/{name}")

    def _check_turn(self) -> None:
        found = self._read("training.json")
        if not found or found.get("turn") != self.turn:
            raise Conflict("launch.storage_taken", uri=self.uri, run=(found or {}).get("run", "-"))

    # ---- from there ----

    def _fetch(self, run: Run) -> None:
        """Put the newest whole checkpoint into the run's folder, where it is newer than the run's own."""
        own = [path.name for path in checkpoint.found(run.checkpoints) if _is_whole(path)]
        newest = own[-1] if own else ""
        steps = self._steps()
        half = max((name.rpartition("-")[0] for name in self._folders()), default="")
        if half > max([newest, *steps]):
            run.note(say("launch.storage_half", step=half, uri=self.uri))
        first: Unreadable | None = None
        for step in reversed(steps):
            if step <= newest:
                break
            try:
                self._bring(step, run)
            except Unreadable as error:
                first = first or error
                continue
            newest = step
            run.note(say("launch.storage_fetched", step=step, uri=self.uri))
            break
        if first and not newest:
            raise first
        if first:
            run.note(say("train.checkpoint_before", why=first.message(), used=newest))

    def _bring(self, step: str, run: Run) -> None:
        manifest = self._read(f"{step}.json") or {}
        files = manifest.get("files", {})
        aside = run.folder / ".fetched"
        shutil.rmtree(aside, ignore_errors=True)
        try:
            for name in (*OWN, *(f"run/{each}" for each in BESIDE)):  # and no other, whatever it may name
                if name in files or name in OWN:
                    self._receive(f"{manifest.get('folder')}/{name}", aside / name, files.get(name))
            run.checkpoints.mkdir(exist_ok=True)
            for name in BESIDE:
                (run.folder / name).unlink(missing_ok=True)
                if (aside / "run" / name).is_file():
                    (aside / "run" / name).replace(run.folder / name)
            shutil.rmtree(aside / "run", ignore_errors=True)
            shutil.rmtree(run.checkpoints / step, ignore_errors=True)
            aside.rename(run.checkpoints / step)
        finally:
            shutil.rmtree(aside, ignore_errors=True)

    def _receive(self, name: str, target: Path, wanted: Any) -> None:
        """Raises Unreadable for a file that is not what was sent."""
        target.parent.mkdir(parents=True, exist_ok=True)
        found: Any = None
        try:
            with self.files.open_input_stream(f"{self.root}/{name}") as source, target.open("wb") as file:
                found = _copied(source, file)
        except FileNotFoundError:
            pass
        if not wanted or wanted != found:
            raise Unreadable("launch.storage_broken", uri=self.uri, name=name)

    def _read(self, name: str) -> Any:
        """What a small file holds; None where there is none."""
        try:
            with self.files.open_input_stream(f"{self.root}/{name}") as source:
                return json.loads(source.read())
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise Unreadable("launch.storage_broken", uri=self.uri, name=name) from error

    # ---- to there ----

    def _send(self, path: Path, name: str) -> dict[str, Any]:
        """Returns what `_receive` will want."""
        with path.open("rb") as file, self.files.open_output_stream(f"{self.root}/{name}") as target:
            return _copied(file, target)

    def _write(self, name: str, value: Any) -> None:
        with self.files.open_output_stream(f"{self.root}/{name}") as target:
            target.write(json.dumps(value, ensure_ascii=False).encode())

    @contextmanager
    def _reached(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise MofangError("launch.storage_unreachable", uri=self.uri, why=str(error).splitlines()[0]) from error


def _copied(source: Any, target: Any) -> dict[str, Any]:
    """Copy one open file into another; what a manifest says of it."""
    sha256, size = hashlib.sha256(), 0
    while piece := source.read(PIECE):
        sha256.update(piece)
        size += len(piece)
        target.write(piece)
    return {"size_bytes": size, "sha256": sha256.hexdigest()}


def _is_whole(path: Path) -> bool:
    try:
        checkpoint.check(path)
    except Unreadable:
        return False
    return True
