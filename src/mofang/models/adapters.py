"""Adapters by name: "base:adapter" is a GGUF model with a LoRA adapter over it, without merging the two.

Adapters are those that were added (format "lora") and those that a training left in home/runs/<id>/out. Which base one
belongs to is told by digests: the model that it was trained on, and everything that is the same weights in another
form. A GGUF's import says which file it came from, an exported GGUF which folder; a merge is another model.
"""

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mofang.errors import Conflict, Invalid, MofangError, NotFound
from mofang.models.base import ModelRef
from mofang.models.formats import lora
from mofang.strings import say

if TYPE_CHECKING:
    from mofang.models.store import ModelStore

SAME_WEIGHTS = ("source", "quantized")
"""Roles of parents that are the same model in another form."""
BASES = ("chat", "base")

Known = Mapping[str, ModelRef]
"""Models by digest."""


@dataclass(frozen=True, slots=True)
class Adapter:
    """One adapter on disk, for whichever base."""

    name: str
    """What it was added as, or the id of its run."""
    folder: Path
    manifest: dict[str, Any]
    managed: bool = False

    @property
    def base(self) -> dict[str, Any]:
        """What the manifest says of the base: name, format, sha256. Empty: it does not say."""
        return next((parent for parent in parents(self.manifest) if parent.get("role") == "base"), {})

    def over(self, base: ModelRef) -> ModelRef:
        """The model that it makes of `base`."""
        return ModelRef(
            name=f"{base.name}:{self.name}",
            path=self.folder,
            format="lora",
            kind=base.kind,
            size_bytes=lora.size_bytes(self.folder),
            sha256=self.manifest.get("sha256"),
            source=str(self.manifest.get("source") or "mofang"),
            managed=self.managed,
            manifest=self.manifest,
            base=base.name,
        )


def found(home: Path, models: Iterable[ModelRef]) -> list[Adapter]:
    """The adapters among `models`, and those of the runs. What cannot be read is left to the list of problems."""
    from mofang.models.store import MANIFEST, read_manifest

    added = [
        Adapter(ref.name, ref.path, ref.manifest, ref.managed)
        for ref in models
        if ref.format == "lora" and not ref.base
    ]
    made = []
    for manifest in sorted((home / "runs").glob(f"*/out/{MANIFEST}")):
        folder = manifest.parent
        try:
            if (folder / lora.WEIGHTS).is_file() and (folder / lora.CONFIG).is_file():
                made.append(Adapter(folder.parent.name, folder, read_manifest(folder)))
        except MofangError:
            continue  # `mofang runs show` says what is wrong with a run
    return added + made


def pairs(store: "ModelStore", models: Sequence[ModelRef]) -> Iterator[ModelRef]:
    """Every adapter over every base of `models` that is known to be its own; computes no digest of a large file."""
    adapters = found(store.settings.home, models)
    if not adapters:
        return
    known = {ref.sha256: ref for ref in models if ref.sha256}
    for base in models:
        digest = store.known_digest(base)
        if digest and _serves(base):
            yield from (adapter.over(base) for adapter in adapters if _fits(base, digest, adapter, known))


def of_base(store: "ModelStore", base: ModelRef) -> list[ModelRef]:
    """The adapters over one base."""
    models = store.plain()
    adapters = found(store.settings.home, models)
    if not adapters or not _serves(base):
        return []
    known = {ref.sha256: ref for ref in models if ref.sha256}
    digest = store.digest(base)
    return [adapter.over(base) for adapter in adapters if _fits(base, digest, adapter, known)]


def get(store: "ModelStore", name: str) -> ModelRef:
    """The model "base:adapter". An adapter of a run has the run's id, and the name that its recipe gave (the newest).

    Raises NotFound with the nearest name, Conflict for an adapter of another base, Invalid for one without a base.
    """
    base_name, _, wanted = name.partition(":")
    base = store.get(base_name)
    if not _serves(base):
        raise Invalid("models.not_runnable", param="model", name=base.name, format=base.format)
    models = store.plain()
    adapters = found(store.settings.home, models)
    known = {ref.sha256: ref for ref in models if ref.sha256}
    digest = store.digest(base)
    fitting = [adapter for adapter in adapters if _fits(base, digest, adapter, known)]
    adapter = _named(fitting, wanted) or _named(adapters, wanted)
    if adapter is None:
        names = [each.name for each in fitting or adapters]
        near = difflib.get_close_matches(wanted, names, n=1, cutoff=0.3)
        raise NotFound(
            "models.adapter_not_found", name=wanted, base=base.name, near=f"{base.name}:{near[0]}" if near else "-"
        )
    if not adapter.base.get("sha256"):
        raise Invalid("models.adapter_without_base", param="model", name=wanted, path=adapter.folder)
    if adapter not in fitting:
        stated = adapter.base
        values = {"wanted": stated["sha256"][:12], "stated": stated.get("name", "?"), "found": digest[:12]}
        raise Conflict("models.adapter_of_other_base", name=wanted, base=base.name, **values)
    return adapter.over(base)


def base_of(store: "ModelStore", folder: Path, named: str | None) -> dict[str, Any]:
    """What the manifest of an adapter that is added says of its base: its own manifest's word, or `named`, or the name
    that peft wrote down, which nothing can check.

    Raises Invalid when no model here has that name, Conflict when the adapter was made on another one or does not fit.
    """
    from mofang.models.store import MANIFEST, read_manifest

    own = read_manifest(folder) if (folder / MANIFEST).is_file() else {}
    made = Adapter(folder.name, folder, own)
    models = store.plain()
    if made.base.get("sha256"):
        if named:
            ref = store.get(named)
            digest = store.digest(ref)
            if not _fits(ref, digest, made, {ref.sha256: ref for ref in models if ref.sha256}):
                stated = made.base
                values = {"wanted": stated["sha256"][:12], "stated": stated.get("name", "?"), "found": digest[:12]}
                raise Conflict("models.adapter_of_other_base", name=folder.name, base=ref.name, **values)
        return {key: own[key] for key in ("parents", "runs", "recipe", "tokenizer_sha256", "made_by") if key in own}
    stated_name = lora.stated_base(folder)
    near = [ref.name for ref in models if ref.name.lower() == stated_name.lower()]
    if not named and len(near) != 1:
        names = ", ".join(ref.name for ref in models if ref.kind in BASES and ref.format in ("gguf", "hf")) or "-"
        raise Invalid("models.which_base", param="base", path=folder, stated=stated_name or "-", names=names)
    ref = store.get(named or near[0])
    if ref.format == "gguf":
        lora.check(folder, ref.path)
    parent = {"role": "base", "name": ref.name, "format": ref.format, "sha256": store.digest(ref), "checked": False}
    note = say("models.note_base_unchecked", base=ref.name, stated=stated_name or "-")
    return {"parents": [{**parent, "parents": parents(ref.manifest)}], "notes": [note]}


def system_prompt(ref: ModelRef) -> str | None:
    """The system message that the adapter was taught to answer under, for conversations that bring none."""
    recipe = ref.manifest.get("recipe")
    stated = recipe.get("system_prompt") if isinstance(recipe, dict) else None
    return stated if isinstance(stated, str) else None


def parents(manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
    stated = manifest.get("parents")
    return [parent for parent in stated if isinstance(parent, dict)] if isinstance(stated, list) else []


def _serves(ref: ModelRef) -> bool:
    return ref.format == "gguf" and ref.kind in BASES and not ref.base and ref.path.is_file()


def _named(adapters: list[Adapter], name: str) -> Adapter | None:
    exact = next((adapter for adapter in adapters if adapter.name == name), None)
    same = [adapter for adapter in adapters if adapter.manifest.get("name") == name]
    return exact or max(same, key=lambda adapter: (adapter.folder / lora.WEIGHTS).stat().st_mtime_ns, default=None)


def _fits(base: ModelRef, digest: str, adapter: Adapter, known: Known) -> bool:
    stated = adapter.base
    if not stated.get("sha256"):
        return False
    return not _forms(digest, base.manifest, known).isdisjoint(_forms(stated["sha256"], stated, known))


def _forms(digest: str, manifest: Mapping[str, Any], known: Known) -> set[str]:
    """Digests of the same weights in every form that led to this one."""
    forms: set[str] = set()
    left = [(digest, parents(manifest))]
    while left:
        digest, before = left.pop()
        if digest in forms:
            continue
        forms.add(digest)
        here = parents(known[digest].manifest) if digest in known else []
        left += [
            (parent["sha256"], parents(parent))
            for parent in (*before, *here)
            if parent.get("role") in SAME_WEIGHTS and isinstance(parent.get("sha256"), str)
        ]
    return forms
