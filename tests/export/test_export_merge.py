"""Merged is base and adapter, or it gets no name; an adapter goes into its own base only."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import tiny_llama
from mofang.errors import Conflict, Invalid, MofangError, Unreadable
from mofang.export import merge
from mofang.models.store import ModelStore, write_manifest
from mofang.runs import Run
from mofang.tokenizer import load

Start = Callable[..., Run]
IDS = torch.arange(2, 50)[None]


def plain(folder: Path):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def make_adapter(base: Path, target: Path, **config: object) -> Path:
    torch.manual_seed(3)
    wanted = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "init_lora_weights": False, **config}
    model = get_peft_model(plain(base), LoraConfig(**wanted))
    with torch.no_grad():
        for name, lengths in model.named_parameters():
            if "lora_magnitude_vector" in name:  # which begin as the sum's own
                lengths.mul_(torch.rand_like(lengths) + 0.5)
    model.save_pretrained(target)
    return target


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits


def go(run: Run) -> dict:
    return merge.run(run.recipe(), run)


@pytest.mark.parametrize("kind", [{}, {"use_rslora": True}, {"use_dora": True}], ids=str)
@pytest.mark.parametrize("shards", [1, 5])
def test_merged_is_what_peft_computes(kind: dict, shards: int, store: ModelStore, start: Start, tmp_path: Path) -> None:
    base = tiny_llama.make(tmp_path / "base")
    if shards > 1:
        model = plain(base)
        (base / "model.safetensors").unlink()
        model.save_pretrained(base, max_shard_size="60KB")
    store.add(base, "base")
    adapter = make_adapter(base, tmp_path / "adapter", **kind)
    result = go(start("merge", model=str(adapter), base="base", name="both"))
    made = store.get("both")
    torch.testing.assert_close(
        logits(plain(made.path)), logits(PeftModel.from_pretrained(plain(base), adapter)), atol=1e-4, rtol=1e-4
    )
    assert result["mean_kl"] <= result["bound"] == 1e-6
    assert made.manifest["checks"]["merged_equals_adapter"]["same_top"] == 1.0
    assert not torch.allclose(logits(plain(made.path)), logits(plain(base)), atol=1e-2)
    assert len(list(made.path.glob("*.safetensors"))) == len(list(base.glob("*.safetensors")))


@pytest.mark.parametrize("dtype, bound", [("float16", 1e-4), ("bfloat16", 5e-3), ("same", 1e-6)])
def test_the_sum_is_rounded_once_to_the_type_that_was_asked_for(
    dtype: str, bound: float, base: Path, store: ModelStore, start: Start, tmp_path: Path
) -> None:
    adapter = make_adapter(base, tmp_path / "adapter")
    assert go(start("merge", model=str(adapter), base="tiny", name="m", dtype=dtype))["bound"] == bound
    tensors = load_file(store.get("m").path / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {getattr(torch, "float32" if dtype == "same" else dtype)}


def test_tied_heads_stay_tied_unless_one_of_them_was_trained(
    base: Path, store: ModelStore, start: Start, tmp_path: Path
) -> None:
    go(start("merge", model=str(make_adapter(base, tmp_path / "a")), base="tiny", name="tied"))
    tied = store.get("tied").path
    assert "lm_head.weight" not in load_file(tied / "model.safetensors")
    assert json.loads((tied / "config.json").read_text())["tie_word_embeddings"] is True

    # A head trained apart, as adapters of tied models exist in the wild (peft issue 2777): kept, not dropped.
    adapter = make_adapter(base, tmp_path / "b")
    tensors = load_file(adapter / "adapter_model.safetensors")
    rows = load_file(base / "model.safetensors")["model.embed_tokens.weight"].shape[0]
    tensors["base_model.model.lm_head.lora_A.weight"] = torch.randn(4, 64)
    tensors["base_model.model.lm_head.lora_B.weight"] = torch.randn(rows, 4)
    save_file(tensors, adapter / "adapter_model.safetensors")
    go(start("merge", model=str(adapter), base="tiny", name="apart"))
    apart = store.get("apart").path
    assert json.loads((apart / "config.json").read_text())["tie_word_embeddings"] is False
    model = plain(apart)
    assert not torch.equal(model.lm_head.weight, model.model.embed_tokens.weight)
    assert torch.equal(model.model.embed_tokens.weight, plain(base).model.embed_tokens.weight)


def test_whole_tensors_of_an_adapter_are_copied(base: Path, store: ModelStore, start: Start, tmp_path: Path) -> None:
    adapter = make_adapter(base, tmp_path / "a")
    tensors = load_file(adapter / "adapter_model.safetensors")
    tensors["base_model.model.model.norm.weight"] = torch.full((64,), 1.5)
    save_file(tensors, adapter / "adapter_model.safetensors")
    go(start("merge", model=str(adapter), base="tiny", name="m"))
    assert torch.equal(plain(store.get("m").path).model.norm.weight, torch.full((64,), 1.5))


def test_another_base_is_refused_by_digest(base: Path, store: ModelStore, start: Start, tmp_path: Path) -> None:
    other = tiny_llama.make(tmp_path / "other", seed=5)
    store.add(other, "other")
    adapter = make_adapter(base, tmp_path / "a")
    write_manifest(
        adapter, {"name": "a", "format": "lora", "parents": [{"name": "tiny", "sha256": store.get("tiny").sha256}]}
    )
    with pytest.raises(Conflict) as raised:
        go(start("merge", model=str(adapter), base="other"))
    assert raised.value.code == "other_base" and "tiny" in raised.value.message()
    assert go(start("merge", model=str(adapter)))["model"] == "a-hf"  # its own is found by itself
    with pytest.raises(Invalid) as unknown:
        go(start("merge", model=str(make_adapter(base, tmp_path / "nameless"))))
    assert unknown.value.code == "which_base"


def test_adapters_that_cannot_be_added_are_said(base: Path, store: ModelStore, start: Start, tmp_path: Path) -> None:
    def code(adapter: Path) -> str:
        with pytest.raises(Unreadable) as raised:
            go(start("merge", model=str(adapter), base="tiny", name="never"))
        assert "never" not in {ref.name for ref in store.list()} and not list(store.folder.glob(".export-*"))
        return raised.value.code

    assert code(tiny_llama.make_adapter(tmp_path / "dora", use_dora=True)) == "adapter_kind"  # without its lengths
    cut = make_adapter(base, tmp_path / "cut")
    (cut / "adapter_model.safetensors").write_bytes((cut / "adapter_model.safetensors").read_bytes()[:443])
    assert code(cut) == "adapter_broken"
    wide = make_adapter(base, tmp_path / "wide")
    tensors = load_file(wide / "adapter_model.safetensors")
    tensors = {name.replace("layers.1.", "layers.7."): tensor for name, tensor in tensors.items()}
    save_file(tensors, wide / "adapter_model.safetensors")
    assert code(wide) == "adapter_misfit"


def test_a_merge_that_disagrees_gets_no_name(
    base: Path, store: ModelStore, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = make_adapter(base, tmp_path / "a")
    plainly = merge.Adapter.delta

    def half(self: merge.Adapter, name: str) -> torch.Tensor | None:
        delta = plainly(self, name)
        return None if delta is None else delta * 0.5

    monkeypatch.setattr(merge.Adapter, "delta", half)
    with pytest.raises(MofangError) as raised:
        go(start("merge", model=str(adapter), base="tiny", name="wrong"))
    assert raised.value.code == "merge_disagrees"
    assert {ref.name for ref in store.list()} == {"tiny"} and not list(store.folder.glob(".export-*"))


def test_overwrite_replaces_only_when_the_new_one_is_whole(
    base: Path, store: ModelStore, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = make_adapter(base, tmp_path / "a")
    go(start("merge", model=str(adapter), base="tiny", name="m"))
    before, plainly = store.get("m").manifest, merge.check
    with pytest.raises(Conflict):
        go(start("merge", model=str(adapter), base="tiny", name="m"))
    monkeypatch.setattr(merge, "check", lambda *_: {"mean_kl": 9.0, "bound": 0.0, "same_top": 0.0, "n_tokens": 1})
    with pytest.raises(MofangError):
        go(start("merge", model=str(adapter), base="tiny", name="m", overwrite=True))
    assert store.get("m").manifest == before
    monkeypatch.setattr(merge, "check", plainly)
    run = start("merge", model=str(adapter), base="tiny", name="m", overwrite=True)
    merge.run(run.recipe(), run)
    assert store.get("m").manifest["made_by"]["run"] == run.id
    with pytest.raises(Conflict):  # a model that lies elsewhere is not ours to replace
        go(start("merge", model=str(adapter), base="tiny", name="tiny", overwrite=True))


def test_what_a_killed_export_left_is_swept_by_the_next(
    base: Path, store: ModelStore, start: Start, tmp_path: Path
) -> None:
    adapter = make_adapter(base, tmp_path / "a")
    run = start("merge", model=str(adapter), base="tiny", name="m")
    left = store.folder / f".export-{run.id}"
    left.mkdir()
    (left / "model.safetensors").write_bytes(b"half")
    assert {ref.name for ref in store.list()} == {"tiny"} and store.problems() == []
    go(run)
    assert not left.exists() and store.get("m").format == "hf"


def test_the_adapters_tokenizer_and_template_go_along(
    base: Path, store: ModelStore, start: Start, tmp_path: Path
) -> None:
    adapter = make_adapter(base, tmp_path / "a")
    load(base).save(adapter)
    (adapter / "chat_template.jinja").write_text("{{ 'ours' }}")
    go(start("merge", model=str(adapter), base="tiny", name="m"))
    assert load(store.get("m").path).chat_template == "{{ 'ours' }}"
