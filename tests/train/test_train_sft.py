"""The whole worker on a tiny model: what is learned, resumed, packed, cut, refused."""

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file
from stopping import stop_after

from mofang.errors import Conflict, Invalid, MofangError, TooLarge, Unreadable
from mofang.models.store import ModelStore
from mofang.runs import Run, Stopped
from mofang.settings import Settings
from mofang.tokenizer import load
from mofang.train import checkpoint, job, machine
from mofang.train.forward import Forward
from mofang.train.methods import sft

Training = Callable[..., Run]


def go(run: Run) -> dict:
    return sft.run(run.recipe(), run)


def adapter(run: Run) -> dict:
    return load_file(run.out / "adapter_model.safetensors")


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(value.equal(other[name]) for name, value in one.items())


def losses(run: Run) -> list[float]:
    return [row["loss"] for row in run.metrics() if "loss" in row]


def test_it_learns_and_leaves_an_adapter_with_its_lineage(training: Training, tiny: str, home: Path) -> None:
    run = training(epochs=10, learning_rate=3e-2, lora_alpha=64, name="mine", system_prompt="短答。")
    result = go(run)
    assert result["last_loss"] < 0.6 * result["first_loss"] and result["last_eval_loss"] < result["first_eval_loss"]
    manifest = json.loads((run.out / "manifest.json").read_text())
    base = ModelStore(Settings(home=home)).get(tiny)
    assert manifest["parents"][0] == {
        "role": "base",
        "name": "tiny",
        "format": "hf",
        "sha256": base.sha256,
        "source": "path",
    }
    assert (
        manifest["runs"] == [run.id]
        and manifest["recipe"]["name"] == "mine"
        and len(manifest["data"][0]["sha256"]) == 64
    )
    saved = load(run.out)
    assert "短答。" in (saved.chat_template or "") and saved.end_ids == load(base.path).end_ids
    steps = [row for row in run.metrics() if "loss" in row]
    assert steps[-1]["step"] == result["steps"] == 20 and steps[-1]["epoch"] == 10
    assert [row["step"] for row in run.metrics() if "eval_loss" in row] == list(range(0, 21, 2))


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_resumed_is_uninterrupted_bit_for_bit(training: Training, dropout: float) -> None:
    whole = training(save_every=1, lora_dropout=dropout)
    go(whole)
    broken = training(save_every=1, lora_dropout=dropout)
    stop_after(broken, 2)
    with pytest.raises(Stopped):
        go(broken)
    assert [path.name for path in checkpoint.found(broken.checkpoints)][-1] == "step-000002"
    (broken.folder / "stop").unlink()
    go(Run(broken.folder))
    assert same(adapter(whole), adapter(broken))
    assert losses(whole) == losses(broken)
    assert [row.get("eval_loss") for row in whole.metrics()] == [row.get("eval_loss") for row in broken.metrics()]


def test_a_torn_checkpoint_is_passed_over_and_said(training: Training) -> None:
    """As a disk that was full, or a machine that lost its power, leaves it."""
    whole, broken = training(save_every=1), training(save_every=1)
    go(whole)
    stop_after(broken, 3)
    with pytest.raises(Stopped):
        go(broken)
    (broken.folder / "stop").unlink()
    newest = broken.checkpoints / "step-000003" / "optimizer.safetensors"
    newest.write_bytes(newest.read_bytes()[:-100])
    resumed = Run(broken.folder)
    go(resumed)
    assert any("step-000003" in note and "step-000002 继续" in note for note in resumed.state().notes)
    assert losses(whole) == losses(resumed) and same(adapter(whole), adapter(resumed))
    for path in checkpoint.found(resumed.checkpoints):
        (path / "optimizer.safetensors").write_bytes(b"")
    with pytest.raises(Unreadable):  # rather than begin from nothing
        go(resumed)


def test_metrics_measured_after_the_last_checkpoint_are_measured_again(training: Training) -> None:
    run = training(save_every=2)
    go(run)
    before = losses(run)
    run.record({"step": 99, "loss": 1.0})
    go(run)  # from the last checkpoint: nothing left to do but to write the result again
    assert losses(run) == before


def test_packed_is_unpacked(training: Training) -> None:
    exact = {"dtype": "float32"}  # where the CPU computes bfloat16, sums of another order differ by a thousandth
    packed, alone, narrow = training(**exact), training(**exact, packing=False), training(**exact, row_tokens=64)
    for run in (packed, alone, narrow):
        go(run)
    for other in (alone, narrow):
        assert losses(other) == pytest.approx(losses(packed), rel=1e-4)
    rows = [[row["rows"] for row in run.metrics() if "rows" in row] for run in (packed, alone)]
    assert rows == [[1, 1, 1, 1], [4, 3, 4, 3]]


def test_another_seed_is_another_run_and_the_same_seed_the_same(training: Training) -> None:
    one, two, other = training(), training(), training(seed=7)
    for run in (one, two, other):
        go(run)
    assert same(adapter(one), adapter(two)) and not same(adapter(one), adapter(other))


def test_an_answer_that_is_cut_away_counts_nothing(training: Training, data: Path) -> None:
    long = {"instruction": "很长" * 100, "output": "答"}
    data.write_text(data.read_text() + "\n" + json.dumps(long), encoding="utf-8")
    run = training(max_length=150)
    go(run)
    assert any("1 条样例截断后不剩任何答案" in note and "第 10 行" in note for note in run.state().notes)
    data.write_text(json.dumps(long), encoding="utf-8")
    with pytest.raises(Invalid) as raised:
        go(training(max_length=150))
    assert raised.value.code == "nothing_to_learn"


def test_mixed_sources_of_any_kind_with_columns_and_weights(training: Training, data: Path, tmp_path: Path) -> None:
    table = tmp_path / "表.csv"
    table.write_text("问题,回答\n" + "".join(f"问{n},答{n}\n" for n in range(4)), encoding="gb18030")
    fields = {"data": [str(data), str(table)], "columns": ["instruction=问题", "output=回答"], "weights": [1, 2]}
    run = training(**fields, eval_fraction=0, epochs=1)
    assert go(run)["steps"] == 5, "9 + 2 × 4 examples, 4 a step; a file that has the fields needs no columns"
    manifest = json.loads((run.out / "manifest.json").read_text())
    assert [file["file"] for file in manifest["data"]] == ["pairs.jsonl", "表.csv"]


def test_a_second_run_tokenizes_nothing(training: Training, monkeypatch: pytest.MonkeyPatch) -> None:
    first = training()
    go(first)
    monkeypatch.setattr("mofang.data.cache.examples", lambda *_, **__: pytest.fail("tokenized again"))
    second = training()
    go(second)
    assert same(adapter(first), adapter(second)) and losses(first) == losses(second)


def test_a_broken_row_stops_it_before_anything_is_loaded(
    training: Training, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job.AutoModelForCausalLM, "from_pretrained", lambda *_, **__: pytest.fail("loaded"))
    data.write_text(data.read_text() + '\n{"instruction": "x", "output": ""}', encoding="utf-8")
    with pytest.raises(Unreadable) as raised:
        go(training())
    assert (raised.value.values["row"], raised.value.values["field"]) == (10, "output")


def test_too_little_memory_is_said_before_anything_is_loaded(
    training: Training, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job.AutoModelForCausalLM, "from_pretrained", lambda *_, **__: pytest.fail("loaded"))
    monkeypatch.setattr(machine, "memory", lambda: type("M", (), {"available": 1 << 20})())
    with pytest.raises(TooLarge):
        go(training())


def test_a_base_that_changed_is_not_gone_on_with(training: Training) -> None:
    run = training(max_steps=1)
    go(run)
    (run.folder / "base.json").write_text('{"sha256": "0"}')
    with pytest.raises(Conflict) as raised:
        go(run)
    assert raised.value.code == "base_changed"


def test_a_loss_that_is_no_number_ends_it_in_words(training: Training, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Forward.loss
    monkeypatch.setattr(Forward, "loss", lambda *given: plain(*given) * float("nan"))
    with pytest.raises(MofangError) as raised:
        go(training(eval_fraction=0))
    assert raised.value.code == "not_finite"


@pytest.mark.slow
def test_killed_and_resumed_as_a_process(training: Training) -> None:
    """kill -9 in mid-training: the state says so, and the resumed run ends as one that nobody killed."""
    whole = training(epochs=40, save_every=3)
    whole.start()
    killed = training(epochs=40, save_every=3)
    assert whole.wait().status == "done", whole.tail()
    killed.start()
    until = time.monotonic() + 120
    while len(losses(killed)) < 20:
        assert time.monotonic() < until and killed.state().status == "running", killed.tail()
        time.sleep(0.01)
    os.kill(killed.state().pid, signal.SIGKILL)
    while (state := killed.state()).status == "running":
        time.sleep(0.01)
    assert state.status == "interrupted" and not killed.out.exists()
    killed.start()
    assert killed.wait().status == "done", killed.tail()
    assert same(adapter(whole), adapter(killed)) and losses(whole) == losses(killed)


@pytest.mark.slow
def test_stopped_and_resumed_as_a_process(training: Training) -> None:
    run = training(epochs=500)
    run.start()
    until = time.monotonic() + 120
    while len(losses(run)) < 3:
        assert time.monotonic() < until and run.state().status == "running", run.tail()
        time.sleep(0.01)
    state = run.stop()
    assert state.status == "stopped"
    step = len(losses(run))
    assert checkpoint.found(run.checkpoints)[-1].name == f"step-{step:06d}"
    run.start()
    while len(losses(run)) <= step:
        assert run.state().status == "running", run.tail()
        time.sleep(0.01)
    assert run.stop().status == "stopped" and losses(run)[:step] == losses(run)[:step]
