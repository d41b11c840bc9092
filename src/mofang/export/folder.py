"""What every exporter does: find what to begin with, write aside, publish with lineage, report progress and stop.

    home/models/.export-<run id>/    what an export writes; it gets its name when it is whole
    home/models/.replaced-<name>/    a model in the moment in which the new one takes its name

A killed export leaves either behind: the next one, and the gateway when it begins, put that in order (`sweep`).
"""

import importlib.metadata
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mofang import __version__, settings
from mofang.errors import Conflict, NoSpace
from mofang.models import ancestry
from mofang.models.adapters import parents
from mofang.models.base import ModelRef
from mofang.models.progress import size
from mofang.models.sources.base import disk_is_full
from mofang.models.store import MANIFEST, VERSION, ModelStore, check_name, digest, digests, now, write_manifest
from mofang.platform import free_disk
from mofang.runs import Run, Runs

ASIDE, REPLACED = ".export-", ".replaced-"


def store() -> ModelStore:
    """The models of this home."""
    return ModelStore(settings.load())


def find(name: str) -> ModelRef:
    """The model of that name, or at that path. Raises NotFound with the nearest name."""
    return store().get_or_path(name)


def find_run(name: str) -> Run | None:
    """The run of that id or name, unless a model has exactly that name."""
    return None if (store().folder / name / MANIFEST).is_file() else Runs(settings.load().home).named(name)


def free_name(wanted: str, *, overwrite: bool, run: Run | None = None) -> str:
    """`wanted`, which no model has but one that this very run made before it was killed. Raises Conflict, or Invalid
    for what is no name: said before the work, not after it."""
    check_name(wanted)
    if not overwrite and not _made_by(wanted, run):
        store().check_free(wanted)
    elif (store().folder / wanted).exists() and not store().get(wanted).managed:
        raise Conflict("models.model_exists", name=wanted)
    return wanted


def _made_by(name: str, run: Run | None) -> bool:
    if run is None or not (store().folder / name / MANIFEST).is_file():
        return False
    return bool((store().get(name).manifest.get("made_by") or {}).get("run") == run.id)


@contextmanager
def aside(run: Run) -> Iterator[Path]:
    """An empty folder beside the models, that is gone when something fails; what killed exports left goes first.

    Raises NoSpace where the disk becomes full.
    """
    models = store().folder
    models.mkdir(parents=True, exist_ok=True)
    sweep(but=run)
    folder = models / f"{ASIDE}{run.id}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        with space(folder):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def space(folder: Path) -> Iterator[None]:
    """Raises NoSpace where the disk of `folder` becomes full meanwhile."""
    try:
        yield
    except Exception as error:
        # safetensors says it in an error of its own
        if (isinstance(error, OSError) and disk_is_full(error)) or "(os error 28)" in str(error):
            raise NoSpace("export.disk_full", path=folder.parent, free=size(free_disk(folder))) from error
        raise


def sweep(home: Path | None = None, *, but: Run | None = None) -> None:
    """Take away what killed exports left aside, and give a model its name back whose successor did not come to it."""
    home = home or settings.load().home
    models, runs = home / "models", Runs(home)
    for left in models.glob(f"{ASIDE}*"):
        run = runs.find(left.name.removeprefix(ASIDE))
        if run is None or (run.state().status != "running" and (but is None or run.id != but.id)):
            shutil.rmtree(left, ignore_errors=True)
    for old in models.glob(f"{REPLACED}*"):
        name = models / old.name.removeprefix(REPLACED)
        if name.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            old.rename(name)


def publish(
    folder: Path, name: str, *, format: str, kind: str, run: Run, parents: list[dict[str, Any]], overwrite: bool,
    runs: Sequence[str] = (), **more: Any,
) -> ModelRef:  # fmt: skip
    """Write the manifest and give the folder its name. With `overwrite` the old model goes only now. `more` are further
    entries of the manifest.
    """
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
    if (overwrite or _made_by(name, run)) and (models.folder / name).exists():
        old = models.folder / f"{REPLACED}{name}"
        shutil.rmtree(old, ignore_errors=True)
        (models.folder / name).rename(old)
        models.publish(folder, name)
        shutil.rmtree(old, ignore_errors=True)
    else:
        models.publish(folder, name)
    return models.get(name)


# ---- lineage ----


def parent(ref: ModelRef, role: str) -> dict[str, Any]:
    """How a manifest names a model that it was made from; with what that one was made from, which may be gone one day."""
    return ancestry.parent(ref, role, digest(ref))


def base_of(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """What an adapter's manifest says of its base: name, sha256. Empty: it does not say."""
    stated = parents(manifest)
    return next((parent for parent in stated if parent.get("role") == "base"), stated[0] if stated else {})


def tools(*packages: str) -> dict[str, str]:
    """Versions of what a model is made with, for its manifest."""
    return {"mofang": __version__, **{name: importlib.metadata.version(name) for name in packages}}
