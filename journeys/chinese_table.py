"""What journeys/chinese_llama.sh measured, before and after.

    python journeys/chinese_table.py excerpts FOLDER         cuts held_out.jsonl into excerpt-N.txt and excerpts.jsonl
    python journeys/chinese_table.py table FOLDER --seconds N

The table's figures, each from a command of the journey:
  characters per token   Chinese characters of the held-out documents (mofang tokenizer measure)
  bits per character     of the excerpts, read by the exported models (mofang eval); a character is what a reader counts
  characters per second  Chinese characters per token × tokens per second of an answer (mofang engine bench)
"""

import argparse
import json
from pathlib import Path
from typing import Any

N_EXCERPTS, LENGTH = 6, 400
"""Excerpts, evenly spread over the held-out text, and their characters."""
GOALS = (2.3, 0.7, 2.0)
"""Of the ratios after / before: at least, at most, at least."""


def cut(folder: Path) -> None:
    lines = (folder / "held_out.jsonl").read_text(encoding="utf-8").splitlines()
    text = "\n".join(json.loads(line)["text"] for line in lines)
    stride = max(LENGTH, (len(text) - LENGTH) // (N_EXCERPTS - 1))
    excerpts = [text[start : start + LENGTH] for start in range(0, len(text) - LENGTH // 2, stride)][:N_EXCERPTS]
    for number, excerpt in enumerate(excerpts):
        (folder / f"excerpt-{number}.txt").write_text(excerpt, encoding="utf-8")
    rows = (json.dumps({"text": excerpt}, ensure_ascii=False) + "\n" for excerpt in excerpts)
    (folder / "excerpts.jsonl").write_text("".join(rows), encoding="utf-8")


def bits_per_character(folder: Path, scores: list[dict[str, Any]]) -> float:
    """Of all excerpts as one text."""
    bits = characters = 0.0
    for score in scores:
        text = (folder / f"{score['set']}.txt").read_text(encoding="utf-8")
        bits += score["value"] * len(text.encode())
        characters += len(text)
    return bits / characters


def table(folder: Path, seconds: int) -> None:
    def read(name: str) -> Any:
        return json.loads((folder / name).read_text(encoding="utf-8"))

    tokens = read("tokens.json")
    per_token = [tokens["chinese_per_token"], tokens["after"]["chinese_per_token"]]
    bits = [bits_per_character(folder, scores) for scores in read("bits.json").values()]
    speeds = [read(f"speed-{model}.json")["result"]["rows"][0]["predicted_per_second"] for model in ("before", "after")]
    per_second = [rate * count for rate, count in zip(speeds, per_token, strict=True)]
    names = (
        "中文字符/token · Chinese characters per token",
        "比特/字符 · bits per character",
        "中文字符/秒 · Chinese characters per second",
    )
    print(f"| | 前 · before | 后 · after | 后/前 · ratio | 目标 · goal |\n|{'---|' * 5}")
    for name, (before, after), goal in zip(names, (per_token, bits, per_second), GOALS, strict=True):
        ratio = after / before
        sign, kept = ("≥", ratio >= goal) if goal > 1 else ("≤", ratio <= goal)
        print(f"| {name} | {before:.2f} | {after:.2f} | {ratio:.2f} | {'✓' if kept else '✗'} {sign} {goal:g} |")
    trained = read("pretrain.json")["result"]
    print(
        f"\n{trained['steps']} 步，每秒 {trained['tokens_per_s']:.0f} 个 token；"
        f"从头到尾 {seconds} 秒 / steps, tokens per second; seconds in all"
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=("excerpts", "table"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seconds", type=int, default=0)
    options = parser.parse_args()
    if options.what == "excerpts":
        cut(options.folder)
    else:
        table(options.folder, options.seconds)


if __name__ == "__main__":
    main()
