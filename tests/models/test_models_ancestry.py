"""A model's ancestry as a tree: what is here tells of itself, what is gone is told of by its children."""

from pathlib import Path
from typing import Any

import pytest

from mofang.models import ancestry
from mofang.models.store import ModelStore, write_manifest
from mofang.settings import Settings


@pytest.fixture
def store(home: Path) -> ModelStore:
    return ModelStore(Settings(home=home))


def put(store: ModelStore, name: str, **manifest: Any) -> dict[str, Any]:
    place = store.folder / name
    place.mkdir(parents=True)
    (place / "model.gguf").write_bytes(b"x")
    stated = {"format": "gguf", "sha256": name * 8, "file": "model.gguf", **manifest}
    write_manifest(place, stated)
    return stated


def parent(role: str, name: str, manifest: dict[str, Any]) -> dict[str, Any]:
    kept = {key: manifest[key] for key in ("made_by", "source", "parents") if key in manifest}
    return {"role": role, "name": name, "format": manifest["format"], "sha256": manifest["sha256"], **kept}


def shown(one: ancestry.Ancestor) -> tuple[Any, ...]:
    return (one.role, one.name, one.step or one.source, one.here, one.told, *map(shown, one.parents))


def test_the_whole_way_down_to_what_was_brought(store: ModelStore) -> None:
    brought = put(store, "gguf", source="huggingface")
    base = put(store, "base", made_by={"kind": "import", "run": "i"}, parents=[parent("quantized", "gguf", brought)])
    adapter = {
        "role": "adapter", "name": "taught", "format": "lora", "sha256": "a" * 64, "made_by": {"kind": "sft", "run": "s"},
        "parents": [parent("base", "base", base)],
    }  # fmt: skip
    merged = put(
        store, "merged", made_by={"kind": "merge", "run": "m"}, parents=[parent("base", "base", base), adapter]
    )
    put(store, "small", made_by={"kind": "gguf", "run": "g"}, parents=[parent("source", "merged", merged)])
    gguf = ("quantized", "gguf", "huggingface", True, False)
    assert shown(ancestry.of(store, store.get("small"))) == (
        ("", "small", "gguf", True, False,
            ("source", "merged", "merge", True, False,
                ("base", "base", "import", True, False, gguf),
                ("adapter", "taught", "sft", False, False, ("base", "base", "import", True, True))))
    )  # fmt: skip

    # What is gone stays told; what has another name now is found by its digest.
    store.remove("merged")
    (store.folder / "base").rename(store.folder / "renamed")
    tree = ancestry.of(store, store.get("small"))
    assert shown(tree)[5][:5] == ("source", "merged", "merge", False, False)
    assert [one.name for one in tree.parents[0].parents] == ["renamed", "taught"]
    assert tree.parents[0].parents[0].here


def test_a_circle_ends_and_nonsense_is_passed_over(store: ModelStore) -> None:
    stated = put(store, "self", made_by={"kind": "gguf"})
    write_manifest(store.folder / "self", {**stated, "parents": [parent("source", "self", stated), 7, "x"]})
    tree = ancestry.of(store, store.get("self"))
    assert [one.name for one in tree.parents] == ["self"] and tree.parents[0].told and tree.parents[0].parents == ()
    put(store, "odd", made_by="me", parents="none", source="pypi")
    assert shown(ancestry.of(store, store.get("odd"))) == ("", "odd", "pypi", True, False)
