"""What a type costs, as it is estimated by one reading backwards, against models that are really computed."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import tiny_llama
from mofang import settings
from mofang.engine.llama import library
from mofang.export import layers
from mofang.export.mixed import sensitivity
from mofang.export.mixed.blocks import Blocks

TYPES = ("Q4_0", "Q5_1", "Q8_0")


@pytest.fixture
def own(home: Path) -> Blocks:
    return Blocks(library.load(library.find(settings.load())[0]))


def decoder(folder: Path) -> layers.Decoder:
    return layers.Decoder(folder, torch.device("cpu"), torch.float32)


@pytest.mark.parametrize("tied", [True, False])
def test_the_estimate_is_the_divergence_that_each_matrix_adds(own: Blocks, tmp_path: Path, tied: bool) -> None:
    folder = tiny_llama.make(tmp_path / "model", tied=tied)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = np.random.default_rng(0).integers(0, 250, (16, 64))
    found = sensitivity.weigh(decoder(folder), ids, TYPES, own, tmp_path / "states", 0, lambda *told: None)
    names = {each.name for each in found}
    assert {f"model.layers.{n}.{name}" for n in (0, 1) for name in tiny_llama.SHAPES} < names
    assert names >= ({"model.embed_tokens"} if tied else {"model.embed_tokens", "lm_head"})

    @torch.no_grad()
    def logprobs() -> torch.Tensor:
        return torch.log_softmax(model(torch.from_numpy(ids)).logits.flatten(0, 1), -1)

    before = logprobs()
    ratios = []
    for each in found:
        weight = model.get_submodule(each.name).weight
        exact = weight.detach().clone()
        assert each.shape == tuple(exact.shape)
        values = own.decode("Q4_0", own.encode("Q4_0", exact.numpy(), each.importance), exact.shape[1])
        weight.data.copy_(torch.from_numpy(values))
        after = logprobs()
        weight.data.copy_(exact)
        ratios.append(each.losses["Q4_0"] / float((before.exp() * (before - after)).sum(-1).mean()))
        assert each.losses["Q4_0"] > each.losses["Q5_1"] > each.losses["Q8_0"] > 0
    assert 0.7 < np.median(ratios) < 1.4 and min(ratios) > 0.3 and max(ratios) < 3


def test_importance_is_the_mean_square_of_what_comes_in(home: Path, tmp_path: Path) -> None:
    folder = tiny_llama.make(tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = np.random.default_rng(1).integers(0, 250, (9, 32))
    found = {each.name: each.importance for each in
             sensitivity.importances(decoder(folder), ids, tmp_path / "states", lambda *told: None)}  # fmt: skip
    seen = {}
    for name in found:
        model.get_submodule(name).register_forward_pre_hook(
            lambda module, given, name=name: seen.update({name: given[0].square().mean((0, 1))})
        )
    with torch.no_grad():
        model(torch.from_numpy(ids))
    assert len(found) == 14
    for name, importance in found.items():
        np.testing.assert_allclose(importance, seen[name].numpy(), rtol=1e-4)
    assert not list((tmp_path / "states").iterdir())
