"""Which adapters go over which bases: by digests through every form of the same weights, and said when unknown."""

import json
from pathlib import Path

import pytest

import tiny_llama
from mofang.errors import Conflict, Invalid, NotFound
from mofang.models.store import ModelStore, write_manifest
from mofang.settings import Settings


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    return tiny_llama.write_gguf(tiny_llama.make(folder / "hf"), folder / "tiny.gguf")


@pytest.fixture
def store(home: Path) -> ModelStore:
    return ModelStore(Settings(home=home))


def _pairs(store: ModelStore) -> set[str]:
    return {ref.name for ref in store.list() if ref.base}


def _run(home: Path, run_id: str, parent: dict[str, object], name: str = "") -> Path:
    """What a finished `train sft` leaves."""
    out = tiny_llama.make_adapter(home / "runs" / run_id / "out")
    manifest = {"name": name or run_id, "kind": "base", "format": "lora", "parents": [{"role": "base", **parent}]}
    write_manifest(out, {**manifest, "runs": [run_id]})
    return out


def _imported(home: Path, name: str, source: str) -> dict[str, object]:
    """A folder that was imported from the GGUF of digest `source`; returns how an adapter names it."""
    folder = home / "models" / name
    folder.mkdir(parents=True)
    parents = [{"role": "quantized", "name": "tiny", "format": "gguf", "sha256": source}]
    write_manifest(
        folder,
        {"name": name, "format": "hf", "kind": "chat", "path": str(folder), "sha256": "1" * 64, "parents": parents},
    )
    return {"name": name, "format": "hf", "sha256": "1" * 64}


def test_a_runs_adapter_goes_over_the_gguf_that_its_base_was_imported_from(
    home: Path, store: ModelStore, gguf: Path
) -> None:
    tiny = store.add(gguf, "tiny")
    out = _run(home, "taught-1", _imported(home, "tiny-hf", str(tiny.sha256)), name="taught")
    assert _pairs(store) == {"tiny:taught-1"}
    ref = store.get("tiny:taught")
    assert ref == store.get("tiny:taught-1") == store.resolve("tiny:taught", "chat")
    assert (ref.name, ref.base, ref.format, ref.kind, ref.path) == ("tiny:taught-1", "tiny", "lora", "chat", out)
    assert store.facts(ref).architecture == "llama" and store.facts(ref).chat_template
    assert store.resolve("auto", "chat").name == "tiny"  # an adapter is nobody's default


def test_the_lineage_holds_when_the_imported_folder_is_gone(home: Path, store: ModelStore, gguf: Path) -> None:
    tiny = store.add(gguf, "tiny")
    parents = [{"role": "quantized", "name": "tiny", "format": "gguf", "sha256": tiny.sha256}]
    _run(home, "taught-1", {"name": "gone", "format": "hf", "sha256": "2" * 64, "parents": parents})
    assert _pairs(store) == {"tiny:taught-1"}


def test_a_merged_model_is_no_form_of_its_base(home: Path, store: ModelStore, gguf: Path) -> None:
    tiny = store.add(gguf, "tiny")
    manifest = json.loads((store.folder / "tiny" / "manifest.json").read_text())
    merged = {"role": "base", "name": "tiny-hf", "format": "hf", "sha256": "3" * 64}
    write_manifest(store.folder / "tiny", {**manifest, "parents": [merged]})
    _run(home, "r", {"name": "tiny-hf", "format": "hf", "sha256": "3" * 64})
    assert _pairs(store) == set()
    with pytest.raises(Conflict) as raised:
        store.get("tiny:r")
    said = raised.value.message()
    assert raised.value.code == "adapter_of_other_base" and "333333333333" in said and str(tiny.sha256)[:12] in said


def test_an_unknown_adapter_is_answered_with_the_nearest(home: Path, store: ModelStore, gguf: Path) -> None:
    store.add(gguf, "tiny")
    store.add(tiny_llama.make_adapter(home / "lawyer"), "lawyer", base="tiny")
    with pytest.raises(NotFound) as raised:
        store.get("tiny:lawer")
    assert raised.value.code == "adapter_not_found" and "tiny:lawyer" in raised.value.message()


def test_a_strangers_adapter_needs_a_base_and_says_that_nothing_could_check_it(
    home: Path, store: ModelStore, gguf: Path
) -> None:
    stranger = tiny_llama.make_adapter(home / "stranger", base="someone/Other-1B")
    store.add(gguf, "tiny")
    with pytest.raises(Invalid) as raised:
        store.add(stranger)
    assert raised.value.code == "which_base" and "Other-1B" in raised.value.message() and "tiny" in raised.value.hint()
    added = store.add(stranger, base="tiny")
    assert added.manifest["parents"][0]["checked"] is False and "Other-1B" in added.manifest["notes"][0]
    assert _pairs(store) == {"tiny:stranger"}
    with pytest.raises(Conflict):
        store.add(tiny_llama.make_adapter(home / "wide", layers=3), base="tiny")
    named = store.add(tiny_llama.make_adapter(home / "named", base="someone/Tiny"))
    assert named.manifest["parents"][0]["name"] == "tiny"


def test_an_adapter_that_knows_its_base_is_not_told_another(
    home: Path, store: ModelStore, gguf: Path, tmp_path: Path
) -> None:
    tiny = store.add(gguf, "tiny")
    other = tiny_llama.write_gguf(tiny_llama.make(tmp_path / "other", seed=3), tmp_path / "other.gguf")
    store.add(other, "other")
    out = _run(home, "r", {"name": "tiny", "format": "gguf", "sha256": tiny.sha256})
    with pytest.raises(Conflict) as raised:
        store.add(out, "mine", base="other")
    assert raised.value.code == "adapter_of_other_base"
    assert store.add(out, "mine").manifest["parents"][0]["sha256"] == tiny.sha256
    assert _pairs(store) == {"tiny:mine", "tiny:r"}
    with pytest.raises(Invalid):
        store.add(gguf, "again", base="tiny")


def test_memory_counts_the_adapters_and_the_pair_cannot_be_removed_by_its_name(
    home: Path, store: ModelStore, gguf: Path
) -> None:
    tiny = store.add(gguf, "tiny")
    before = store.memory(tiny, 256, 1)
    adapter = store.add(tiny_llama.make_adapter(home / "a"), base="tiny")
    after = store.memory(tiny, 256, 1)
    assert after.weights - before.weights == adapter.size_bytes
    assert store.memory(store.get("tiny:a"), 256, 1) == after
    with pytest.raises(Conflict) as raised:
        store.remove("tiny:a")
    assert "models rm a" in raised.value.hint()
    store.remove("a")
    assert _pairs(store) == set()


def test_a_base_without_a_manifest_is_known_by_its_file(home: Path, gguf: Path) -> None:
    store = ModelStore(Settings(home=home, model_path=str(gguf.parent)))
    store.add(tiny_llama.make_adapter(home / "a"), base="tiny")
    assert store.get("tiny:a").base == "tiny" and "tiny:a" in _pairs(store)
