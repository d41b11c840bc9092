"""A base in 4 bits: refused where it cannot be; what is learned over it is a plain adapter for the base as it is.

No GPU is needed: bitsandbytes computes NF4 on a CPU too, so the product's own rule about devices is all that is lifted.
"""

import importlib.util
from collections.abc import Callable
from typing import get_args

import bitsandbytes
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from stopping import stopped_and_resumed
from transformers import AutoModelForCausalLM

from mofang.errors import Invalid, MissingExtra
from mofang.export import merge
from mofang.models.store import ModelStore
from mofang.recipes import parse
from mofang.recipes.export import Merge
from mofang.recipes.training import Training as Recipe
from mofang.runs import Run, Runs
from mofang.settings import Settings
from mofang.strings import say
from mofang.train import QUANTIZERS, job, lora, machine
from mofang.train.methods import sft
from mofang.train.nf4 import Nf4

Training = Callable[..., Run]


@pytest.fixture
def anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Nf4, "devices", ("cuda", "cpu"))
    # Its CPU kernel for inference repacks the weights at the first evaluation, after which nothing can be trained.
    monkeypatch.setattr(bitsandbytes.nn.modules, "has_avx512bf16", lambda: False)


def test_the_recipe_names_them_all() -> None:
    assert list(get_args(Recipe.model_fields["quantize_base"].annotation)) == ["none", *QUANTIZERS.names()]


def test_it_is_refused_before_anything_is_read(training: Training, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sft.examples, "load", lambda *_: pytest.fail("read"))
    run = training(quantize_base="nf4")
    with pytest.raises(Invalid) as raised:
        sft.run(run.recipe(), run)
    assert raised.value.code == "needs_gpu"
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "bitsandbytes" else find(name))
    with pytest.raises(MissingExtra) as missing:
        sft.run(run.recipe(), run)
    assert "mofang[qlora]" in missing.value.hint()


def test_what_lies_in_4_bits_is_not_trained_whole(training: Training, anywhere: None) -> None:
    run = training(quantize_base="nf4", modules_to_save=["q_proj"])
    with pytest.raises(Invalid) as raised:
        sft.run(run.recipe(), run)
    assert raised.value.code == "whole_in_4_bits" and "q_proj" in raised.value.message()


@pytest.mark.filterwarnings("ignore:.*tie_word_embeddings.*:UserWarning")  # both names are in the file
@pytest.mark.parametrize("fields", [{}, {"modules_to_save": ["embed_tokens", "lm_head"]}], ids=["plain", "whole"])
def test_it_learns_over_4_bits_and_is_merged_into_the_base_as_it_is(
    fields: dict, training: Training, anywhere: None, home, tiny: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    prepare = job.tuning.prepare
    monkeypatch.setattr(job.tuning, "prepare", lambda model, *given: seen.append(model) or prepare(model, *given))
    run = training(quantize_base="nf4", dtype="float32", **fields)
    found = sft.run(run.recipe(), run)
    assert found["last_eval_loss"] < found["first_eval_loss"]
    assert say("train.plain_path", architecture="llama") in run.state().notes
    (model,) = seen
    packed = [part.base.weight for _, part in lora.layers(model)]
    assert len(packed) == 14 and all(weight.dtype == torch.uint8 for weight in packed), "still packed after training"
    with torch.device("meta"):
        shape = AutoModelForCausalLM.from_config(model.config)
    for parameter in shape.parameters():
        parameter.requires_grad_(False)
    assert Nf4().n_packed(shape) == 2 * sum(weight.numel() for weight in packed)
    base = ModelStore(Settings(home=home)).get(tiny)
    apart = AutoModelForCausalLM.from_pretrained(base.path, dtype=torch.float32)
    ids = torch.tensor([[5, 60, 70, 100, 9]])
    with torch.no_grad():
        near = model.eval()(input_ids=ids, position_ids=torch.arange(5)[None], segments=[5], use_cache=False).logits
        theirs = PeftModel.from_pretrained(apart, run.out).eval()(ids).logits
        merging = Runs(home).create(parse(Merge, {"model": run.id, "name": "merged"}))
        made = merge.run(merging.recipe(), merging)
        merged = AutoModelForCausalLM.from_pretrained(made["path"], dtype=torch.float32)(ids).logits
    torch.testing.assert_close(merged, theirs, atol=1e-3, rtol=1e-3)
    distance = (near - theirs).norm() / theirs.norm()
    assert 1e-3 < distance < 0.5, "near to what was trained, and not the same: the base's rounding is gone"


def test_the_estimate_is_less_by_what_the_packing_saves(
    training: Training, anywhere: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "fits", lambda shape: False)  # else the other one goes the fast path, which needs less
    needed = []
    fitting = machine.fitting_row

    def heard(row: int, least: int, base: str, on: torch.device, of_row: Callable[[int], int]) -> int:
        needed.append(of_row(row))
        return fitting(row, least, base, on, of_row)

    monkeypatch.setattr(machine, "fitting_row", heard)
    for quantize in ("none", "nf4"):
        run = training(quantize_base=quantize, dtype="float32", max_steps=1)
        sft.run(run.recipe(), run)
    n_linear = 2 * (96 * 64 * 3 + 64 * 64 * 2 + 64 * 32 * 2)
    assert needed[0] - needed[1] == pytest.approx(n_linear * (4 - 4.127 / 8), rel=1e-3)


def test_resumed_is_uninterrupted_bit_for_bit(training: Training, anywhere: None) -> None:
    whole, broken = (training(quantize_base="nf4", save_every=1) for _ in range(2))
    sft.run(whole.recipe(), whole)
    resumed = stopped_and_resumed(broken, 2, sft.run)
    assert [row.get("loss") for row in whole.metrics()] == [row.get("loss") for row in resumed.metrics()]
    wanted, got = (load_file(run.out / lora.WEIGHTS) for run in (whole, resumed))
    assert wanted.keys() == got.keys() and all(torch.equal(value, got[name]) for name, value in wanted.items())
