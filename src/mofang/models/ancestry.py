"""Where a model comes from: it, what it was made from, what that was made from, down to what was brought here.

A manifest names parents by digest, and what those say of their own parents, as they may be gone one day. What is still
here tells of itself; what is not, is told of by what was made from it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mofang.models.adapters import found, parents
from mofang.models.base import ModelRef

if TYPE_CHECKING:
    from mofang.models.store import ModelStore


@dataclass(frozen=True, slots=True)
class Ancestor:
    """A model, or an adapter, and what it was made from."""

    name: str
    role: str
    """What it was to what was made from it: "base", "adapter", "source", "quantized"…; "" for the model itself."""
    format: str
    sha256: str
    step: str
    """The kind of run that made it: "sft", "merge", "gguf"…; "" for what was brought."""
    run: str
    source: str
    """Where it was brought from; "" for what was made here."""
    here: bool
    """Whether it can still be used."""
    told: bool
    """Its own ancestry stands elsewhere in the tree, and is not repeated."""
    parents: tuple["Ancestor", ...] = ()


def of(store: "ModelStore", ref: ModelRef) -> Ancestor:
    """The whole ancestry of a model. Reads manifests only; computes no digest."""
    models = store.plain()
    known: dict[str, tuple[str, str, Mapping[str, Any]]] = {
        adapter.manifest["sha256"]: (adapter.name, "lora", adapter.manifest)
        for adapter in found(store.settings.home, models)
        if adapter.manifest.get("sha256")
    }
    known |= {one.sha256: (one.name, one.format, one.manifest) for one in models if one.sha256}
    stated = {"name": ref.name, "format": ref.format, "sha256": ref.sha256 or "", "source": ref.source}
    return _ancestor({**stated, **_history(ref.manifest)}, known, set(), here=True)


def parent(ref: ModelRef, role: str, sha256: str) -> dict[str, Any]:
    """How a manifest names a model that something was made from, what that one came from included."""
    stated = {"role": role, "name": ref.name, "format": ref.format, "sha256": sha256}
    return with_history(stated, {"source": ref.source, **ref.manifest})


def with_history(stated: dict[str, Any], manifest: Mapping[str, Any]) -> dict[str, Any]:
    """A parent, and what its own manifest says of where it comes from."""
    kept = {key: manifest[key] for key in ("made_by", "source") if manifest.get(key)}
    before = parents(manifest)
    return {**stated, **kept, **({"parents": before} if before else {})}


def _ancestor(
    stated: Mapping[str, Any], known: Mapping[str, tuple[str, str, Mapping[str, Any]]], told: set[str], *, here: bool
) -> Ancestor:
    digest = str(stated.get("sha256") or "")
    if not here and digest in known:
        name, format, manifest = known[digest]
        stated = {**stated, "name": name, "format": format, **_history(manifest)}
        here = True
    made = stated.get("made_by")
    made = made if isinstance(made, dict) else {}
    again = bool(digest) and digest in told
    told.add(digest)
    before = () if again else tuple(_ancestor(parent, known, told, here=False) for parent in parents(stated))
    return Ancestor(
        name=str(stated.get("name") or "?"),
        role=str(stated.get("role") or ""),
        format=str(stated.get("format") or ""),
        sha256=digest,
        step=str(made.get("kind") or ""),
        run=str(made.get("run") or ""),
        source="" if made else str(stated.get("source") or ""),
        here=here,
        told=again and bool(parents(stated)),
        parents=before,
    )


def _history(manifest: Mapping[str, Any]) -> dict[str, Any]:
    return {key: manifest[key] for key in ("made_by", "source", "parents") if key in manifest}
