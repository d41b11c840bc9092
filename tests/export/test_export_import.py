"""GGUF to a trainable folder: the very weights that llama.cpp computes with, and what was lost said truly."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Type
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import tiny_llama
from mofang.errors import Unreadable
from mofang.export import imports
from mofang.models.store import ModelStore
from mofang.runs import Run
from mofang.tokenizer import load
from tiny_llama import write_gguf

Start = Callable[..., Run]


def test_a_file_of_full_precision_comes_back_whole(base: Path, tmp_path: Path, store: ModelStore, start: Start) -> None:
    store.add(write_gguf(base, tmp_path / "plain.gguf"), "plain")
    run = start("import", model="plain", dtype="float32")
    result = imports.run(run.recipe(), run)
    made = store.get("plain-hf")
    assert result["model"] == "plain-hf" and made.format == "hf" and result["noise_percent"] == 0
    assert made.manifest["parents"][0]["sha256"] == store.get("plain").sha256 and made.manifest["runs"] == [run.id]
    before, after = load_file(base / "model.safetensors"), load_file(made.path / "model.safetensors")
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    ids = torch.arange(30)[None]
    with torch.no_grad():
        torch.testing.assert_close(
            AutoModelForCausalLM.from_pretrained(made.path)(ids).logits,
            AutoModelForCausalLM.from_pretrained(base)(ids).logits,
        )
    assert load(made.path).encode("你好<|im_end|>") == load(base).encode("你好<|im_end|>")


@pytest.mark.parametrize("kind, most", [(Type.Q8_0, 1.0), (Type.Q5_0, 5.0), (Type.Q4_0, 10.0), (Type.Q4_1, 10.0)])
def test_the_noise_that_is_said_is_the_noise_there_is(
    kind: Type, most: float, base: Path, tmp_path: Path, store: ModelStore, start: Start
) -> None:
    store.add(write_gguf(base, tmp_path / "q.gguf", kind.name), "q")
    run = start("import", model="q", dtype="float32")
    said = imports.run(run.recipe(), run)["noise_percent"]
    before, after = load_file(base / "model.safetensors"), load_file(store.get("q-hf").path / "model.safetensors")
    wide = [name for name in before if before[name].ndim > 1]
    error = sum((before[name] - after[name]).square().sum().item() for name in wide)
    true = 100 * (error / sum(before[name].square().sum().item() for name in wide)) ** 0.5
    assert said == pytest.approx(true, rel=0.2, abs=0.1) and 0 < true < most
    assert f"{said}%" in run.state().notes[-1]


@pytest.mark.parametrize("tie", [True, False])
def test_a_head_that_was_quantized_apart_is_joined_or_kept(
    tie: bool, base: Path, tmp_path: Path, store: ModelStore, start: Start
) -> None:
    store.add(write_gguf(base, tmp_path / "h.gguf", "Q4_0", head=True), "h")
    run = start("import", model="h", dtype="float32", tie_head=tie)
    assert imports.run(run.recipe(), run)["tied"] is tie
    tensors = load_file(store.get("h-hf").path / "model.safetensors")
    original = load_file(base / "model.safetensors")["model.embed_tokens.weight"]
    assert ("lm_head.weight" in tensors) is not tie
    error = (tensors["model.embed_tokens.weight"] - original).abs().max().item()
    assert (error < 0.01) is tie  # the head has eight bits, the embedding four
    assert any("同一个矩阵" in note for note in run.state().notes) is tie


def test_what_cannot_be_imported_leaves_nothing(base: Path, tmp_path: Path, store: ModelStore, start: Start) -> None:
    def code(name: str, **fields: object) -> str:
        run = start("import", model=name, **fields)
        with pytest.raises(Unreadable) as raised:
            imports.run(run.recipe(), run)
        assert {ref.name for ref in store.list() if ref.format == "hf"} == {"tiny"}
        assert not list(store.folder.glob(".export-*"))
        return raised.value.code

    store.add(write_gguf(base, tmp_path / "a.gguf", architecture="gemma"), "gemma")
    assert code("gemma") == "unknown_family"
    assert code("tiny") == "not_gguf"
    with torch.no_grad():
        folder = tiny_llama.make(tmp_path / "big")
        model = AutoModelForCausalLM.from_pretrained(folder)
        model.model.layers[0].mlp.up_proj.weight[0, 0] = 1e6
        model.save_pretrained(folder)
    store.add(write_gguf(folder, tmp_path / "big.gguf"), "big")
    assert code("big") == "beyond_float16"


def test_large_models_are_written_in_shards(
    base: Path, tmp_path: Path, store: ModelStore, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(imports, "SHARD_BYTES", 60_000)
    store.add(write_gguf(base, tmp_path / "s.gguf"), "s")
    run = start("import", model="s", dtype="float32")
    imports.run(run.recipe(), run)
    folder = store.get("s-hf").path
    assert len(list(folder.glob("model-*-of-*.safetensors"))) > 2
    ids = torch.arange(9)[None]
    with torch.no_grad():
        torch.testing.assert_close(
            AutoModelForCausalLM.from_pretrained(folder)(ids).logits,
            AutoModelForCausalLM.from_pretrained(base)(ids).logits,
        )


@pytest.mark.model
@pytest.mark.slow
def test_weights_are_those_that_transformers_reads(smollm2: Path, store: ModelStore, start: Start) -> None:
    store.add(smollm2, "smollm2")
    run = start("import", model="smollm2", dtype="float32")
    imports.run(run.recipe(), run)
    ours = load_file(store.get("smollm2-hf").path / "model.safetensors")
    theirs = AutoModelForCausalLM.from_pretrained(
        smollm2.parent, gguf_file=smollm2.name, dtype=torch.float32
    ).state_dict()
    assert ours.keys() | {"lm_head.weight"} == theirs.keys() | {"lm_head.weight"}
    assert all(np.array_equal(ours[name].numpy(), theirs[name].numpy()) for name in ours)
