"""The models of this machine: those under the home folder, those added where they lie, those of MOFANG_MODEL_PATH.

    home/models/<name>/manifest.json      what it is, where from, digests; the weights beside it, or "path" elsewhere
    home/models/.staging/                 pulls under way (models/pull.py)

A manifest is written aside and renamed. Files of MOFANG_MODEL_PATH are read, never written to. What lies there but
cannot be used is not hidden: `problems()` names it. Knows nothing of engines: a manifest may name one for them.
"""

import builtins
import difflib
import errno
import hashlib
import json
import os
import re
import shutil
import unicodedata
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from mofang.errors import Conflict, Invalid, MofangError, NotFound, Unreadable
from mofang.models import adapters, ancestry, catalogue, projectors
from mofang.models.ancestry import Ancestor
from mofang.models.base import Format, Kind, MemoryEstimate, ModelFacts, ModelRef
from mofang.models.formats import FORMATS, RUNNABLE, gguf, hf
from mofang.models.memory import estimate
from mofang.models.sources.base import HubAnswers
from mofang.settings import Settings
from mofang.strings import say

MANIFEST = "manifest.json"
VERSION = 1
"""Of the manifest's layout."""
FOLDER_DEPTH = 3
"""How deep MOFANG_MODEL_PATH is searched: publisher/model/file.gguf, as other tools lay models out."""
CHUNK = 1 << 20

Wanted = Literal["chat", "embedding", "reranker"]
_NAME = re.compile(r"^[\w一-鿿][\w一-鿿.\-]{0,127}$")
_VARIABLE = re.compile(r"^[A-Z_][A-Z0-9_]*$", re.ASCII)
_ACCEPTED: dict[str, tuple[str, ...]] = {"chat": ("chat", "base")}
"""Kinds that serve a wish; a base model also continues text."""


class ModelStore:
    """The models that can be used now. Cheap to make; reads the disk at each call, headers once a file."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.folder = settings.home / "models"
        self.hubs = HubAnswers()
        """Which hubs answered: asked once, remembered as long as this store lives."""
        self._kinds: dict[tuple[Path, int, int], Kind] = {}
        """Kinds of files in MOFANG_MODEL_PATH by (path, size, modification time in ns)."""
        self._facts: dict[tuple[tuple[Path, int, int], ...], ModelFacts] = {}
        """What GGUF files say of themselves, by the same key of each part: a vocabulary takes 50 ms to walk over, and a
        load asks once for each number of slots."""
        self._digests: dict[tuple[Path, int, int], str] = {}
        """Digests that no manifest has, by the same key."""

    # ---- looking ----

    def list(self) -> builtins.list[ModelRef]:
        """Every usable model: the home folder's by name, those of MOFANG_MODEL_PATH, adapters over their bases."""
        models = self.plain()
        return [*models, *adapters.pairs(self, models)]

    def plain(self) -> builtins.list[ModelRef]:
        """Every model that lies somewhere by itself."""
        return [found for found in self._survey() if isinstance(found, ModelRef)]

    def problems(self) -> builtins.list[MofangError]:
        """What lies in the folders and cannot be used, each with its reason."""
        return [found for found in self._survey() if isinstance(found, MofangError)]

    def get(self, name: str) -> ModelRef:
        """The model of that name, or the newest one that the run of that id led to; "base:adapter" is an adapter's.

        Raises NotFound with the nearest name, or the reason why it cannot be used.
        """
        if ":" in name:
            return adapters.get(self, name)
        if _NAME.match(name) and (self.folder / name / MANIFEST).is_file():
            return self._managed(self.folder / name)
        found = next((ref for ref in self._survey() if isinstance(ref, ModelRef) and ref.name == name), None)
        found = found or self.made_by(name, "gguf")
        if found:
            return found
        to_be_had = [entry.name for entry in catalogue.load().entries]
        near = difflib.get_close_matches(name, [*(ref.name for ref in self.list()), *to_be_had], n=1, cutoff=0.3)
        cure = "to_pull" if name in to_be_had else "nearest" if near else "no_near"
        raise NotFound("models.model_not_found", name=name, cure=say(f"models.{cure}", name=near[0] if near else name))

    def get_or_path(self, name: str) -> ModelRef:
        """The model of that name, or the one that lies at that absolute path."""
        path = Path(name).expanduser()
        if not path.is_absolute():
            return self.get(name)
        if not path.exists():
            raise NotFound("models.no_such_file", path=path)
        return self._unmanaged(path)

    def made_by(self, run: str, format: Format) -> ModelRef | None:
        """The newest model of that format that a run (by id, or by the name of its recipe) led to, however many steps
        lie between.
        """
        made = [ref for ref in self.plain() if ref.format == format and run in _runs_of(ref.manifest)]
        return max(made, key=lambda ref: str(ref.manifest.get("added_at", "")), default=None)

    def resolve(self, name: str, kind: Wanted | None) -> ModelRef:
        """The model that `name` means where a model of `kind` is wanted (None: any kind).

        "auto" is the setting chat_model, embedding_model or reranker_model, else an installed default of the catalogue,
        else the only model of that kind. Raises NotFound with what to type, Invalid for a model of another kind.
        """
        if name == "auto":
            return self._automatic(kind or "chat")
        ref = self.get(name)
        if kind is not None and ref.kind not in _ACCEPTED.get(kind, (kind,)):
            raise Invalid("models.wrong_kind", param="model", name=name, found=ref.kind, wanted=kind)
        if kind is not None and not ref.runnable:
            raise Invalid("models.not_runnable", param="model", name=ref.name, format=ref.format)
        return ref

    def facts(self, ref: ModelRef) -> ModelFacts:
        """What the model's own metadata says; over a base, the base's. A model without weights has only its engine's
        name."""
        if ref.base:
            return self.facts(self.get(ref.base))
        if ref.path.is_dir() and ref.format == "gguf":
            engine = str(ref.manifest.get("engine", ""))
            return ModelFacts(engine, 0, None, None, None, None, None, None, "", "", None, None)
        if ref.format != "gguf":
            facts: ModelFacts = FORMATS.get(ref.format).facts(ref.path)
            return facts
        key = tuple(_stamp(part) for part in gguf.parts(ref.path))
        if key not in self._facts:
            self._facts[key] = gguf.facts(ref.path)
        return self._facts[key]

    def memory(self, ref: ModelRef, n_ctx: int, n_slots: int) -> MemoryEstimate:
        """Bytes that the model will take when it is loaded, with `n_ctx` tokens for each of `n_slots`. A base's
        adapters are loaded with it.
        """
        base = self.get(ref.base) if ref.base else ref
        facts = self.facts(base)
        size = base.size_bytes + sum(adapter.size_bytes for adapter in adapters.of_base(self, base))
        size += projectors.beside_bytes(base, projectors.of(base, facts))
        return estimate(size, facts, n_ctx, n_slots)

    def ancestry(self, ref: ModelRef) -> Ancestor:
        """What it was made from, and what that was made from, down to what was brought; computes no digest."""
        return ancestry.of(self, ref)

    def known_digest(self, ref: ModelRef) -> str:
        """Its SHA-256 where that costs nothing, else ""."""
        return ref.sha256 or self._digests.get(_stamp(ref.path), "")

    def digest(self, ref: ModelRef) -> str:
        """Its SHA-256; of a file that no manifest describes it is computed once."""
        found = self.known_digest(ref) or digest(ref)
        if not ref.sha256:
            self._digests[_stamp(ref.path)] = found
        return found

    # ---- changing ----

    def add(
        self,
        path: Path,
        name: str | None = None,
        *,
        base: str | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> ModelRef:
        """Register a file or folder where it lies. Reads it whole once, for the digest; `progress(done, total)` bytes.

        `base` is the model that an adapter belongs to. Raises NotFound, Unreadable for a damaged one, Conflict when the
        name is taken or the base is another one, Invalid for a bad name or a base that is not known.
        """
        path = path.expanduser().absolute()
        if not path.exists():
            raise NotFound("models.no_such_file", path=path)
        format = detect(path)
        reader = FORMATS.get(format)
        if format == "gguf":
            path = gguf.parts(path)[0]
        name = check_name(name or suggest_name(path))
        self.check_free(name)
        reader.facts(path)
        if base and format != "lora":
            raise Invalid("models.base_of_no_adapter", param="base", path=path, format=format)
        more = adapters.base_of(self, path, base) if format == "lora" else {}
        kind = reader.kind(path)
        files = digests(path, format, progress)
        manifest = {
            "manifest": VERSION,
            "name": name,
            "kind": kind,
            "format": format,
            "path": str(path),
            "size_bytes": sum(file["size_bytes"] for file in files),
            "sha256": files[0]["sha256"],
            "files": files,
            "source": "path",
            "added_at": now(),
            **more,
        }
        aside = self.folder / f".adding-{uuid.uuid4().hex}"
        aside.mkdir(parents=True)
        write_manifest(aside, manifest)
        self.publish(aside, name)
        return self.get(name)

    def add_remote(
        self,
        name: str,
        base_url: str,
        model: str,
        *,
        kind: Wanted = "chat",
        api_key_env: str = "",
        n_ctx: int | None = None,
    ) -> ModelRef:
        """Register a model behind another OpenAI-compatible server. `api_key_env` is the name of an environment
        variable: no key is ever written down. Raises Invalid, Conflict when the name is taken.
        """
        self.check_free(check_name(name))
        if not re.match(r"^https?://[^/\s]+", base_url):
            raise Invalid("models.bad_base_url", param="base_url", url=base_url)
        if api_key_env and not _VARIABLE.match(api_key_env):
            raise Invalid("models.bad_variable", param="api_key_env")  # perhaps a key: it is not repeated
        remote = {"base_url": base_url, "model": model, "api_key_env": api_key_env or None, "n_ctx": n_ctx}
        manifest = {
            "manifest": VERSION,
            "name": name,
            "kind": kind,
            "engine": "remote",
            "remote": {key: value for key, value in remote.items() if value is not None},
            "source": base_url,
            "added_at": now(),
        }
        aside = self.folder / f".adding-{uuid.uuid4().hex}"
        aside.mkdir(parents=True)
        write_manifest(aside, manifest)
        self.publish(aside, name)
        return self.get(name)

    def remove(self, name: str) -> None:
        """Delete a model of the home folder, or forget one that was added in place. Raises NotFound, Conflict."""
        folder = self.folder / name
        if not (_NAME.match(name) and folder.is_dir()):
            ref = self.get(name)
            if ref.base:
                raise Conflict("models.adapter_stays", name=name, base=ref.base, adapter=name.partition(":")[2])
            raise Conflict("models.not_ours", name=name, path=ref.path)
        trash = self.folder / f".removed-{uuid.uuid4().hex}"
        folder.rename(trash)  # gone at once, also when deleting takes long or is interrupted
        shutil.rmtree(trash)

    def check_free(self, name: str) -> None:
        """Raises Conflict when a model has that name."""
        if (self.folder / name).exists() or any(ref.name == name for ref in self.plain()):
            raise Conflict("models.model_exists", name=name)

    def publish(self, aside: Path, name: str) -> None:
        """Give a complete model folder its final name. Raises Conflict when somebody was faster."""
        try:
            aside.rename(self.folder / name)
        except OSError as error:
            if error.errno in (errno.EEXIST, errno.ENOTEMPTY):
                raise Conflict("models.model_exists", name=name) from error
            raise

    # ---- inside ----

    def _automatic(self, kind: Wanted) -> ModelRef:
        settings = self.settings
        setting = {
            "chat": settings.chat_model,
            "embedding": settings.embedding_model,
            "reranker": settings.reranker_model or "auto",
        }[kind]
        if setting != "auto":
            return self.resolve(setting, kind)
        accepted = _ACCEPTED.get(kind, (kind,))
        models = {ref.name: ref for ref in self.plain() if ref.kind in accepted and ref.runnable}
        # A Hugging Face folder is mostly there to be trained: it answers unasked only where there is nothing else.
        models = {name: ref for name, ref in models.items() if ref.format != "hf"} or models
        defaults = catalogue.load().defaults(kind)
        for entry in defaults:
            if entry.name in models:
                return models[entry.name]
        if len(models) == 1:
            return next(iter(models.values()))
        if models:
            names, setting = ", ".join(models), f"MOFANG_{kind.upper()}_MODEL"
            raise Invalid("models.which_model", param="model", kind=kind, names=names, setting=setting)
        suggestion = defaults[-1].name if defaults else "NAME"
        raise NotFound("models.no_model_installed", kind=kind, suggestion=suggestion)

    def _survey(self) -> Iterator[ModelRef | MofangError]:
        seen: dict[str, Path] = {}
        folders = sorted(self.folder.iterdir()) if self.folder.is_dir() else []
        for folder in folders:
            if folder.name.startswith(".") or not folder.is_dir():
                continue
            try:
                ref = self._managed(folder)
            except MofangError as error:
                yield error
                continue
            seen[ref.name] = ref.path
            yield ref
        for path in _found(self.settings.model_folders):
            try:
                ref = self._unmanaged(path)
            except MofangError as error:
                yield error
                continue
            if ref.name in seen:
                if seen[ref.name] != path:
                    yield Conflict("models.shadowed", path=path, name=ref.name, other=seen[ref.name])
                continue
            seen[ref.name] = path
            yield ref

    def _managed(self, folder: Path) -> ModelRef:
        manifest = read_manifest(folder)
        in_place = "path" in manifest
        file = Path(manifest["path"]) if in_place else folder / manifest.get("file", "")
        if not file.exists():
            raise NotFound("models.file_missing", name=folder.name, path=file)
        try:
            return ModelRef(
                name=folder.name,
                path=file,
                format=manifest.get("format", "gguf"),
                kind=manifest.get("kind", "chat"),
                size_bytes=int(manifest.get("size_bytes", 0)),
                sha256=manifest.get("sha256"),
                source=str(manifest.get("source", "")),
                managed=not in_place,
                runnable="engine" in manifest
                or _runnable(manifest.get("format", "gguf"), manifest.get("kind", "chat")),
                manifest=manifest,
            )
        except (TypeError, ValueError) as error:
            raise Unreadable("models.manifest_broken", path=folder / MANIFEST, why=error) from error

    def _unmanaged(self, path: Path) -> ModelRef:
        format = detect(path)
        reader = FORMATS.get(format)
        size = reader.size_bytes(path)
        key = (path, size, path.stat().st_mtime_ns)
        kind = self._kinds.get(key) or self._kinds.setdefault(key, reader.kind(path))
        return ModelRef(
            suggest_name(path), path, format, kind, size, source=str(path.parent), managed=False,
            runnable=_runnable(format, kind),
        )  # fmt: skip


def _runnable(format: Format, kind: Kind) -> bool:
    return kind in RUNNABLE.get(format, ())


def _runs_of(manifest: dict[str, Any]) -> set[str]:
    """Ids of the runs that led to a model, and the name that its training was given."""
    recipe = manifest.get("recipe")
    named = str(recipe.get("name") or "") if isinstance(recipe, dict) else ""
    runs = manifest.get("runs")
    return {str(run) for run in (*(runs if isinstance(runs, list) else ()), named) if run}


def detect(path: Path) -> Format:
    """The format of a file or folder. Raises Unreadable when it is none that we know."""
    if path.is_dir() and hf.is_model(path):
        return hf.format_of(path)
    if path.is_file() and path.suffix == ".gguf":
        return "gguf"
    if path.is_dir() and hf.is_pickled(path):
        raise Unreadable("models.pickled", path=path)
    raise Unreadable("models.unknown_format", path=path)


def check_name(name: str) -> str:
    """`name` itself. Raises Invalid when it cannot be a model's name, and so a folder's."""
    if not _NAME.match(name):
        raise Invalid("models.bad_name", param="name", name=name, near=_cleaned(name))
    return name


def suggest_name(path: Path) -> str:
    """A model's name from its file's: without suffix and part number, with nothing that a name may not have."""
    stem = path.name if path.is_dir() else path.stem
    return _cleaned(re.sub(r"-00001-of-\d{5}$", "", stem))


def digests(path: Path, format: Format, progress: Callable[[int, int], None] | None = None) -> list[dict[str, Any]]:
    """Name, size and SHA-256 of each file of a model."""
    files = gguf.parts(path) if format == "gguf" else sorted(path.glob("*.safetensors"))
    total = sum(file.stat().st_size for file in files)
    found, done = [], 0
    for file in files:
        digest, size = hashlib.sha256(), 0
        with file.open("rb") as stream:
            while chunk := stream.read(CHUNK):
                digest.update(chunk)
                size += len(chunk)
                if progress:
                    progress(done + size, total)
        done += size
        found.append({"name": file.name, "size_bytes": size, "sha256": digest.hexdigest()})
    return found


def digest_of(path: Path) -> str:
    """The SHA-256 of one file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _stamp(path: Path) -> tuple[Path, int, int]:
    """What changes when the file does."""
    state = path.stat()
    return path, state.st_size, state.st_mtime_ns


def digest(ref: ModelRef) -> str:
    """The SHA-256 by which a model is known; computed now for one that no manifest describes."""
    return ref.sha256 or str(digests(ref.path, ref.format)[0]["sha256"])


def lineage(ref: ModelRef) -> list[str]:
    """Ids of the runs that led to a model."""
    return [str(run_id) for run_id in ref.manifest.get("runs") or ()]


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a model's folder. Raises Unreadable."""
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(manifest, dict):
            raise ValueError("not an object")
        file = manifest.get("file", "")
        if not isinstance(file, str) or Path(file).name != file:
            raise ValueError(f"file: {file!r}")
        if not isinstance(manifest.get("path", ""), str):
            raise ValueError(f"path: {manifest['path']!r}")
        if manifest.get("format", "gguf") not in FORMATS.names():
            raise ValueError(f"format: {manifest['format']!r}")
        if manifest.get("kind", "chat") not in ("chat", "base", "embedding", "reranker"):
            raise ValueError(f"kind: {manifest['kind']!r}")
    except (OSError, ValueError, RecursionError) as error:
        raise Unreadable("models.manifest_broken", path=path, why=error) from error
    return manifest


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Write the manifest so that it is never seen half."""
    aside = folder / f".{MANIFEST}.part"
    aside.write_text(json.dumps(manifest, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    aside.replace(folder / MANIFEST)


def now() -> str:
    """ISO 8601 in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _found(folders: list[Path]) -> Iterator[Path]:
    """Model files and folders below `folders`: no later parts of split models, no projectors of vision models."""
    for folder in folders:
        depth = len(folder.parts)
        for root, inner, files in os.walk(folder, onerror=None):
            here = Path(root)
            inner[:] = sorted(name for name in inner if not name.startswith("."))
            if len(here.parts) - depth >= FOLDER_DEPTH:
                inner.clear()
            if hf.is_model(here):
                yield here
            for name in sorted(files):
                path = here / name
                if path.suffix != ".gguf" or name.startswith(".") or projectors.is_named_so(path):
                    continue
                if not gguf.is_later_part(path):
                    yield path


def _cleaned(name: str) -> str:
    """Letters and decimal digits of any script, "_", "." and "-": what every definition of a word agrees on."""
    plain = (
        char if char in "_.-" or unicodedata.category(char)[0] == "L" or char.isdecimal() else " " for char in name
    )
    return "-".join("".join(plain).split()).lstrip(".-")[:128] or "model"
