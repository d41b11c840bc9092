"""What a training measures on its way: bits per byte, samples; and when it stops, and with which weights."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from stopping import stopped_and_resumed
from transformers import AutoModelForCausalLM

from mofang.errors import Invalid
from mofang.recipes import parse
from mofang.recipes.pretrain import Pretrain
from mofang.recipes.sft import Sft
from mofang.runs import Run, Runs, Stopped
from mofang.strings import say
from mofang.tokenizer import load
from mofang.train import checkpoint, lora
from mofang.train.methods import pretrain, sft

Training = Callable[..., Run]


def evals(run: Run, name: str = "eval_loss") -> list[float]:
    return [row[name] for row in run.metrics() if name in row]


def samples(run: Run) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run.folder / "samples.jsonl").read_text(encoding="utf-8").splitlines()]


def test_bits_per_byte_count_the_bytes_of_what_is_learned(home: Path, tiny: str, tmp_path: Path) -> None:
    held_out = tmp_path / "held-out.txt"
    held_out.write_text("一段没有学过的话。\n", encoding="utf-8")
    data = tmp_path / "text.txt"
    data.write_text("春天来了，山上的花开了。\n" * 5, encoding="utf-8")
    made = parse(
        Pretrain, {"base": tiny, "data": [str(data)], "eval_data": [str(held_out)], "epochs": 1, "lora_rank": 2}
    )
    run = Runs(home).create(made)
    result = pretrain.run(run.recipe(), run)
    # The tiny tokenizer has a token for each byte: one less to predict, and the end, which is no text.
    n_bytes = len("一段没有学过的话。".encode())
    assert evals(run, "eval_bits_per_byte")[0] == pytest.approx(evals(run)[0] * n_bytes / math.log(2) / n_bytes)
    assert result["last_eval_bits_per_byte"] == evals(run, "eval_bits_per_byte")[-1]


def test_samples_are_what_the_model_says_and_move_nothing(training: Training, tiny_folder: Path) -> None:
    plain, sampled = training(), training(sample_every=2, sample_tokens=5)
    sft.run(plain.recipe(), plain)
    sft.run(sampled.recipe(), sampled)
    assert [row["loss"] for row in plain.metrics() if "loss" in row] == [
        row["loss"] for row in sampled.metrics() if "loss" in row
    ]
    found = samples(sampled)
    last = max(row["step"] for row in sampled.metrics())
    steps = sorted({*range(0, last + 1, 2), last})
    assert [row["step"] for row in found] == [step for step in steps for _ in range(2)]
    # Before the first step it is the base that speaks.
    base, tokenizer = AutoModelForCausalLM.from_pretrained(tiny_folder), load(tiny_folder)
    ids = torch.tensor([tokenizer.encode(found[0]["prompt"])])
    said = base.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=5, do_sample=False, pad_token_id=0)
    assert tokenizer.decode(said[0, ids.shape[1] :].tolist()).startswith(found[0]["text"][:1])
    assert found[0]["prompt"].endswith("assistant\n") and "问题" in found[0]["prompt"]


def test_samples_of_prompts_of_ones_own(training: Training) -> None:
    run = training(sample_every=100, sample_tokens=3, sample_prompts="你是谁？", max_steps=1)
    sft.run(run.recipe(), run)
    assert ["你是谁？" in row["prompt"] and row["step"] for row in samples(run)] == [0, 1]
    assert samples(run)[0]["prompt"].count("assistant") == 1, "no answer is shown"


def test_it_stops_when_the_eval_loss_falls_no_more_and_takes_the_best(training: Training) -> None:
    # Far too fast: the held-out loss rises soon.
    run = training(
        epochs=30, learning_rate=0.3, eval_every=1, lr_scheduler="constant", warmup_ratio=0,
        early_stopping_patience=3, load_best_model_at_end=True,
    )  # fmt: skip
    result = sft.run(run.recipe(), run)
    measured = evals(run)[1:]
    best = measured.index(min(measured))
    assert len(measured) == best + 1 + 3, "three measurements without a new lowest"
    assert result["best_step"] == best + 1 and result["best_eval_loss"] == min(measured)
    assert say("train.stopped_early", step=len(measured), best=best + 1) in run.state().notes
    kept, out = load_file(run.checkpoints / "best.safetensors"), load_file(run.out / lora.WEIGHTS)
    assert all(torch.equal(kept[name], out[name]) for name in kept)


def test_a_run_that_is_resumed_stops_where_it_would_have(training: Training) -> None:
    told: dict[str, Any] = {
        "epochs": 30, "learning_rate": 0.3, "eval_every": 1, "lr_scheduler": "constant", "warmup_ratio": 0, "save_every": 1,
        "early_stopping_patience": 2, "load_best_model_at_end": True, "sample_every": 1, "sample_tokens": 2,
    }  # fmt: skip
    whole, broken = training(**told), training(**told)
    sft.run(whole.recipe(), whole)
    stopped_and_resumed(broken, 1, sft.run)
    assert evals(broken) == evals(whole) and samples(broken) == samples(whole)
    one, other = (load_file(run.out / lora.WEIGHTS) for run in (whole, broken))
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("field", [{"early_stopping_patience": 2}, {"load_best_model_at_end": True}])
def test_what_needs_a_measurement_says_so(field: dict[str, Any]) -> None:
    with pytest.raises(Invalid) as raised:
        parse(Sft, {"base": "b", "data": ["d"], **field})
    assert "eval_data" in raised.value.message("zh")


def test_a_stop_during_an_evaluation_loses_no_step(training: Training) -> None:
    run = training(epochs=3, save_every=100)
    told = run.record
    asked = run.stop_asked
    stops = iter([False] * 100)

    def recording(row: dict) -> None:
        told(row)
        if row.get("step") == 2 and "loss" in row:  # the question after this step is answered no, the next one yes
            nonlocal stops
            stops = iter([False, True])

    run.record = recording  # type: ignore[method-assign]
    run.stop_asked = lambda: next(stops, False) or asked()  # type: ignore[method-assign]
    with pytest.raises(Stopped):
        sft.run(run.recipe(), run)
    assert [path.name for path in checkpoint.found(run.checkpoints)] == ["step-000002"]
    assert [row["step"] for row in run.metrics() if "eval_loss" in row] == [0], "stopped while it measured"
    again = Run(run.folder)
    sft.run(again.recipe(), again)
    assert [row["step"] for row in again.metrics() if "eval_loss" in row] == [0, 2, 4, 6]
