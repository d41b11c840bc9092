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


def test_what_is_wrong_with_the_texts_is_said_and_nothing_is_written(run: Run, tmp_path: Path) -> None:
    tiny_llama.tokenizer().save(tmp_path)
    text, picture, empty = tmp_path / "文本.txt", tmp_path / "图.png", tmp_path / "空"
    text.write_text("系统安装程序会询问您的语言。\n" * 3)
    picture.write_bytes(b"\x89PNG\r\n\x1a\n\x00\x00")
    empty.mkdir()
    out = tmp_path / "新"
    for wrong, part in (
        (str(tmp_path / "没有.txt"), "没有文件或文件夹"), (str(empty), "空 里没有文本可读"), (str(picture), "图.png"),
    ):  # fmt: skip
        for command in (
            ("measure", str(tmp_path), wrong),
            ("train", wrong, "--size", "270", "--out", str(out)),
            ("extend", str(tmp_path), wrong, "--out", str(out)),
        ):
            refused = run("tokenizer", *command)
            assert refused.exit_code in (1, 2) and part in refused.stderr.replace("\n", ""), command
    nothing = run("tokenizer", "extend", str(tmp_path), "--out", str(out))
    assert nothing.exit_code == 2 and "没有给出文本" in nothing.stderr
    gone = run("tokenizer", "extend", str(tmp_path), str(text), "--vocabulary", str(empty / "没有"), "--out", str(out))
    assert gone.exit_code == 1 and "没有路径" in gone.stderr
    assert not out.exists()
    few = run("tokenizer", "extend", str(tmp_path), str(text), "--size", "5000", "--out", str(out))
    assert few.exit_code == 0 and "比要的少" in few.stderr and "文本太短" in few.stderr
