"""The journey's verdict: each promise that is not kept makes it fail. The journey itself is `make journey`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMPARE = ROOT / "journeys" / "compare.py"


def score(name: str, value: float, answers: list[str] = ()) -> dict:
    return {"set": name, "value": value, "answers": [{"question": "你是谁？", "answer": answer} for answer in answers]}


def folder(path: Path, *, answers: list[str], loss: float = 1.0, bits: float = 1.9, sources: int = 1) -> Path:
    before = [score("identity_zh", 0, ["我是通义千问"] * 10), score("common_zh", 0.5), score("text_zh", 1.88)]
    after = [score("identity_zh", 1, answers), score("common_zh", 0.5), score("text_zh", bits)]
    show = {"metrics": [{"step": 0, "eval_loss": 4.0}, {"step": 9, "loss": 1.0}, {"step": 9, "eval_loss": loss}]}
    for name, value in (
        ("before", {"base": before}),
        ("after", {"run": after}),
        ("show", show),
        ("kb", {"sources": [{}] * sources}),
    ):
        (path / f"{name}.json").write_text(json.dumps(value), encoding="utf-8")
    return path


KEPT = {"answers": ["我是模坊助手。"] * 10}
BROKEN = [
    {"answers": ["我是模坊。"] * 7 + ["我是助手。"] * 3},
    {"answers": ["我是模坊，也是 Qwen。"] + ["我是模坊。"] * 9},
    {**KEPT, "loss": 3.3},
    {**KEPT, "bits": 2.0},
    {**KEPT, "sources": 0},
]


def verdict(path: Path, seconds: int = 600) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(COMPARE), str(path), "--seconds", str(seconds)],
        capture_output=True,
        text=True,
        check=False,
    )


def test_kept_promises_pass(tmp_path: Path) -> None:
    done = verdict(folder(tmp_path, **KEPT))
    assert done.returncode == 0, done.stderr
    assert "✗" not in done.stdout and "0 → 10" in done.stdout and "我是通义千问" in done.stdout
    assert verdict(tmp_path, seconds=901).returncode == 1


@pytest.mark.parametrize("case", BROKEN)
def test_each_broken_promise_fails(case: dict, tmp_path: Path) -> None:
    done = verdict(folder(tmp_path, **case))
    assert done.returncode == 1 and done.stdout.count("✗") == 1


def test_every_step_is_a_command_that_exists() -> None:
    script = (ROOT / "journeys" / "own_assistant.sh").read_text(encoding="utf-8")
    assert os.access(ROOT / "journeys" / "own_assistant.sh", os.X_OK)
    for command in (
        "models pull",
        "data preview",
        "eval",
        "train sft",
        "export merge",
        "export gguf",
        "export check",
        "serve",
        "kb add",
        "kb ask",
    ):
        assert f"mofang {command}" in script
    assert subprocess.run(["bash", "-n", str(ROOT / "journeys" / "own_assistant.sh")], check=False).returncode == 0
