"""Loss, adapter, attention, schedule, checkpoint: each against a plain reference."""

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional
from transformers import AutoModelForCausalLM

from mofang import platform
from mofang.errors import Invalid, TooLarge, Unreadable
from mofang.train import attention, checkpoint, lora, loss, machine
from mofang.train.loop import Plan, learning_rate
from mofang.train.world import ALONE


@pytest.mark.parametrize("n", [0, 1, 255, 256, 700])
def test_the_fused_loss_is_cross_entropy_and_so_is_its_gradient(n: int) -> None:
    torch.manual_seed(n)
    hidden = torch.randn(n, 16, requires_grad=True)
    weight, targets = torch.randn(50, 16), torch.randint(0, 50, (n,))
    plain = functional.cross_entropy(hidden @ weight.t(), targets, reduction="sum")
    (wanted,) = torch.autograd.grad(plain * 0.3, hidden)
    ours = loss.head_loss(hidden, weight, targets)
    (got,) = torch.autograd.grad(ours * 0.3, hidden)
    torch.testing.assert_close(ours, plain)
    torch.testing.assert_close(got, wanted)


def test_the_loss_survives_huge_logits() -> None:
    hidden = torch.full((2, 4), 1e3, requires_grad=True)
    weight = torch.tensor([[1.0] * 4, [-1.0] * 4])
    ours = loss.head_loss(hidden, weight, torch.tensor([0, 1]))
    ours.backward()
    assert ours.item() == pytest.approx(8000) and torch.isfinite(hidden.grad).all()


def load(folder: Path):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation=attention.install())


def adapted(folder: Path, *, seed: int = 1, targets: tuple[str, ...] = ("all-linear",), dropout: float = 0.0):
    model = load(folder)
    lora.add(model, targets, rank=4, alpha=8.0, dropout=dropout, seed=seed)
    torch.manual_seed(seed)
    with torch.no_grad():
        for _, layer in lora.layers(model):
            layer.lora_B.normal_(std=0.2)
    return model


IDS = torch.arange(3, 40)[None]


def logits(model, ids=IDS, segments=None):
    segments = segments or [ids.shape[1]]
    with torch.no_grad():
        return model(
            input_ids=ids, position_ids=attention.positions(segments), segments=segments, use_cache=False
        ).logits


def test_packed_rows_are_the_examples_alone(tiny_folder: Path) -> None:
    model = adapted(tiny_folder)
    lengths = [5, 17, 1, 9]
    ids = torch.randint(0, 256, (1, sum(lengths)), generator=torch.Generator().manual_seed(0))
    together = logits(model, ids, lengths)
    for part, alone in zip(together.split(lengths, dim=1), ids.split(lengths, dim=1), strict=True):
        torch.testing.assert_close(part, logits(model, alone), atol=1e-5, rtol=1e-5)


def test_our_attention_is_transformers_own(tiny_folder: Path) -> None:
    plain = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(logits(load(tiny_folder)), plain(IDS).logits, atol=1e-5, rtol=1e-5)


def test_peft_loads_our_adapter_and_computes_the_same(tiny_folder: Path, tmp_path: Path) -> None:
    from peft import PeftModel

    ours = adapted(tiny_folder)
    lora.save(ours, ALONE.whole(lora.named(ours)), tmp_path, base=str(tiny_folder), rank=4, alpha=8.0, dropout=0.0)
    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32), tmp_path)
    assert sum("lora_" in name for name, _ in theirs.named_parameters()) == 2 * 7 * 2
    with torch.no_grad():
        torch.testing.assert_close(logits(ours), theirs(IDS).logits, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(logits(ours), logits(load(tiny_folder)), atol=1e-2)


def test_our_model_loads_what_peft_saved(tiny_folder: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from safetensors.torch import load_file

    base = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32)
    theirs = get_peft_model(base, LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", init_lora_weights=False))
    theirs.save_pretrained(tmp_path)
    ours = adapted(tiny_folder)
    lora.restore(ours, load_file(tmp_path / lora.WEIGHTS))
    with torch.no_grad():
        torch.testing.assert_close(logits(ours), theirs(IDS).logits, atol=1e-5, rtol=1e-5)


def test_only_the_adapter_is_trained_and_a_fresh_one_changes_nothing(tiny_folder: Path) -> None:
    model = load(tiny_folder)
    before = logits(model)
    names = lora.add(model, ["all-linear"], rank=2, alpha=4.0, dropout=0.0, seed=0)
    assert len(names) == 14 and not any("lm_head" in name for name in names)
    torch.testing.assert_close(logits(model), before)
    trained = {id(parameter) for parameter in lora.parameters(model)}
    assert {id(p) for p in model.parameters() if p.requires_grad} == trained


def test_targets_by_name_and_those_that_are_none(tiny_folder: Path) -> None:
    assert {name.rsplit(".", 1)[1] for name, _ in lora.layers(adapted(tiny_folder, targets=("q_proj", "v_proj")))} == {
        "q_proj",
        "v_proj",
    }
    with pytest.raises(Invalid) as raised:
        adapted(tiny_folder, targets=("q_proj", "query"))
    assert raised.value.values["target"] == "query" and "q_proj" in raised.value.values["known"]


def test_an_adapter_of_other_layers_is_refused(tiny_folder: Path) -> None:
    model, other = adapted(tiny_folder), adapted(tiny_folder, targets=("q_proj",))
    with pytest.raises(Unreadable):
        lora.restore(model, ALONE.whole(lora.named(other)))


@given(st.integers(1, 40), st.integers(1, 5), st.integers(1, 9), st.integers(0, 3))
def test_every_epoch_sees_every_example_once(n: int, epochs: int, batch: int, seed: int) -> None:
    plan = Plan(n, epochs, batch, seed)
    steps = [plan.batch(step) for step in range(plan.steps)]
    for epoch in range(epochs):
        seen = [number for step in steps[epoch * plan.steps_per_epoch :][: plan.steps_per_epoch] for number in step]
        assert sorted(seen) == list(range(n))
    assert Plan(n, epochs, batch, seed, max_steps=1).steps == 1


@settings(max_examples=50)
@given(st.integers(1, 200), st.floats(0, 1), st.sampled_from(["cosine", "linear", "constant"]))
def test_the_rate_rises_then_never_rises_again(steps: int, warm: float, scheduler: str) -> None:
    warmup = math.ceil(warm * steps)
    rates = [learning_rate(step, steps, 1e-3, warmup, scheduler) for step in range(steps)]
    assert all(0 <= rate <= 1e-3 * (1 + 1e-9) for rate in rates)
    assert rates[:warmup] == sorted(rates[:warmup])
    assert rates[warmup:] == sorted(rates[warmup:], reverse=True)


def test_checkpoints_come_back_whole_and_old_ones_go(tiny_folder: Path, tmp_path: Path) -> None:
    model = adapted(tiny_folder)
    optimizer = torch.optim.AdamW(lora.parameters(model), lr=1e-2)
    for step in range(1, 5):
        logits_sum = model(input_ids=IDS, position_ids=attention.positions([37]), segments=[37]).logits.square().mean()
        logits_sum.backward()
        optimizer.step()
        optimizer.zero_grad()
        checkpoint.save(tmp_path, checkpoint.State.of(model, optimizer), step, keep=2)
    assert [path.name for path in checkpoint.found(tmp_path)] == ["step-000003", "step-000004"]
    other = adapted(tiny_folder, seed=9)
    fresh = torch.optim.AdamW(lora.parameters(other), lr=1e-2)
    assert checkpoint.load(checkpoint.found(tmp_path)[-1], other, fresh) == 4
    assert all(torch.equal(one, two) for one, two in zip(lora.parameters(model), lora.parameters(other), strict=True))
    saved, back = (each.state_dict()["state"] for each in (optimizer, fresh))
    assert saved.keys() == back.keys()
    assert all(torch.equal(saved[number][name], back[number][name]) for number in saved for name in saved[number])
    checkpoint.check(tmp_path / "step-000004")
    file = tmp_path / "step-000004" / "optimizer.safetensors"
    for torn in (file.read_bytes()[:-4], b"x", b""):
        file.write_bytes(torn)
        for read in (lambda path: checkpoint.load(path, other, fresh), checkpoint.check):
            with pytest.raises(Unreadable) as raised:
                read(tmp_path / "step-000004")
            assert raised.value.code == "checkpoint_broken"


def test_bfloat16_only_where_the_processor_computes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    for flags, wanted in ((set(), torch.float32), ({"avx512_bf16"}, torch.bfloat16), ({"amx_bf16"}, torch.bfloat16)):
        monkeypatch.setattr(platform, "cpu_flags", lambda flags=flags: frozenset(flags))
        assert machine.dtype("auto", cpu) == wanted
    assert machine.dtype("bfloat16", cpu) == torch.bfloat16


def test_too_little_memory_is_said_with_what_to_change() -> None:
    with pytest.raises(TooLarge) as raised:
        machine.fitting_row(2048, 512, "big", torch.device("cpu"), lambda row: 10**15)
    assert "1000000.0 GB" in raised.value.message("en") and "row_tokens" in raised.value.hint("zh")


def test_rows_are_as_long_as_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "memory", lambda: SimpleNamespace(available=1000))
    cpu = torch.device("cpu")
    assert machine.fitting_row(2048, 100, "base", cpu, lambda row: row // 3) == 2048
    assert 700 < machine.fitting_row(2048, 100, "base", cpu, lambda row: row) <= 1000
    assert machine.fitting_row(2048, 900, "base", cpu, lambda row: row) == 900, "the longest example is not cut"
