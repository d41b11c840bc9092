"""`mofang train`, `runs`, `export`, `data`, `eval`: flags made from recipes, faults, progress, what to type next."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.cells import cell_len
from typer.testing import CliRunner, Result

import tiny_llama
from fakes import install_model
from mofang.cli.runs import spark
from mofang.models.store import ModelStore
from mofang.recipes import METHODS, recipe_class
from mofang.recipes.launchers import Local, Torchrun
from mofang.runs import Run, Runs
from mofang.settings import Settings

PAIRS = "\n".join(json.dumps({"instruction": f"问{n}", "output": f"答{n}"}, ensure_ascii=False) for n in range(6))


@pytest.fixture
def mofang(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "80")
    from mofang.cli.main import build

    def invoke(*arguments: str) -> Result:
        return CliRunner().invoke(build(), list(arguments), catch_exceptions=False)

    return invoke


@pytest.fixture
def tiny(home: Path, tmp_path: Path) -> str:
    return ModelStore(Settings(home=home)).add(tiny_llama.make(tmp_path / "tiny"), "tiny").name


@pytest.fixture
def data(tmp_path: Path) -> str:
    (tmp_path / "pairs.jsonl").write_text(PAIRS, encoding="utf-8")
    return str(tmp_path / "pairs.jsonl")


def test_help_names_every_field_whole_at_80_columns(mofang) -> None:
    for kind in METHODS:
        shown = mofang("train", kind, "--help").stdout
        assert max(cell_len(line) for line in shown.splitlines()) <= 80 and "…" not in shown
        for field in recipe_class(kind).model_fields:
            assert f"--{field.replace('_', '-')}" in shown
    assert "none of them" not in shown and "【默认 16】" in shown.replace("\n", "")


def test_faults_come_together_and_exit_with_2(mofang, tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text("base: x\nepochs: many\nlora_rnak: 3\n")
    result = mofang("train", "sft", str(recipe), "--lora-rank", "0")
    assert result.exit_code == 2
    for part in ("epochs", "lora_rnak，是不是 lora_rank", "lora_rank 的值 0", "缺少必填字段 data"):
        assert part in result.stderr


def test_a_preview_needs_no_torch(mofang, tiny: str, data: str) -> None:
    result = mofang("data", "preview", data, "--base", tiny)
    assert "【答0<|im_end|>】" in result.stdout.replace("\n", "") and "6 个样例" in result.stderr.replace("\n", "")
    found = json.loads(mofang("data", "preview", data, "--base", tiny, "-n", "2", "--json").stdout)
    assert sum(bar["n"] for bar in found["lengths"]) == found["n_examples"] == 6
    assert "█" in result.stdout and "%" in result.stdout
    refused = mofang("data", "preview", data, "--base", tiny, "--columns", "output")
    assert refused.exit_code == 2 and "instruction=" in refused.stderr
    assert len(found["examples"]) == 2 and found["n_supervised"] == sum(len(f"答{n}".encode()) + 1 for n in range(6))


def test_eval_puts_models_side_by_side(mofang, home: Path) -> None:
    install_model(home, "echo")
    install_model(home, "other")
    result = mofang("eval", "echo", "other", "--set", "common_zh", "--set", "identity_zh", "--details")
    rows = [line for line in result.stdout.splitlines() if line.strip().startswith(("common_zh", "identity_zh"))]
    assert len(rows) == 2 and all(line.count("%") == 2 for line in rows)
    assert "✗ echo · identity_zh" in result.stdout
    found = json.loads(mofang("eval", "echo", "--set", "common_zh", "--json").stdout)
    assert found["echo"][0]["n"] == 12 and found["echo"][0]["metric"] == "accuracy"
    assert mofang("eval", "echo", "--set", "nope").exit_code == 1


def test_a_launcher_s_options_are_read_and_its_faults_told(
    mofang, tiny: str, data: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = []
    monkeypatch.setattr(Run, "start", lambda run, launcher=None: started.append(launcher))
    train = ("train", "sft", "--base", tiny, "--data", data, "--detach")
    mofang(*train)
    mofang(*train, "--launcher", "torchrun", "--processes", "2")
    assert started == [None, Torchrun(processes=2)]
    (run, _) = Runs(home).list()
    (run.folder / "launcher.yaml").write_text(started[1].as_yaml())
    mofang("runs", "resume", run.id, "--detach")
    mofang("runs", "resume", run.id, "--detach", "--processes", "3")
    mofang("runs", "resume", run.id, "--detach", "--launcher", "local")
    assert started[2:] == [None, Torchrun(processes=3), Local()], "of the launcher that it had, where none is named"
    for given, part in (
        (("--launcher", "torchrum"), "torchrun"),
        (("--processes", "2"), "processes"),
        (("--launcher", "torchrun", "--nodes", "2"), "rendezvous"),
    ):
        refused = mofang(*train, *given)
        assert refused.exit_code == 2 and part in refused.stderr
    assert len(Runs(home).list()) == 2, "what was refused left nothing"


@pytest.mark.slow
def test_train_show_merge_and_remove(mofang, tiny: str, data: str, home: Path) -> None:
    trained = mofang(
        "train", "sft", "--base", tiny, "--data", data, "--epochs", "2", "--name", "mine", "--set", "batch_size=3"
    )
    assert trained.exit_code == 0, trained.stderr
    (run,) = Runs(home).list()
    assert run.recipe().batch_size == 3 and run.recipe().data == [data]
    assert f"mofang export gguf {run.id}" in trained.stderr.replace("\n", " ")
    shown = mofang("runs", "show", "last").stdout
    assert "完成" in shown and "→" in shown
    found = json.loads(mofang("runs", "show", run.id, "--json").stdout)
    assert found["result"]["steps"] == 4 and len([row for row in found["metrics"] if "loss" in row]) == 4
    merged = mofang("export", "merge", run.id, "--json")
    assert json.loads(merged.stdout)["result"]["model"] == "mine-hf"
    assert [one["kind"] for one in json.loads(mofang("runs", "list", "--json").stdout)] == ["merge", "sft"]
    assert mofang("runs", "rm", run.id, "--yes").exit_code == 0 and Runs(home).find(run.id) is None
    assert mofang("runs", "show", run.id).exit_code == 1


@pytest.mark.slow
def test_a_failed_run_is_an_error_with_its_cause(mofang, tiny: str, tmp_path: Path) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text(PAIRS + '\n{"instruction": "x"}', encoding="utf-8")
    result = mofang("train", "sft", "--base", tiny, "--data", str(bad))
    assert result.exit_code == 1 and "第 7 行，字段 output" in result.stderr
    assert "失败" in mofang("runs", "list").stdout


@pytest.mark.slow
def test_ctrl_c_saves_and_says_how_to_go_on(tiny: str, data: str, home: Path) -> None:
    command = [
        sys.executable,
        "-c",
        "from mofang.cli.main import main; main()",
        "train",
        "sft",
        "--base",
        tiny,
        "--data",
        data,
        "--epochs",
        "5000",
    ]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 120
    while not (found := Runs(home).list()) or not found[0].metrics():
        assert time.monotonic() < until and child.poll() is None
        time.sleep(0.05)
    os.kill(child.pid, signal.SIGINT)
    _, said = child.communicate(timeout=60)
    run = found[0]
    assert child.returncode == 130 and f"mofang runs resume {run.id}" in said
    assert run.state().status == "stopped" and list(run.checkpoints.glob("step-*"))


@pytest.mark.slow
def test_detached_it_outlives_the_command(mofang, tiny: str, data: str, home: Path) -> None:
    result = mofang("train", "sft", "--base", tiny, "--data", data, "--epochs", "2", "--detach")
    (run,) = Runs(home).list()
    assert result.exit_code == 0 and run.id in result.stdout
    assert run.wait().status == "done", run.tail()


def test_a_check_of_two_files_for_a_script(mofang, tmp_path: Path, home: Path) -> None:
    """Two GGUFs, no torch: figures on standard output also where a limit is broken, then one sentence and exit code 1."""
    store, folder = ModelStore(Settings(home=home)), tiny_llama.make(tmp_path / "tiny")
    for kind in ("F16", "Q4_0"):
        store.add(tiny_llama.write_gguf(folder, tmp_path / f"{kind}.gguf", kind), f"tiny-{kind.lower()}")
    quick = ("--text", "text_en", "--n-tokens", "100", "--no-answers", "--no-speed")
    result = mofang("export", "check", "tiny-q4_0", "tiny-f16", *quick, "--max-kl", "0.0001", "--json")
    said = json.loads(result.stdout)
    assert result.exit_code == 1 and said["status"] == "failed" and said["result"]["passed"] is False
    assert "text_en 的平均 KL 是" in result.stderr and "界限 0.0001" in result.stderr
    assert [one["n_tokens"] for one in said["result"]["texts"]] == [99] and "answers" not in said["result"]
    passed = mofang("export", "check", "tiny-q4_0", "--reference", "tiny-f16", *quick, "--min-top1", "0.01")
    assert passed.exit_code == 0 and "report.md" in passed.stderr.replace("\n", "")
    shown = mofang("models", "info", "tiny-q4_0").stdout
    assert "tiny-f16：KL" in shown and "通过" in shown and shown.count("tiny-f16：KL") == 1
    twice = mofang("export", "check", "tiny-q4_0", "tiny-f16", "--reference", "tiny-f16")
    assert twice.exit_code == 2 and "--reference" in twice.stderr and len(Runs(home).list()) == 2


def test_a_curve_of_blocks() -> None:
    assert spark([3, 2, 1]) == "█▅▁" and spark([1.0]) == "▁" and len(spark(list(range(100)))) == 24
