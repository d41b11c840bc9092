"""GGUF to a trainable folder: the very weights that llama.cpp computes with, and what was lost said truly."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from gguf import GGMLQuantizationType as Type
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import tiny_llama
from mofang.errors import Unreadable
from mofang.export import gguf, imports
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

    store.add(write_gguf(base, tmp_path / "a.gguf", architecture="clip"), "clip")
    assert code("clip") == "unknown_family"
    store.add(write_gguf(base, tmp_path / "w.gguf", leave_out="blk.1.ffn_up.weight"), "without")
    assert code("without") == "no_tensor"
    folder = tiny_llama.make(tmp_path / "nan")
    values = load_file(folder / "model.safetensors")
    values["model.layers.0.mlp.up_proj.weight"][3, 3] = float("nan")
    save_file(values, folder / "model.safetensors", metadata={"format": "pt"})
    store.add(write_gguf(folder, tmp_path / "nan.gguf"), "nan")
    assert code("nan") == "not_finite"
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


def test_what_is_not_carried_over_is_said(base: Path, tmp_path: Path, store: ModelStore, start: Start) -> None:
    store.add(write_gguf(base, tmp_path / "a.gguf"), "a")
    run = start("import", model="a")
    result = imports.run(run.recipe(), run)
    assert "general.license" in result["keys_left"] and not any("head_count" in key for key in result["keys_left"])
    assert any("general.license" in note for note in run.state().notes)
    manifest = store.get("a-hf").manifest
    assert manifest["checks"] == {"chat_template": "same", "eos_token_id": 259, "ids": "same"}
    assert manifest["imported"]["quantization"] and manifest["tools"].keys() >= {"mofang", "gguf"}


def test_a_file_in_parts_is_read_whole(base: Path, tmp_path: Path, store: ModelStore, start: Start) -> None:
    write_gguf(base, tmp_path / "s.gguf", parts=8)
    files = sorted(tmp_path.glob("s-*-of-*.gguf"))
    assert len(files) == 3
    store.add(files[0], "s")
    run = start("import", model="s", dtype="float32")
    imports.run(run.recipe(), run)
    before, after = load_file(base / "model.safetensors"), load_file(store.get("s-hf").path / "model.safetensors")
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    files[1].unlink()
    with pytest.raises(Unreadable) as raised:
        imports.run((other := start("import", model="s", name="o")).recipe(), other)
    assert raised.value.code == "part_missing" and files[1].name in raised.value.message()


@pytest.mark.parametrize("cut", [100, 100_000])
def test_a_file_that_is_cut_off_is_refused(
    cut: int, base: Path, tmp_path: Path, store: ModelStore, start: Start
) -> None:
    file = write_gguf(base, tmp_path / "c.gguf")
    store.add(file, "c")
    file.write_bytes(file.read_bytes()[:-cut])
    run = start("import", model="c")
    with pytest.raises(Unreadable) as raised:
        imports.run(run.recipe(), run)
    assert raised.value.code in ("gguf_truncated", "gguf_broken") and str(file) in raised.value.message()


def test_llama_3s_rotary_rule_is_found_in_its_factors(tmp_path: Path) -> None:
    """The converter keeps the factors, not the rule: against what transformers computes from the rule."""
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rule = {"rope_type": "llama3", "factor": 8.0, **imports.LLAMA3}
    config = {"hidden_size": 512, "num_attention_heads": 4, "rope_theta": 500000.0}
    theirs = LlamaConfig(**config, rope_scaling=dict(rule))
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](theirs, "cpu")
    plain = 1.0 / 500000.0 ** (torch.arange(0, 128, 2) / 128)
    factors = (plain / scaled).numpy()
    imports._rope(tmp_path, factors, config)
    assert config["rope_scaling"] == rule
    with pytest.raises(Unreadable) as raised:
        imports._rope(tmp_path, factors * 1.1, config)
    assert raised.value.code == "unknown_tensor"
    imports._rope(tmp_path, np.ones(64, np.float32), fresh := dict(config, rope_scaling=None))
    assert fresh["rope_scaling"] is None


@pytest.mark.slow
@pytest.mark.parametrize("family", ["Starcoder2", "StableLm", "Bloom"])
def test_other_families_come_back_through_transformers(
    family: str, converter: Path, tmp_path: Path, store: ModelStore, start: Start
) -> None:
    """From a folder by llama.cpp's converter to a GGUF, and back: the same logits to the bit."""
    cut = tiny_llama.tokenizer()
    shape = {"vocab_size": cut.n_vocab, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    more = {"intermediate_size": 96, "num_key_value_heads": 2, "max_position_embeddings": 128}
    kind = getattr(transformers, f"{family}Config")
    torch.manual_seed(0)
    model = getattr(transformers, f"{family}ForCausalLM")(
        kind(**shape, **({} if family == "Bloom" else more), bos_token_id=1, eos_token_id=cut.eos_id)
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    folder = tmp_path / "other"
    model.save_pretrained(folder)
    cut.save(folder)
    store.add(folder, "other")
    exporting = start("gguf", model="other", type="f32", name="file")
    gguf.run(exporting.recipe(), exporting)
    run = start("import", model="file", dtype="float32", name="back")
    result = imports.run(run.recipe(), run)
    assert result["noise_percent"] == 0 and any("transformers" in note for note in run.state().notes)
    ids = torch.arange(2, 60)[None]
    with torch.no_grad():
        wanted = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(ids).logits
        got = AutoModelForCausalLM.from_pretrained(store.get("back").path, dtype=torch.float32)(ids).logits
    assert torch.equal(wanted, got)


# ---- pickles ----


def pickled(base: Path, target: Path, parts: int = 1) -> Path:
    """The tiny model as it was kept before safetensors: a tied head under both names."""
    target.mkdir()
    for file in base.iterdir():
        if file.suffix != ".safetensors":
            shutil.copy(file, target / file.name)
    values = load_file(base / "model.safetensors")
    values["lm_head.weight"] = values["model.embed_tokens.weight"]
    names = list(values)
    places = {}
    for part in range(parts):
        file = "pytorch_model.bin" if parts == 1 else f"pytorch_model-{part + 1:05d}-of-{parts:05d}.bin"
        here = names[part::parts]
        if "model.embed_tokens.weight" in here or "lm_head.weight" in here:
            here = [name for name in here if name != "lm_head.weight"]
            here += ["lm_head.weight"] if "model.embed_tokens.weight" in here else []
        torch.save({name: values[name] for name in here}, target / file)
        places |= dict.fromkeys(here, file)
    if parts > 1:
        (target / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": places}))
    return target


@pytest.mark.parametrize("parts", [1, 3])
def test_pickled_weights_are_read_when_asked_for(
    parts: int, base: Path, tmp_path: Path, store: ModelStore, start: Start
) -> None:
    folder = pickled(base, tmp_path / "old", parts)
    for refused in (
        lambda: store.add(folder, "old"),
        lambda: imports.run((r := start("import", model=str(folder))).recipe(), r),
    ):
        with pytest.raises(Unreadable) as raised:
            refused()
        assert raised.value.code == "pickled" and "--pickle" in raised.value.hint()
    run = start("import", model=str(folder), pickle=True, name="new")
    imports.run(run.recipe(), run)
    made = store.get("new")
    before = load_file(base / "model.safetensors")
    after = {name: value for file in made.path.glob("*.safetensors") for name, value in load_file(file).items()}
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert made.kind == "chat" and made.manifest["parents"][0]["format"] == "pickle"
    with torch.no_grad():
        AutoModelForCausalLM.from_pretrained(made.path)(torch.arange(9)[None])


class Evil:
    """What a pickle can do."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple:
        return (Path.touch, (self.mark,))


def test_a_pickle_runs_nothing(base: Path, tmp_path: Path, store: ModelStore, start: Start) -> None:
    folder, mark = pickled(base, tmp_path / "old"), tmp_path / "was-run"
    for harm in (
        lambda p: torch.save({"a": Evil(mark)}, p),
        lambda p: p.write_bytes(b"PK\x03\x04 no"),
        lambda p: torch.save([1], p),
    ):
        harm(folder / "pytorch_model.bin")
        run = start("import", model=str(folder), pickle=True, name="new")
        with pytest.raises(Unreadable) as raised:
            imports.run(run.recipe(), run)
        assert raised.value.code == "pickle_refused" and not mark.exists()
    assert {ref.name for ref in store.list()} == {"tiny"}


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
