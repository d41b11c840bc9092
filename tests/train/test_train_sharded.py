"""Weights, gradients and optimizer state in parts (FSDP2): what is learned is what one process learns, and each process
holds its part alone."""

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from launching import alike, measured, same_losses, through, until
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, Gemma2Config

import tiny_llama
from mofang.errors import Invalid
from mofang.models.store import ModelStore
from mofang.recipes import launcher_of, parse, recipe_class
from mofang.recipes.launchers import Several
from mofang.runs import Run, Runs
from mofang.settings import Settings
from mofang.train import STRATEGIES, machine, sharded

Make = Callable[..., Run]

PARTS = {"launcher": "torchrun", "processes": 2, "strategy": "fsdp"}
SCRATCH = {
    "tokenizer": "tiny", "hidden_size": 32, "intermediate_size": 48, "n_layers": 3, "n_heads": 4, "n_kv_heads": 2,
}  # fmt: skip
WAYS: dict[str, tuple[str, dict[str, Any]]] = {
    "sft lora": ("sft", {"sample_every": 2, "batch_size": 4}),  # 9 examples: the last step has one, a process none
    "sft layers": ("sft", {"tune": "layers", "layers": [-1]}),
    "sft apart": ("sft", {"base": "gemma2"}),
    "dpo": ("dpo", {}),
    "dpo full": ("dpo", {"tune": "full"}),
    "orpo dora": ("orpo", {"lora_dora": True, "lora_rank": 1}),  # less rows than processes
    "pretrain lora": ("pretrain", {"tune": "lora", "modules_to_save": ["embed_tokens", "lm_head"]}),
    "pretrain new": ("pretrain", {**SCRATCH, "load_best_model_at_end": True}),
    "pretrain full": ("pretrain", {"row_tokens": 64}),
}


@pytest.fixture
def make(home: Path, tiny: str, tmp_path: Path) -> Make:
    """make(kind, field=value…) → a run of a small recipe, not started."""
    rows = {
        "sft": [{"instruction": f"问 {n}", "output": f"答案 {n * n}。" * (1 + n % 3)} for n in range(9)],
        "dpo": [{"prompt": f"问 {n}", "chosen": f"好 {n}" * (1 + n % 2), "rejected": f"坏 {n * n}"} for n in range(7)],
        "pretrain": [{"text": f"第 {n} 天，天气很好，我们去公园。" * 3} for n in range(7)],
    }
    rows["orpo"] = rows["dpo"]
    for kind, each in rows.items():
        (tmp_path / f"{kind}.jsonl").write_text("\n".join(map(json.dumps, each)), encoding="utf-8")

    def make(kind: str, **fields: Any) -> Run:
        small = {
            "data": [str(tmp_path / f"{kind}.jsonl")], "epochs": 2, "batch_size": 3, "lora_rank": 4,
            "learning_rate": 1e-3, "eval_fraction": 0.3, "dtype": "float32", "save_every": 2, "max_grad_norm": 0.5,
        }  # fmt: skip
        base = {} if "tokenizer" in fields else {"base": tiny}
        if kind == "pretrain":
            small["max_length"] = 64
        return Runs(home).create(parse(recipe_class(kind), {**base, **small, **fields}))

    return make


@pytest.fixture
def gemma2(home: Path, tmp_path: Path) -> None:
    """A model whose examples go through it one by one: its attention has a cap."""
    folder = tmp_path / "gemma2"
    cut = tiny_llama.tokenizer()
    config = Gemma2Config(
        vocab_size=cut.n_vocab, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, pad_token_id=0, max_position_embeddings=512,
    )  # fmt: skip
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    cut.save(folder)
    ModelStore(Settings(home=home)).add(folder, "gemma2")


def alone(run: Run) -> dict[str, Any]:
    module, function = run.recipe().worker.split(":")
    made: dict[str, Any] = getattr(importlib.import_module(module), function)(run.recipe(), run)
    return made


def by_two(runs: list[Run], strategy: str) -> list[dict[str, Any]]:
    """All of them, in order, by the same two processes."""
    told = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(Path(__file__).with_name("in_two.py")), strategy, *(str(run.folder) for run in runs)]
    both = [
        subprocess.Popen(command, env={**os.environ, **told, "RANK": rank, "LOCAL_RANK": rank}, stderr=subprocess.PIPE)
        for rank in "01"
    ]
    try:
        said = [each.communicate(timeout=280)[1].decode() for each in both]
    finally:
        for each in both:
            each.kill()
    assert not any(each.returncode for each in both), said
    return [json.loads((run.folder / "two.json").read_text()) for run in runs]


def file_of(run: Run, made: dict[str, Any]) -> Path:
    return Path(made["path"]) / "model.safetensors" if "path" in made else run.out / "adapter_model.safetensors"


@pytest.mark.slow
@pytest.mark.usefixtures("gemma2")
def test_every_method_learns_in_parts_what_one_process_learns(make: Make) -> None:
    """And each process holds half of the bytes of all weights and of the optimizer's state, measured in the tensors."""
    ones, twos = ([make(kind, **fields) for kind, fields in WAYS.values()] for _ in range(2))
    found = by_two(twos, "fsdp")
    for way, one, two, made in zip(WAYS, ones, twos, found, strict=True):
        wanted = alone(one)
        same_losses(one, two)
        alike(file_of(one, wanted), file_of(two, made))
        assert one.samples() == two.samples() and bool(one.samples()) == (way == "sft lora")
        for name in ("margin", "eval_accuracy", "log_odds_ratio"):
            assert measured(one, name) == pytest.approx(measured(two, name), rel=1e-3, abs=1e-5)
        assert made.get("best_step") == wanted.get("best_step")
        assert any("FSDP2" in note for note in two.state().notes)
        (whole,) = wanted["held_bytes"]
        assert len(made["held_bytes"]) == 2
        assert all(each == pytest.approx(whole / 2, rel=0.05) for each in made["held_bytes"])
        if way == "pretrain new":  # a weight and Adam's two moments, four bytes each
            trained = sum(tensor.numel() for tensor in load_file(file_of(two, made)).values())
            assert whole == pytest.approx(12 * trained, rel=0.01)
    apart = list(WAYS).index("sft apart")
    assert any("逐条计算" in note for note in twos[apart].state().notes)


@pytest.mark.slow
def test_a_run_in_parts_is_stopped_and_goes_on_with_one_process(make: Make) -> None:
    """A checkpoint is whole, so that it does not matter how many wrote it."""
    fields = {"epochs": 30, "save_every": 50, "eval_fraction": 0, "tune": "full", "learning_rate": 1e-4}
    whole, moved = make("sft", **fields, name="whole"), make("sft", **fields, name="moved")
    wanted = alone(whole)
    moved.start(launcher_of(PARTS))
    until(lambda: len(measured(moved, "loss")) >= 3, moved)
    assert moved.stop().status == "stopped", moved.tail(40)
    begun = len(measured(moved, "loss"))
    through(moved, {"launcher": "local"}, "done")
    assert 3 <= begun < len(measured(moved, "loss"))
    same_losses(whole, moved)
    alike(file_of(whole, wanted), file_of(moved, moved.state().result))


def test_a_launcher_names_what_there_is() -> None:
    assert list(get_args(Several.model_fields["strategy"].annotation)) == STRATEGIES.names()


@pytest.mark.parametrize(
    ("fields", "named"),
    [({"tune": "new_rows", "first_new_row": 9}, "tune"), ({"quantize_base": "nf4"}, "quantize_base")],
)
def test_what_cannot_lie_in_parts_is_refused(make: Make, fields: dict[str, Any], named: str) -> None:
    with pytest.raises(Invalid) as raised:
        sharded.Sharded.check(object.__new__(sharded.Sharded), make("sft", **fields).recipe())
    assert raised.value.param == named and raised.value.message("zh").startswith(named)
    assert "strategy: ddp" in raised.value.hint("en")


def test_parts_need_less_memory_than_wholes() -> None:
    config = Gemma2Config(hidden_size=2048, intermediate_size=8192, num_hidden_layers=24)
    told = (config, 2_000_000_000, 0, 1024, 1024, 2)
    alone, four = (machine.needed_bytes(*told, n_whole=2_000_000_000, fast=False, parts=parts) for parts in (1, 4))
    assert alone / 4 < four < alone / 2
