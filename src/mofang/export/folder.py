"""What every exporter does: find what to begin with, write aside, publish with lineage, report progress and stop."""

import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mofang import __version__, settings
from mofang.errors import Conflict
from mofang.models.base import ModelRef
from mofang.models.store import MANIFEST, VERSION, ModelStore, digest, digests, now, write_manifest
from mofang.runs import Run, Runs


def store() -> ModelStore:
    """The models of this home."""
    return ModelStore(settings.load())


def find(name: str) -> ModelRef:
    """The model of that name, or at that path. Raises NotFound with the nearest name."""
    return store().get_or_path(name)


def find_run(name: str) -> Run | None:
    """The run of that id or name, unless a model has exactly that name."""
    return None if (store().folder / name / MANIFEST).is_file() else Runs(settings.load().home).named(name)


def free_name(wanted: str, *, overwrite: bool) -> str:
    """`wanted`, which no model has. Raises Conflict: said before the work, not after it."""
    if not overwrite:
        store().check_free(wanted)
    elif (store().folder / wanted).exists() and not store().get(wanted).managed:
        raise Conflict("models.model_exists", name=wanted)
    return wanted


@contextmanager
def aside(run: Run) -> Iterator[Path]:
    """An empty folder beside the models, that is gone when something fails; what a killed export left goes first."""
    models = store().folder
    models.mkdir(parents=True, exist_ok=True)
    folder = models / f".export-{run.id}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def publish(
    folder: Path, name: str, *, format: str, kind: str, run: Run, parents: list[dict[str, Any]], overwrite: bool,
    runs: Sequence[str] = (), **more: Any,
) -> ModelRef:  # fmt: skip
    """Write the manifest and give the folder its name. With `overwrite` the old model goes only now."""
    models = store()
    files = digests(folder / more["file"] if format == "gguf" else folder, "gguf" if format == "gguf" else "hf")
    manifest = {
        "manifest": VERSION,
        "name": name,
        "kind": kind,
        "format": format,
        "size_bytes": sum(file["size_bytes"] for file in files),
        "sha256": files[0]["sha256"],
        "files": files,
        "source": "mofang",
        "added_at": now(),
        "made_by": {"run": run.id, "kind": run.recipe().kind, "mofang": __version__},
        "parents": parents,
        "runs": [run.id, *(run_id for run_id in runs if run_id != run.id)],
        **more,
    }
    write_manifest(folder, manifest)
    if overwrite and (models.folder / name).exists():
        old = models.folder / f".removed-{uuid.uuid4().hex}"
        (models.folder / name).rename(old)
        models.publish(folder, name)
        shutil.rmtree(old, ignore_errors=True)
    else:
        models.publish(folder, name)
    return models.get(name)


def parent(ref: ModelRef, role: str) -> dict[str, Any]:
    """How a manifest names a model that it was made from."""
    return {"role": role, "name": ref.name, "format": ref.format, "sha256": digest(ref)}
