"""A training that is killed again and again ends as one that nobody touched; an export that is killed leaves nothing."""

import json
import os
import random
import signal
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

import tiny_llama
from mofang.models.store import ModelStore
from mofang.recipes import parse, recipe_class
from mofang.runs import Run, Runs
from mofang.settings import Settings

pytestmark = pytest.mark.soak

KILLS = 12


def kill_when(run: Run, ready: object) -> bool:
    """kill -9 as soon as `ready()`; False when the run ended before that."""
    while run.state().status == "running":
        if ready():  # type: ignore[operator]
            os.kill(run.state().pid, signal.SIGKILL)
            while run.state().status == "running":
                time.sleep(0.005)
            return run.state().status == "interrupted"
        time.sleep(0.002)
    return False


def test_killed_at_any_moment_and_resumed(home: Path, tmp_path: Path) -> None:
    ModelStore(Settings(home=home)).add(tiny_llama.make(tmp_path / "tiny"), "tiny")
    data = tmp_path / "pairs.jsonl"
    data.write_text(
        "\n".join(json.dumps({"instruction": f"问{n}", "output": f"答{n}" * 9}) for n in range(40)), encoding="utf-8"
    )
    fields = {
        "base": "tiny",
        "data": [str(data)],
        "epochs": 40,
        "batch_size": 4,
        "save_every": 3,
        "eval_fraction": 0.1,
        "lora_dropout": 0.1,
    }
    recipe = parse(recipe_class("sft"), fields)
    whole, killed = Runs(home).create(recipe), Runs(home).create(recipe)
    whole.start()
    assert whole.wait().status == "done", whole.tail()
    chance = random.Random(1)
    done = 0
    for _ in range(KILLS):
        before = len(killed.metrics())
        killed.start()
        wanted, pause = before + chance.randrange(1, 40), chance.random() * 0.02

        def ready(wanted: int = wanted, pause: float = pause) -> bool:
            if len(killed.metrics()) < wanted:
                return False
            time.sleep(pause)
            return True

        done += kill_when(killed, ready)
        if killed.state().status == "done":
            break
    if killed.state().status != "done":
        killed.start()
        assert killed.wait().status == "done", killed.tail()
    print(f"killed {done} times")
    assert done >= 3
    one, other = (load_file(run.out / "adapter_model.safetensors") for run in (whole, killed))
    assert one.keys() == other.keys() and all(tensor.equal(other[name]) for name, tensor in one.items())
    keys = ("step", "loss", "eval_loss", "learning_rate")
    assert [[row.get(key) for key in keys] for row in whole.metrics()] == [
        [row.get(key) for key in keys] for row in killed.metrics()
    ]


def test_a_merge_killed_at_any_moment_leaves_the_models_as_they_were(home: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    store = ModelStore(Settings(home=home))
    store.add(tiny_llama.make(tmp_path / "tiny"), "tiny")
    adapter = tmp_path / "adapter"
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "tiny")
    get_peft_model(model, LoraConfig(target_modules="all-linear", init_lora_weights=False)).save_pretrained(adapter)
    chance = random.Random(2)
    for number in range(KILLS):
        run = Runs(home).create(
            parse(recipe_class("merge"), {"model": str(adapter), "base": "tiny", "name": f"m{number}"})
        )
        run.start()
        moment = time.monotonic() + chance.random() * 8
        killed = kill_when(run, lambda moment=moment: time.monotonic() > moment)
        assert store.problems() == []
        names = {ref.name for ref in store.list()}
        assert (f"m{number}" in names) or killed
        if killed and f"m{number}" not in names:
            run.start()
            assert run.wait().status == "done", run.tail()
        assert store.get(f"m{number}").manifest["checks"]["merged_equals_adapter"]["same_top"] == 1.0
    assert not list(store.folder.glob(".export-*"))
