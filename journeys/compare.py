"""Before and after, side by side, and whether the journey proved what it promises.

    python journeys/compare.py FOLDER --seconds N

Reads before.json, after.json (mofang eval --json), show.json (mofang runs show --json) and kb.json. Exits with 1 when a
promise is not kept: 8 of 10 answers name 模坊 and none the base's own name; the loss on held-out pairs falls by 20 %;
bits per byte on general Chinese text rise by at most 5 %; at most 15 minutes.
"""

import argparse
import json
import sys
from pathlib import Path

BASE_NAMES = ("Qwen", "通义", "千问", "阿里")
LIMIT_S = 900


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seconds", type=int, required=True)
    options = parser.parse_args()

    def read(name: str):
        return json.loads((options.folder / name).read_text(encoding="utf-8"))

    before, after = (
        {score["set"]: score for score in next(iter(read(name).values()))} for name in ("before.json", "after.json")
    )
    for old, new in zip(before["identity_zh"]["answers"], after["identity_zh"]["answers"], strict=True):
        print(f"问 / Q  {old['question']}")
        print(f"  前 / before  {one_line(old['answer'])}")
        print(f"  后 / after   {one_line(new['answer'])}")
    answers = [answer["answer"] for answer in after["identity_zh"]["answers"]]
    named = sum("模坊" in answer or "mofang" in answer.lower() for answer in answers)
    betrayed = sum(any(name in answer for name in BASE_NAMES) for answer in answers)
    evals = [row["eval_loss"] for row in read("show.json")["metrics"] if "eval_loss" in row]
    bits = [score["text_zh"]["value"] for score in (before, after)]
    common = [score["common_zh"]["value"] for score in (before, after)]
    sources = read("kb.json")["sources"]

    rows = [
        ("自称模坊 / names 模坊", f"{count(before)} → {named}", "≥ 8 / 10", named >= 8),
        ("提到底座的名字 / names its base", f"{betrayed}", "0", betrayed == 0),
        (
            "留出样例的损失 / held-out loss",
            f"{evals[0]:.3f} → {evals[-1]:.3f} ({evals[-1] / evals[0] - 1:+.0%})",
            "≤ −20 %",
            evals[-1] <= 0.8 * evals[0],
        ),
        (
            "通用中文的比特/字节 / bits per byte",
            f"{bits[0]:.3f} → {bits[1]:.3f} ({bits[1] / bits[0] - 1:+.1%})",
            "≤ +5 %",
            bits[1] <= 1.05 * bits[0],
        ),
        ("常识题 / common questions", f"{common[0]:.0%} → {common[1]:.0%}", "–", True),
        ("知识库回答的来源 / sources", f"{len(sources)}", "≥ 1", len(sources) >= 1),
        ("用时 / time", f"{options.seconds} s", f"≤ {LIMIT_S} s", options.seconds <= LIMIT_S),
    ]
    print()
    for name, value, goal, kept in rows:
        print(f"{'✓' if kept else '✗'} {name}: {value}  [{goal}]")
    return 0 if all(kept for *_, kept in rows) else 1


def one_line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 60 else line[:60] + "…"


def count(scores: dict) -> int:
    return sum("模坊" in answer["answer"] for answer in scores["identity_zh"]["answers"])


if __name__ == "__main__":
    sys.exit(main())
