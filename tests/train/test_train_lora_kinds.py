"""rsLoRA, DoRA and modules trained whole: what we write peft loads and computes, and the other way round."""

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import tiny_llama
from mofang.recipes import parse
from mofang.recipes.sft import Sft
from mofang.train import attention, lora, tuning
from mofang.train.world import ALONE

IDS = torch.arange(3, 40)[None]
KINDS = {
    "rslora": {"lora_rslora": True},
    "dora": {"lora_dora": True},
    "both": {"lora_rslora": True, "lora_dora": True},
    "whole": {"modules_to_save": ["embed_tokens", "lm_head"]},
    "head": {"modules_to_save": ["lm_head"], "lora_targets": ["q_proj", "v_proj"]},
}
WARNING = "ignore:.*tie_word_embeddings.*:UserWarning"


def base(folder: Path, **how):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **how)


def ours(folder: Path, **fields):
    """A model of ours as if it had been trained, and its recipe."""
    recipe = parse(Sft, {"base": "tiny", "data": ["x"], "lora_rank": 4, "lora_alpha": 8, **fields})
    model = base(folder, attn_implementation=attention.install())
    trained = tuning.prepare(model, recipe, torch.float32)
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in trained:
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval(), recipe


def save(model, recipe: Sft, folder: Path) -> None:
    lora.save(
        model, ALONE.whole(lora.named(model)), folder, base="tiny", rank=recipe.lora_rank, alpha=recipe.lora_alpha, dropout=recipe.lora_dropout,
        rslora=recipe.lora_rslora, dora=recipe.lora_dora,
    )  # fmt: skip


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS, position_ids=attention.positions([37]), segments=[37], use_cache=False).logits


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tiny_llama.make(tmp_path / "tiny", tied=request.param)


@pytest.mark.filterwarnings(WARNING)
@pytest.mark.parametrize("kind", KINDS)
def test_peft_loads_what_we_write(kind: str, folder: Path, tmp_path: Path) -> None:
    model, recipe = ours(folder, **KINDS[kind])
    save(model, recipe, tmp_path)
    theirs = PeftModel.from_pretrained(base(folder), tmp_path).eval()
    with torch.no_grad():
        torch.testing.assert_close(logits(model), theirs(IDS).logits, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(logits(model), base(folder)(IDS).logits, atol=1e-2)


@pytest.mark.filterwarnings(WARNING)
@pytest.mark.parametrize("kind", KINDS)
def test_we_load_what_peft_writes(kind: str, tmp_path: Path) -> None:
    folder = tiny_llama.make(tmp_path / "tiny", tied=False)
    model, recipe = ours(folder, **KINDS[kind])
    targets = "all-linear" if recipe.lora_targets == ["all-linear"] else recipe.lora_targets
    config = LoraConfig(
        r=4, lora_alpha=8, target_modules=targets, use_rslora=recipe.lora_rslora, use_dora=recipe.lora_dora,
        modules_to_save=recipe.modules_to_save or None, init_lora_weights=False,
    )  # fmt: skip
    theirs = get_peft_model(base(folder), config).eval()
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "modules_to_save" in name or "magnitude" in name:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    theirs.save_pretrained(tmp_path / "peft")
    lora.restore(model, load_file(tmp_path / "peft" / lora.WEIGHTS))
    with torch.no_grad():
        torch.testing.assert_close(logits(model), theirs(IDS).logits, atol=1e-5, rtol=1e-5)


def test_a_file_of_ours_comes_back_into_a_tied_model(tmp_path: Path) -> None:
    folder = tiny_llama.make(tmp_path / "tiny")
    model, recipe = ours(folder, **KINDS["whole"])
    save(model, recipe, tmp_path)
    tensors = load_file(tmp_path / lora.WEIGHTS)
    embedding, head = (tensors[lora.PREFIX + name] for name in ("model.embed_tokens.weight", "lm_head.weight"))
    assert torch.equal(embedding, head)
    again, _ = ours(folder, **KINDS["whole"], seed=9)
    lora.restore(again, tensors)
    torch.testing.assert_close(logits(again), logits(model))


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_dora_learns_as_peft_does(dropout: float, tmp_path: Path) -> None:
    """Outputs and gradients of one layer with the same weights and the same dropout."""
    torch.manual_seed(0)
    plain = torch.nn.Linear(12, 8)
    net = torch.nn.Sequential(plain)
    net.config = None
    theirs = get_peft_model(
        net, LoraConfig(r=2, lora_alpha=6, target_modules=["0"], use_dora=True, lora_dropout=dropout)
    )
    mine = lora.DoraLinear(
        plain if not hasattr(plain, "base_layer") else plain.base_layer, 2, 3.0, dropout, torch.Generator()
    )
    layer = theirs.base_model.model[0]
    with torch.no_grad():
        layer.lora_B["default"].weight.normal_()
        mine.lora_A.copy_(layer.lora_A["default"].weight)
        mine.lora_B.copy_(layer.lora_B["default"].weight)
        layer.lora_magnitude_vector["default"].weight.add_(0.3)
        mine.lora_magnitude_vector.copy_(layer.lora_magnitude_vector["default"].weight)
    x = torch.randn(5, 12)
    seen = []
    for module in (theirs, mine):
        torch.manual_seed(7)
        module.train()
        out = module(x)
        out.square().sum().backward()
        seen.append(out.detach())
    torch.testing.assert_close(seen[0], seen[1])
    for got, wanted in (
        (mine.lora_A, layer.lora_A["default"].weight),
        (mine.lora_B, layer.lora_B["default"].weight),
        (mine.lora_magnitude_vector, layer.lora_magnitude_vector["default"].weight),
    ):
        torch.testing.assert_close(got.grad, wanted.grad)
