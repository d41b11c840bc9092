"""`mofang export gptq` on a tiny model, and its way to a GGUF of the same values that answers the same."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf as gguf_package
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import tiny_llama
from mofang.engine import ENGINES
from mofang.errors import Invalid, Unreadable
from mofang.export import calibration, gguf, imports, layers, load
from mofang.export.gptq import format, worker
from mofang.messages import Message, Sampling
from mofang.models.formats import gguf as headers
from mofang.models.store import ModelStore
from mofang.runs import Run, Stopped
from mofang.settings import Settings
from mofang.tokenizer import load as load_tokenizer

Start = Callable[..., Run]
FEW = {"samples": 6, "length": 48, "group_size": 32}
HEADS = {"q_proj": 4, "k_proj": 2}


@pytest.fixture
def text(tmp_path: Path) -> str:
    path = tmp_path / "texts.jsonl"
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"第{n}个问题？"},
                {"role": "assistant", "content": "回答在这里，" * 9},
            ]
        }
        for n in range(9)
    ]
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return str(path)


def quantize(start: Start, text: str, **fields: Any) -> tuple[Run, dict[str, Any]]:
    run = start("gptq", model="tiny", calibration=text, **{**FEW, **fields})
    return run, worker.run(run.recipe(), run)


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: value for file in folder.glob("*.safetensors") for name, value in load_file(file).items()}


def independent(folder: Path, name: str) -> np.ndarray:
    """A linear layer's weights by the format's specification, one weight at a time. (n_out, n_in) float64."""
    config = json.loads((folder / "quantize_config.json").read_text())
    bits, parts = config["bits"], {part: tensors(folder)[f"{name}.{part}"] for part in format.PARTS}

    def code(words: torch.Tensor, n: int) -> int:
        stream = sum((int(word) & 0xFFFFFFFF) << (32 * at) for at, word in enumerate(words))
        return stream >> (n * bits) & (2**bits - 1)

    n_in, n_out = len(parts["g_idx"]), parts["qweight"].shape[1]
    weight = np.empty((n_out, n_in))
    for o in range(n_out):
        for i in range(n_in):
            group = int(parts["g_idx"][i])
            zero = code(parts["qzeros"][group], o) + 1
            weight[o, i] = float(parts["scales"][group, o]) * (code(parts["qweight"][:, o], i) - zero)
    return weight


def test_a_model_is_quantized_and_says_how(base: Path, store: ModelStore, start: Start, text: str) -> None:
    run, result = quantize(start, text)
    made = store.get("tiny-gptq-4bit")
    assert result["model"] == made.name and made.format == "gptq" and not made.runnable and made.kind == "chat"
    said = json.loads((made.path / "config.json").read_text())["quantization_config"]
    assert said == json.loads((made.path / "quantize_config.json").read_text())
    assert (said["bits"], said["group_size"], said["desc_act"], said["sym"]) == (4, 32, False, True)
    manifest = made.manifest
    assert [parent["name"] for parent in manifest["parents"]] == ["tiny"] and manifest["runs"] == [run.id]
    assert manifest["calibration"]["n_sequences"] == 6 and len(manifest["calibration"]["sha256"]) == 64
    errors = manifest["relative_errors"]
    assert len(errors) == 14 and all(0 < error < 0.1 for error in errors.values())
    assert load_tokenizer(made.path).chat_template == tiny_llama.CHATML
    assert not run.checkpoints.exists() and not list(store.folder.glob(".export-*"))
    found, source = tensors(made.path), tensors(base)
    for name in ("model.embed_tokens.weight", "model.norm.weight", "model.layers.1.input_layernorm.weight"):
        assert torch.equal(found[name], source[name]), "what is not quantized stays as it is"
    assert {name for name in found if "q_proj" in name and ".0." in name} == {
        f"model.layers.0.self_attn.q_proj.{part}" for part in format.PARTS
    }


@pytest.mark.parametrize(
    "fields",
    [
        {"bits": 3, "sym": False},
        {"bits": 4, "order": "activation"},
        {"bits": 8, "group_size": -1},
        {"bits": 2, "mse": True, "true_sequential": False},
    ],
    ids=lambda fields: f"{fields['bits']} bits",
)
def test_others_read_from_the_specification_what_we_read(
    fields: dict, base: Path, store: ModelStore, start: Start, text: str
) -> None:
    quantize(start, text, name="made", **fields)
    folder = store.get("made").path
    config = format.config(folder)
    ours = {name: layer.weight(config) for name, layer in format.layers(folder)}
    for name in ("model.layers.0.self_attn.k_proj", "model.layers.1.mlp.down_proj"):
        assert np.array_equal(ours[name].astype(np.float64), independent(folder, name))
    model = load.causal_model(store.get("made"))
    assert torch.equal(
        model.model.layers[1].mlp.down_proj.weight, torch.from_numpy(ours["model.layers.1.mlp.down_proj"])
    )


def test_its_answers_are_nearer_than_rounded_ones(base: Path, store: ModelStore, start: Start, text: str) -> None:
    """KL divergence over other text of the same kind, 3 bits: against round-to-nearest on the same grids."""
    from mofang.export.gptq import solve

    quantize(start, text, bits=3, name="made")
    tokenizer = load_tokenizer(base)
    ids = torch.tensor(tokenizer.encode("第31个问题？回答在这里，回答在这里，回答"))[None]
    whole = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    rounded = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    for layer in rounded.model.layers:
        for name, module in layers.linears(layer):
            layers.replace(layer, name, solve.nearest(module.weight.data, solve.Scheme(3, 32)).weight())

    def kl(model: torch.nn.Module) -> float:
        with torch.no_grad():
            wanted, got = (torch.log_softmax(each(ids).logits[0].float(), -1) for each in (whole, model))
        return float((wanted.exp() * (wanted - got)).sum(-1).mean())

    assert kl(load.causal_model(store.get("made"))) < 0.7 * kl(rounded)


def test_a_run_that_was_stopped_ends_with_the_same_bits(
    base: Path, store: ModelStore, start: Start, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    quantize(start, text, name="whole")
    run = start("gptq", model="tiny", calibration=text, name="resumed", **FEW)
    real = layers.Decoder.load

    def load_once(decoder: layers.Decoder, index: int) -> torch.nn.Module:
        if index == 1:
            (run.folder / "stop").touch()
        return real(decoder, index)

    with monkeypatch.context() as patch:
        patch.setattr(layers.Decoder, "load", load_once)
        with pytest.raises(Stopped):
            worker.run(run.recipe(), run)
    assert {path.name for path in run.checkpoints.iterdir()} >= {"layer-00000.safetensors", "states-00001.bin"}
    assert [ref.name for ref in store.list()] == ["tiny", "whole"]
    (run.folder / "stop").unlink()
    loaded: list[int] = []
    monkeypatch.setattr(layers.Decoder, "load", lambda decoder, index: loaded.append(index) or real(decoder, index))
    worker.run(run.recipe(), run)
    assert loaded == [1]
    one, other = tensors(store.get("whole").path), tensors(store.get("resumed").path)
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    assert store.get("whole").manifest["relative_errors"] == store.get("resumed").manifest["relative_errors"]


def test_a_changed_source_is_begun_anew(base: Path, store: ModelStore, start: Start, text: str) -> None:
    run = start("gptq", model="tiny", calibration=text, **FEW)
    worker._begin(run.checkpoints, {"source": "another", "calibration": "x"})
    (run.checkpoints / "layer-00000.safetensors").write_bytes(b"")
    (run.checkpoints / "states-00001.bin").write_bytes(b"")
    worker.run(run.recipe(), run)
    assert store.get("tiny-gptq-4bit").manifest["relative_errors"]


def test_a_damaged_model_is_refused(base: Path, store: ModelStore, start: Start, text: str) -> None:
    file = base / "model.safetensors"
    values = load_file(file)
    values["model.layers.1.mlp.up_proj.weight"][3, 3] = float("nan")
    save_file(values, file, metadata={"format": "pt"})
    with pytest.raises(Unreadable) as raised:
        quantize(start, text)
    assert raised.value.code == "not_finite" and "layers.1.mlp.up_proj" in raised.value.message()
    assert [ref.name for ref in store.list()] == ["tiny"]


def test_what_cannot_be_quantized_is_said(store: ModelStore, start: Start, text: str, tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    folder = tmp_path / "other"
    GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=300)).save_pretrained(folder)
    tiny_llama.tokenizer().save(folder)
    store.add(folder, "tiny")
    with pytest.raises(Unreadable) as raised:
        quantize(start, text)
    assert raised.value.code == "gptq_family" and "c_attn" in raised.value.message()
    for fields in ({"bits": 5}, {"group_size": 48}):
        with pytest.raises(Invalid) as bad:
            start("gptq", model="tiny", **fields)
        assert str(next(iter(fields.values()))) in bad.value.message()


def test_calibration_that_is_short_or_of_another_language_is_warned_of(
    base: Path, start: Start, text: str, tmp_path: Path
) -> None:
    english = tmp_path / "en.txt"
    english.write_text("The quick brown fox jumps over the lazy dog. " * 8)
    run, _ = quantize(start, str(english), samples=50)
    notes = "\n".join(run.state().notes)
    assert "几乎没有中文（0%）" in notes and "想要的是 2,400 个" in notes
    run, _ = quantize(start, text, name="zh")
    assert "几乎没有中文" not in "\n".join(run.state().notes)
    english.write_text("no")
    with pytest.raises(Unreadable) as raised:
        quantize(start, str(english), name="empty")
    assert raised.value.code == "calibration_empty"


def test_calibration_is_rendered_mixed_and_repeatable(base: Path, text: str) -> None:
    tokenizer = load_tokenizer(base)
    one = calibration.read([text], tokenizer, samples=4, length=64, seed=0)
    assert one.ids.shape == (4, 64) and "<|im_start|>user\n第" in tokenizer.decode(one.ids.ravel().tolist())
    again, other = (calibration.read([text], tokenizer, samples=4, length=64, seed=seed) for seed in (0, 1))
    assert one.digest == again.digest != other.digest and 0.4 < one.han < 1, "the template's letters count"
    ours = calibration.read([], tokenizer, samples=8, length=512, seed=0)
    assert ours.ids.shape == (8, 512) and 0.1 < ours.han < 0.9, "both languages"


def test_a_ragged_last_group_is_said_and_read(base: Path, store: ModelStore, start: Start, text: str) -> None:
    run, _ = quantize(start, text, group_size=64, name="ragged")  # down_proj has 96 inputs
    assert "down_proj" in "\n".join(run.state().notes)
    folder = store.get("ragged").path
    name = "model.layers.0.mlp.down_proj"
    ours = dict(format.layers(folder))[name].weight(format.config(folder))
    assert np.array_equal(ours.astype(np.float64), independent(folder, name))


# ---- to GGUF ----


def from_gguf(file: Path, name: str) -> np.ndarray:
    """A tensor of a GGUF as gguf's own package reads it, rows in Hugging Face's order."""
    found = next(tensor for tensor in gguf_package.GGUFReader(file).tensors if tensor.name == name)
    values = gguf_package.quants.dequantize(found.data, found.tensor_type)
    heads = {"attn_q": HEADS["q_proj"], "attn_k": HEADS["k_proj"]}.get(name.split(".")[2]) if "blk" in name else None
    return imports._unpermuted(values, heads) if heads else values


@pytest.mark.slow
@pytest.mark.parametrize(
    "fields, kind",
    [
        ({"bits": 4}, "Q4_0"),
        ({"bits": 3, "sym": False}, "Q4_0"),
        ({"bits": 4, "sym": False}, "Q5_0"),
        ({"bits": 8}, "Q8_0"),
        ({"bits": 2, "group_size": 64}, "Q4_0"),
    ],
    ids=["4", "3 asymmetric", "4 asymmetric", "8", "2"],
)
def test_a_gguf_has_every_value(
    fields: dict, kind: str, base: Path, store: ModelStore, start: Start, text: str, converter: Path
) -> None:
    quantize(start, text, name="made", **fields)
    run = start("gguf", model="made")
    result = gguf.run(run.recipe(), run)
    made, folder = store.get(result["model"]), store.get("made").path
    assert made.name == f"made-{kind.lower()}" and made.manifest["kept"]["weights"] == 61_440
    config = format.config(folder)
    names_there = {hf: short for short, hf in imports._BLOCK.items()}
    for name, layer in format.layers(folder):
        _, _, number, inner = name.split(".", 3)
        there = from_gguf(made.path, f"blk.{number}.{names_there[inner]}.weight")
        assert np.array_equal(there, layer.weight(config)), name
    types = {tensor.name: tensor.type for tensor in headers.read(made.path).tensors}
    assert types["blk.0.ffn_down.weight"] in (kind, "Q4_0")
    source = tensors(base)["model.embed_tokens.weight"].numpy()
    assert np.array_equal(from_gguf(made.path, "token_embd.weight"), source), "float32 stays float32"
    smaller = start("gguf", model="made", type="q8_0", name="smaller")
    gguf.run(smaller.recipe(), smaller)
    assert headers.read(store.get("smaller").path).tensors
    types = {tensor.name: tensor.type for tensor in headers.read(store.get("smaller").path).tensors}
    assert types["token_embd.weight"] == "Q8_0" and types["blk.0.attn_v.weight"] in (kind, "Q4_0")


def test_what_a_gguf_cannot_hold_is_said_before_anything_is_written(
    base: Path, store: ModelStore, start: Start, text: str
) -> None:
    quantize(start, text, name="scattered", order="activation")
    quantize(start, text, name="narrow", group_size=16)
    for name in ("scattered", "narrow"):
        run = start("gguf", model=name)
        with pytest.raises(Unreadable) as raised:
            gguf.run(run.recipe(), run)
        assert raised.value.code == "gptq_not_lossless" and "不同的尺度" in raised.value.message()
    run = start("gguf", model="narrow", type="q4_k_m")
    with pytest.raises(Invalid) as bad:
        gguf.run(run.recipe(), run)
    assert bad.value.code == "gptq_no_requantize"
    assert {ref.name for ref in store.list()} == {"tiny", "scattered", "narrow"}


@pytest.mark.model
@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_real_model_answers_the_same_from_both(
    smollm2: Path, converter: Path, store: ModelStore, home: Path, start: Start, tmp_path: Path
) -> None:
    """The engine on the GGUF against transformers on the GPTQ folder: the same tokens, in nearly the same numbers."""
    store.add(smollm2, "smollm2")
    importing = start("import", model="smollm2")
    imports.run(importing.recipe(), importing)
    run = start("gptq", model="smollm2-hf", group_size=64, samples=4, length=128, name="made")
    worker.run(run.recipe(), run)
    exporting = start("gguf", model="made")
    gguf.run(exporting.recipe(), exporting)
    checking = start("check", model="made-q4_0", n_tokens=48, answers=False, speed=False)
    from mofang.export import check

    found = check.run(checking.recipe(), checking)
    assert found["reference"]["name"] == "made" and found["same_ids"] and found["same_template"]
    # llama.cpp computes with activations in 8 bits: 43 of 46 tokens here, where transformers' two likeliest lie close.
    assert found["same_top"] > 0.85 and found["mean_kl"] < 0.03, found

    model, tokenizer = load.causal_model(store.get("made")), load_tokenizer(store.get("made").path)
    talk = [Message("user", "What is 2 + 3?")]
    prompt = torch.tensor(tokenizer.encode(tokenizer.render(talk, add_generation_prompt=True)))[None]

    async def ours() -> str:
        engine = await ENGINES.get("llama")(
            store.get("made-q4_0"), Settings(home=home, n_ctx=512, n_slots=1), progress=lambda _: None
        )
        try:
            pieces = engine.chat(talk, Sampling(temperature=0.0, max_tokens=8))
            return "".join([delta.content async for delta in pieces])
        finally:
            await engine.close()

    answer = torch.tensor(tokenizer.encode(asyncio.run(ours())))[None]
    with torch.no_grad():
        logits = model(torch.cat([prompt, answer], dim=1)).logits[0, prompt.shape[1] - 1 : -1].float()
    # Greedy texts part where two tokens lie close; what the engine says must be (nearly) the likeliest here too.
    behind = logits.amax(-1) - logits.gather(-1, answer[0, :, None])[:, 0]
    assert answer.shape[1] >= 3 and float(behind.max()) < 1.0, (tokenizer.decode(answer[0].tolist()), behind)


def test_outputs_that_are_kept_change_nothing(
    base: Path, store: ModelStore, start: Start, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once attention is quantized its outputs are computed a single time; computed each time they are the same."""
    monkeypatch.setattr(layers, "BATCH_TOKENS", 2 * FEW["length"])
    attended: dict[str, int] = {}

    def count(name: str) -> None:
        from transformers.models.llama import modeling_llama

        real = modeling_llama.LlamaAttention.forward

        def counted(self: Any, *given: Any, **more: Any) -> Any:
            attended[name] = attended.get(name, 0) + 1
            return real(self, *given, **more)

        with monkeypatch.context() as patch:
            patch.setattr(modeling_llama.LlamaAttention, "forward", counted)
            quantize(start, text, name=name)

    count("kept")
    monkeypatch.setattr(layers.Decoder, "keep_outputs", lambda self, index, final: None)
    count("computed")
    assert attended["kept"] < attended["computed"]
    one, other = tensors(store.get("kept").path), tensors(store.get("computed").path)
    assert all(torch.equal(one[name], other[name]) for name in one)
