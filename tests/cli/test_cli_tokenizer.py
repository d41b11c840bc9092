"""`mofang tokenizer`: what people see, what is JSON, and what is said when it cannot be."""

import json
from pathlib import Path

from cli_fakes import Run

import tiny_llama


def test_inspect_measure_train_and_extend(run: Run, tmp_path: Path) -> None:
    tiny_llama.tokenizer().save(tmp_path)
    text = tmp_path / "文本.txt"
    text.write_text("系统安装程序会询问您的语言。\n安装 Debian 系统 the\n" * 30)
    shown = run("tokenizer", "inspect", str(tmp_path), "系 t<|im_end|>").stdout
    assert shown.splitlines()[0] == "⟨e7⟩│⟨b3⟩│⟨bb⟩│ t│<|im_end|>" and "5 个 token，13 个字符" in shown
    assert json.loads(run("tokenizer", "inspect", str(tmp_path), "--json").stdout)["n_vocab"] == 260
    assert "byte-bpe" in run("tokenizer", "inspect", str(tmp_path)).stdout
    made = run("tokenizer", "extend", str(tmp_path), str(text), "--size", "30", "--out", str(tmp_path / "新"))
    assert "260 + 30 = 290" in made.stdout and "值得扩充" in made.stdout and "留出的 3 行" in made.stderr
    both = run("tokenizer", "measure", str(tmp_path), str(text), "--against", str(tmp_path / "新")).stdout
    assert "汉字" in both and "扩充前" in both and "260 → 290" in both
    plain = json.loads(run("tokenizer", "measure", str(tmp_path), str(text), "--json").stdout)
    assert plain["scripts"]["han"]["characters_per_token"] == 1 / 3 and plain["dead"] == []
    out = tmp_path / "词表"
    assert str(out) in run("tokenizer", "train", str(text), "--size", "270", "--out", str(out)).stdout
    again = run("tokenizer", "train", str(text), "--size", "270", "--out", str(out))
    assert again.exit_code == 1 and "没有覆盖" in again.stderr
    wrong = run("tokenizer", "train", str(text), "--kind", "bpe", "--out", str(tmp_path / "x"))
    assert wrong.exit_code == 2 and "sp-bpe" in wrong.stderr
