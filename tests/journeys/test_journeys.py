"""The journeys' tables and verdicts; and the Chinese one walked in small. The journeys themselves are `make journey`."""

import gzip
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from mofang.cli.main import build

ROOT = Path(__file__).parents[2]
COMPARE = ROOT / "journeys" / "compare.py"
CHINESE = ROOT / "journeys" / "chinese_table.py"


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


@pytest.mark.parametrize("name", ["own_assistant.sh", "chinese_llama.sh"])
def test_every_step_is_a_command_that_exists(name: str) -> None:
    path = ROOT / "journeys" / name
    assert os.access(path, os.X_OK)
    commands = re.findall(r"(?:^|\|\| )mofang ([a-z]+(?: [a-z]+)?)", path.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(set(commands)) >= 10
    known = typer.main.get_command(build())
    for command in set(commands):
        found = known
        for word in command.split():
            subcommands = getattr(found, "commands", {})
            assert not subcommands or word in subcommands, command
            found = subcommands.get(word, found)
    assert subprocess.run(["bash", "-n", str(path)], check=False).returncode == 0


# ---- chinese_llama.sh ----


def test_bits_a_character_are_those_of_all_excerpts_together(tmp_path: Path) -> None:
    """The same figures, computed from the words of the table's docstring."""
    text = "".join(f"第{n}段，讲怎样安装。" for n in range(2000))
    (tmp_path / "held_out.jsonl").write_text(json.dumps({"text": text}) + "\n", encoding="utf-8")
    run = [sys.executable, str(CHINESE)]
    subprocess.run([*run, "excerpts", str(tmp_path)], check=True)
    cut = {path.stem: path.read_text(encoding="utf-8") for path in sorted(tmp_path.glob("excerpt-*.txt"))}
    assert len(cut) == 6 and all(len(excerpt) == 400 and excerpt in text for excerpt in cut.values())
    lines = (tmp_path / "excerpts.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["text"] for line in lines] == list(cut.values())

    def scores(bits_per_byte: float) -> list[dict]:
        return [{"set": name, "value": bits_per_byte} for name in cut]

    made = {
        "bits.json": {"before": scores(2.0), "after": scores(1.0)},
        "tokens.json": {"chinese_per_token": 0.6, "after": {"chinese_per_token": 1.2}},
        "speed-before.json": {"result": {"rows": [{"predicted_per_second": 50.0}]}},
        "speed-after.json": {"result": {"rows": [{"predicted_per_second": 40.0}]}},
        "pretrain.json": {"result": {"steps": 7, "tokens_per_s": 300.0}},
    }
    for name, value in made.items():
        (tmp_path / name).write_text(json.dumps(value), encoding="utf-8")
    table = subprocess.run(
        [*run, "table", str(tmp_path), "--seconds", "60"], check=True, capture_output=True, text=True
    )
    rows = [[cell.strip() for cell in line.split("|")[2:6]] for line in table.stdout.splitlines()[2:5]]
    bits = 2 * len("".join(cut.values()).encode()) / len("".join(cut.values()))
    assert rows == [
        ["0.60", "1.20", "2.00", "✗ ≥ 2.3"],
        [f"{bits:.2f}", f"{bits / 2:.2f}", "0.50", "✓ ≤ 0.7"],
        ["30.00", "48.00", "1.60", "✗ ≥ 2"],
    ]


def test_manual_pages_become_text(tmp_path: Path) -> None:
    page = '.TH LS 1\n.SH 名称\nls \\- 列出\\fB目录\\fP内容\n.\\" 注释\n.IP "-a" 4\n不隐藏 .\\&profile\n.PP\n'
    (tmp_path / "man1").mkdir()
    (tmp_path / "man1" / "ls.1.gz").write_bytes(gzip.compress(page.encode()))
    (tmp_path / "README.gz").write_bytes(gzip.compress(b"no page"))
    subprocess.run(
        [sys.executable, str(ROOT / "journeys" / "man_text.py"), str(tmp_path), str(tmp_path / "out")], check=True
    )
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["ls.1.txt"]
    text = (tmp_path / "out" / "ls.1.txt").read_text(encoding="utf-8")
    assert text == "名称\nls - 列出目录内容\n-a 4\n不隐藏 .profile"


@pytest.mark.soak
@pytest.mark.model
@pytest.mark.timeout(1800)
def test_chinese_for_a_base_that_hardly_knows_any(home: Path, smollm2: Path, tmp_path: Path) -> None:
    """With our own documents, a small vocabulary and half a minute of training: every step works, and the table comes."""
    for folder, names in (("学", ("training.md", "knowledge.md", "engine.md")), ("留", ("operations.md", "faq.md"))):
        (tmp_path / folder).mkdir()
        for name in names:
            (tmp_path / folder / name).write_bytes((ROOT / "docs" / name).read_bytes())
    told = {
        "MOFANG_HOME": str(home), "MINUTES": "0.5", "SIZE": "300", "BASE": smollm2.stem,
        "TEXTS": str(tmp_path / "学"), "HELD_OUT": str(tmp_path / "留"), "MOFANG_MODEL_PATH": str(smollm2.parent),
    }  # fmt: skip
    script = ["bash", str(ROOT / "journeys" / "chinese_llama.sh")]
    done = subprocess.run(script, env={**os.environ, **told}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    rows = [line.split("|") for line in done.stdout.splitlines() if "/token ·" in line or "/字符 ·" in line]
    (_, _, before, after, *_), (_, _, bits_before, bits_after, *_) = rows
    assert float(after) > float(before), "more characters a token"
    assert float(bits_before) > 1 and float(bits_after) > 1
