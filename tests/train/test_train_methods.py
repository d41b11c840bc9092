"""dpo, orpo, pretrain, and sft with what is trained chosen: against plain transformers, resumed, in other rows."""

import importlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from stopping import stopped_and_resumed
from torch.nn import functional
from transformers import AutoModelForCausalLM

from mofang.data import rows
from mofang.data.encode import Example
from mofang.errors import Conflict, Invalid
from mofang.export import merge, source
from mofang.models.store import ModelStore
from mofang.recipes import parse, recipe_class
from mofang.recipes.export import Merge
from mofang.runs import Run, Runs
from mofang.settings import Settings
from mofang.strings import say
from mofang.tokenizer import load
from mofang.train import attention, job, lora, loss, preference
from mofang.train.examples import Pairs
from mofang.train.examples import load as load_examples
from mofang.train.forward import Forward
from mofang.train.methods import dpo

Training = Callable[..., Run]


def go(run: Run) -> dict[str, Any]:
    module, function = run.recipe().worker.split(":")
    return getattr(importlib.import_module(module), function)(run.recipe(), run)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    pairs, asked, text = tmp_path / "pairs.jsonl", tmp_path / "asked.jsonl", tmp_path / "text.jsonl"
    rows = [{"prompt": f"问 {n}", "chosen": f"好 {n}" * (1 + n % 2), "rejected": f"坏 {n * n}"} for n in range(7)]
    pairs.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    asked.write_text(
        "\n".join(json.dumps({"instruction": f"问 {n}", "output": f"答 {n}"}) for n in range(7)), encoding="utf-8"
    )
    texts = [json.dumps({"text": f"第 {n} 天，天气很好，我们去公园。" * 3}) for n in range(6)]
    text.write_text("\n".join(texts), encoding="utf-8")
    return {"sft": asked, "dpo": pairs, "orpo": pairs, "pretrain": text}


@pytest.fixture
def training(home: Path, tiny: str, files: dict[str, Path]) -> Training:
    """training(kind, field=value…) → a run of a small recipe, not started. float32: sums of any order agree."""

    def make(kind: str, **fields: Any) -> Run:
        small = {
            "data": [str(files[kind])], "epochs": 2, "batch_size": 4, "lora_rank": 4, "learning_rate": 1e-3,
            "eval_fraction": 0.3, "dtype": "float32", "save_every": 1,
        }  # fmt: skip
        base = {} if "tokenizer" in fields else {"base": tiny}
        if kind == "pretrain":
            small["max_length"] = 64
        return Runs(home).create(parse(recipe_class(kind), {**base, **small, **fields}))

    return make


SCRATCH = {
    "tokenizer": "tiny", "hidden_size": 32, "intermediate_size": 48, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2,
}  # fmt: skip
WAYS = {
    "dpo": ("dpo", {}),
    "dpo full": ("dpo", {"tune": "full"}),
    "orpo dora": ("orpo", {"lora_dora": True, "lora_dropout": 0.2}),
    "pretrain full": ("pretrain", {}),
    "pretrain lora": ("pretrain", {"tune": "lora", "modules_to_save": ["embed_tokens", "lm_head"]}),
    "pretrain new": ("pretrain", SCRATCH),
    "sft layers": ("sft", {"tune": "layers", "layers": [-1]}),
}


def result(run: Run, made: dict[str, Any]) -> dict[str, torch.Tensor]:
    folder = Path(made["path"]) if "path" in made else run.out
    return {name: value for file in sorted(folder.glob("*.safetensors")) for name, value in load_file(file).items()}


def losses(run: Run) -> list[tuple[float | None, float | None]]:
    return [(row.get("loss"), row.get("eval_loss")) for row in run.metrics()]


@pytest.mark.parametrize("way", WAYS)
def test_resumed_is_uninterrupted_bit_for_bit(way: str, training: Training) -> None:
    kind, fields = WAYS[way]
    whole, broken = training(kind, **fields), training(kind, **fields)
    wanted = result(whole, go(whole))
    made = []
    resumed = stopped_and_resumed(broken, 2, lambda _, run: made.append(go(run)))
    got = result(resumed, made[0])
    assert losses(whole) == losses(resumed) and len(losses(whole)) > 4
    assert wanted.keys() == got.keys() and all(torch.equal(value, got[name]) for name, value in wanted.items())


@pytest.mark.parametrize("way", [way for way in WAYS if way != "orpo dora"])  # dropout falls otherwise in other rows
def test_one_row_is_many_rows(way: str, training: Training) -> None:
    """Accumulation over rows changes nothing that is learned."""
    kind, fields = WAYS[way]
    packed, alone = training(kind, **fields), training(kind, **fields, packing=False)
    for run in (packed, alone):
        go(run)
    got, wanted = (np.array([one for row in losses(run) for one in row if one is not None]) for run in (packed, alone))
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-6)
    assert [row["rows"] for row in packed.metrics() if "rows" in row] != [
        row["rows"] for row in alone.metrics() if "rows" in row
    ]


# ---- against plain transformers ----


def examples(tiny_folder: Path, *lengths: int) -> list[Example]:
    draw = np.random.default_rng(0)
    return [
        Example(draw.integers(3, 250, n).astype(np.int32), np.arange(n) >= n // 2, Path("x"), 1, False) for n in lengths
    ]


def plain_logps(model, example: Example) -> torch.Tensor:
    ids = torch.tensor(example.ids).long()
    logp = torch.log_softmax(model(ids[None]).logits[0, :-1].float(), -1).gather(1, ids[1:, None])[:, 0]
    return logp[torch.tensor(example.mask[1:])]


def both(folder: Path):
    ours = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation=attention.install())
    return ours, AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def test_losses_and_gradients_are_transformers_own(tiny_folder: Path) -> None:
    ours, plain = both(tiny_folder)
    forward = Forward(ours, torch.device("cpu"), torch.float32, mixed=False)
    row = examples(tiny_folder, 9, 30, 2)
    for got, wanted in (
        (forward.loss(row) / 10, -torch.cat([plain_logps(plain, one) for one in row]).sum() / 10),
        (
            forward.logps(row).square().sum() / 100,
            torch.stack([plain_logps(plain, one).sum() for one in row]).square().sum() / 100,
        ),
    ):
        ours.zero_grad(), plain.zero_grad()
        got.backward(), wanted.backward()
        torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-5)
        slopes = dict(plain.named_parameters())
        for name, parameter in ours.named_parameters():
            torch.testing.assert_close(parameter.grad, slopes[name].grad, atol=1e-4, rtol=1e-4, msg=name)


def test_the_labels_loss_of_transformers(tiny_folder: Path) -> None:
    ours, plain = both(tiny_folder)
    forward = Forward(ours, torch.device("cpu"), torch.float32, mixed=False)
    (one,) = examples(tiny_folder, 40)
    ids = torch.from_numpy(one.ids).long()
    labels = torch.where(torch.from_numpy(one.mask), ids, -100)
    with torch.no_grad():
        wanted = plain(ids[None], labels=labels[None]).loss.item()
        assert forward.loss([one]).item() / one.n_supervised == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize("n", [1, 256, 300])
@pytest.mark.parametrize("frozen", [True, False])
def test_the_head_learns_as_plain_cross_entropy_would_teach_it(n: int, frozen: bool) -> None:
    torch.manual_seed(n)
    hidden, weight = torch.randn(n, 16, requires_grad=True), torch.randn(50, 16, requires_grad=not frozen)
    targets, each = torch.randint(0, 50, (n,)), torch.randn(n)
    leaves = [hidden] if frozen else [hidden, weight]
    nll = functional.cross_entropy(hidden @ weight.t(), targets, reduction="none")
    for got, wanted in (
        (loss.head_loss(hidden, weight, targets) * 0.3, nll.sum() * 0.3),
        ((loss.token_logps(hidden, weight, targets) * each).sum(), (-nll * each).sum()),
    ):
        torch.testing.assert_close(got, wanted)
        for one, other in zip(
            torch.autograd.grad(got, leaves), torch.autograd.grad(wanted, leaves, retain_graph=True), strict=True
        ):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_a_head_that_is_more_than_its_weight_is_taken_as_it_is_and_said(
    training: Training, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_model = job._model

    def biased(*given):
        model = load_model(*given)
        head = model.get_output_embeddings()
        head.bias = torch.nn.Parameter(torch.randn(head.weight.shape[0]))
        return model

    monkeypatch.setattr(job, "_model", biased)
    run = training("sft")
    found = go(run)
    assert found["last_loss"] < found["first_loss"]
    assert say("train.apart_path", architecture="llama") in run.state().notes


# ---- the papers' formulas ----


def test_dpo_is_equation_7() -> None:
    chosen, rejected, before_chosen, before_rejected, beta = -3.0, -5.0, -4.0, -4.5, 0.2
    ratio = lambda now, before: math.log(math.exp(now) / math.exp(before))  # noqa: E731
    wanted = -math.log(
        1 / (1 + math.exp(-(beta * ratio(chosen, before_chosen) - beta * ratio(rejected, before_rejected))))
    )
    losses, margin = preference.dpo_loss(
        *(torch.tensor([v]) for v in (chosen, rejected, before_chosen, before_rejected)), beta
    )
    assert losses.item() == pytest.approx(wanted, abs=1e-6)
    assert margin.item() == pytest.approx(beta * 1.5, abs=1e-6)


def test_orpo_is_equations_4_to_7() -> None:
    chosen, rejected, weight = -0.7, -1.9, 0.25
    odds = lambda logp: math.exp(logp) / (1 - math.exp(logp))  # noqa: E731
    ratio = math.log(odds(chosen) / odds(rejected))
    wanted = -chosen + weight * -math.log(1 / (1 + math.exp(-ratio)))
    losses, got = preference.orpo_loss(torch.tensor([chosen]), torch.tensor([rejected]), weight)
    assert (losses.item(), got.item()) == (pytest.approx(wanted, abs=1e-6), pytest.approx(ratio, abs=1e-6))
    certain = torch.zeros(1, requires_grad=True)
    preference.orpo_loss(certain, torch.tensor([-1.0]), weight)[0].backward()
    assert torch.isfinite(certain.grad).all()


@pytest.mark.parametrize("fields", [{}, {"tune": "full"}, {"lora_dora": True}], ids=str)
def test_dpo_is_held_to_the_model_that_it_was(
    fields: dict, training: Training, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first loss is log 2, the references are plain transformers', and a resumed run computes them no more."""
    run = training("dpo", epochs=4, **fields)
    made = go(run)
    assert made["first_loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert made["last_loss"] < 0.6 and made["last_eval_loss"] < made["first_eval_loss"]
    assert [row["margin"] for row in run.metrics() if "margin" in row][-1] > 0
    recipe, tokenizer = run.recipe(), load(tiny_folder)
    found = load_examples(recipe, tokenizer, run, rows.Pair)
    learned, held_out = Pairs(found.learned), Pairs(found.held_out)
    _, plain = both(tiny_folder)
    kept = load_file(run.folder / "reference.safetensors")["reference"]
    with torch.no_grad():
        for pair, sums in zip([*learned, *held_out], kept, strict=True):
            for example, got in zip((pair.chosen, pair.rejected), sums, strict=True):
                assert got.item() == pytest.approx(plain_logps(plain, example).sum().item(), abs=1e-4)
    monkeypatch.setattr(dpo, "_computed", lambda *_: pytest.fail("computed twice"))
    go(Run(run.folder))


def test_orpo_raises_the_odds_of_the_better_answer(training: Training) -> None:
    run = training("orpo", epochs=6, learning_rate=5e-3)
    go(run)
    rows = [row for row in run.metrics() if "eval_loss" in row]
    assert rows[-1]["eval_log_odds_ratio"] > rows[0]["eval_log_odds_ratio"]
    assert rows[-1]["eval_nll"] < rows[0]["eval_nll"]


# ---- what is trained ----


def model_of(home: Path, name: str):
    return ModelStore(Settings(home=home)).get(name)


def test_only_the_chosen_layers_move(training: Training, tiny_folder: Path) -> None:
    run = training("sft", tune="layers", layers=[-1], modules_to_save=["norm"])
    after, before = result(run, go(run)), load_file(tiny_folder / "model.safetensors")
    moved = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert moved and all(name.startswith("model.layers.1.") or name == "model.norm.weight" for name in moved)
    assert {name for name in after if name.startswith("model.layers.1.")} <= moved


@pytest.mark.parametrize("tied", [True, False])
def test_old_rows_stay_as_they_were(tied: bool, training: Training, home: Path, tmp_path: Path) -> None:
    import tiny_llama

    folder = tiny_llama.make(tmp_path / "other", tied=tied)
    ModelStore(Settings(home=home)).add(folder, "other")
    first = 150
    run = training("pretrain", base="other", tune="new_rows", first_new_row=first)
    after, before = result(run, go(run)), load_file(folder / "model.safetensors")
    tables = {"model.embed_tokens.weight"} | (set() if tied else {"lm_head.weight"})
    for name, value in after.items():
        if name in tables:
            assert torch.equal(value[:first], before[name][:first]) and not torch.equal(
                value[first:], before[name][first:]
            )
        else:
            assert torch.equal(value, before[name])


def test_a_full_training_ends_as_a_model_of_its_own(training: Training, home: Path, tiny: str) -> None:
    run = training("sft", tune="full", name="whole", epochs=4)
    made = go(run)
    assert made["model"] == "whole" and made["last_loss"] < made["first_loss"]
    ref = model_of(home, "whole")
    assert ref.format == "hf" and ref.manifest["runs"] == [run.id]
    assert ref.manifest["parents"][0]["sha256"] == model_of(home, tiny).sha256
    config = json.loads((ref.path / "config.json").read_text())
    assert config["tie_word_embeddings"] and "lm_head.weight" not in result(run, made)
    assert load(ref.path).end_ids == load(model_of(home, tiny).path).end_ids
    go(Run(run.folder))  # once more: it replaces only what is its own
    with pytest.raises(Conflict):
        go(training("sft", tune="full", name="whole"))
    assert source.find(run.id, run).name == "whole"


def test_bfloat16_is_computed_with_and_float32_is_trained(training: Training, tiny_folder: Path) -> None:
    """A step too small for bfloat16 still moves the weights."""
    run = training("sft", tune="full", dtype="bfloat16", learning_rate=1e-6, epochs=1)
    made = go(run)
    after = result(run, made)
    exact = training("sft", tune="full", learning_rate=1e-6, epochs=1)
    wanted = result(exact, go(exact))
    assert all(value.dtype == torch.float32 for value in after.values())
    assert losses(run)[0][1] == pytest.approx(losses(exact)[0][1], rel=2e-2)
    name = "model.layers.0.mlp.up_proj.weight"
    before = load_file(tiny_folder / "model.safetensors")[name]
    moved, wished = ((one[name] - before).flatten() for one in (after, wanted))
    assert torch.cosine_similarity(moved, wished, dim=0) > 0.9 and moved.abs().max() < 1e-5


def test_a_new_model_begins_from_random_weights(training: Training, home: Path, tiny: str) -> None:
    run = training("pretrain", **SCRATCH, epochs=8, learning_rate=3e-3, name="new")
    made = go(run)
    assert made["last_loss"] < made["first_loss"] - 0.5 and made["first_loss"] == pytest.approx(math.log(320), abs=0.3)
    ref = model_of(home, "new")
    config = json.loads((ref.path / "config.json").read_text())
    assert (config["hidden_size"], config["num_hidden_layers"], config["vocab_size"]) == (32, 2, 320)
    assert ref.manifest["parents"] == [{"role": "tokenizer", "name": tiny, "tokenizer_sha256": load(ref.path).sha256()}]
    loaded = AutoModelForCausalLM.from_pretrained(ref.path, dtype=torch.float32)
    assert loaded.get_input_embeddings().weight is loaded.get_output_embeddings().weight


@pytest.mark.parametrize("fields", [{"modules_to_save": ["embed_tokens", "lm_head"]}, {"lora_dora": True}], ids=str)
def test_what_lora_made_survives_the_merge(fields: dict, training: Training, home: Path) -> None:
    run = training("pretrain", tune="lora", learning_rate=1e-2, **fields)
    go(run)
    run.update(status="done")
    made = merge.run(Merge(model=run.id, name="merged"), run)
    assert made["mean_kl"] <= made["bound"]
    folder = model_of(home, "merged").path
    assert json.loads((folder / "config.json").read_text())["tie_word_embeddings"]
    adapter = load_file(run.out / lora.WEIGHTS)
    embedding = adapter.get(f"{lora.PREFIX}model.embed_tokens.weight")
    if embedding is not None:
        merged = load_file(folder / "model.safetensors")
        assert torch.equal(merged["model.embed_tokens.weight"], embedding) and "lm_head.weight" not in merged


def test_what_the_model_does_not_have_is_refused_before_it_is_loaded(
    training: Training, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job.AutoModelForCausalLM, "from_pretrained", lambda *_, **__: pytest.fail("loaded"))
    for fields, code in (
        ({"tune": "layers", "layers": [2]}, "no_such_block"),
        ({"modules_to_save": ["head"]}, "no_such_module"),
        ({"tune": "new_rows", "first_new_row": 9999}, "no_new_rows"),
    ):
        with pytest.raises(Invalid) as raised:
            go(training("sft", **fields))
        assert raised.value.code == code and raised.value.hint("zh")


@pytest.mark.parametrize("tune", [{"tune": "layers", "layers": [-1]}, {"tune": "full"}])
def test_a_model_saved_from_the_fast_path_has_weights_of_its_own(training: Training, tune: dict[str, Any]) -> None:
    run = training("sft", dtype="float32", max_steps=1, name="whole", **tune)
    found = go(run)
    assert say("train.fast_path", architecture="llama") in run.state().notes
    saved = load_file(Path(found["path"]) / "model.safetensors")
    assert len({tensor.untyped_storage().data_ptr() for tensor in saved.values()}) == len(saved)
    back = AutoModelForCausalLM.from_pretrained(found["path"])
    assert all(torch.equal(saved[name], value) for name, value in back.state_dict().items() if name in saved)
