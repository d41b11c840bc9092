"""The child process that reads pictures: `python -m mofang.knowledge.loaders.ocr_child`. Only here is RapidOCR imported.

Reads from standard input: height and width (two unsigned 32-bit integers, little endian), then height × width × 3 bytes
(blue green red). Answers each with a line of JSON: [[text, [left, top, right, bottom]], …], lines from the top to the
bottom. Its first line says {"ready": true}, or {"error": …}. It ends when its input ends, as it does with its parent.
"""

import json
import logging
import os
import struct
import sys
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

import numpy as np

Words = tuple[str, tuple[float, float, float, float]]
"""A line's text, and its left, top, right, bottom in pixels."""
HEADER = struct.Struct("<II")


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever a library prints is not an answer
    try:
        from rapidocr import RapidOCR

        logging.getLogger("RapidOCR").setLevel(logging.ERROR)
        engine = RapidOCR(params={"Global.log_level": "error"})
    except Exception as error:
        print(json.dumps({"error": f"{type(error).__name__}: {error}"}), file=answers, flush=True)
        return
    print(json.dumps({"ready": True}), file=answers, flush=True)
    pictures = sys.stdin.buffer
    while len(header := pictures.read(HEADER.size)) == HEADER.size:
        height, width = HEADER.unpack(header)
        picture = np.frombuffer(_exactly(pictures, height * width * 3), np.uint8).reshape(height, width, 3)
        print(json.dumps(lines(engine(picture)), ensure_ascii=False), file=answers, flush=True)


def _exactly(stream: BinaryIO, n: int) -> bytes:
    data = stream.read(n)
    if len(data) < n:
        sys.exit(0)  # the parent is gone
    return data


def lines(found: Any) -> list[Words]:
    """RapidOCR's output as lines from the top to the bottom."""
    if found.boxes is None or not found.txts:
        return []
    boxes = np.asarray(found.boxes, dtype=np.float64)  # (n, 4 corners, x and y)
    edges = np.concatenate([boxes.min(axis=1), boxes.max(axis=1)], axis=1)
    return list(
        joined([(text, tuple(edge)) for text, edge in zip(found.txts, edges.tolist(), strict=True) if text.strip()])
    )


def joined(pieces: Sequence[Words]) -> Iterator[Words]:
    """Pieces whose middles lie at one height are one line, from left to right."""
    line: list[Words] = []
    for piece in sorted(pieces, key=_middle):
        if line and _middle(piece) - _middle(line[0]) > 0.4 * (line[0][1][3] - line[0][1][1]):
            yield _one(line)
            line = []
        line.append(piece)
    if line:
        yield _one(line)


def _middle(piece: Words) -> float:
    return (piece[1][1] + piece[1][3]) / 2


def _one(line: Sequence[Words]) -> Words:
    ordered = sorted(line, key=lambda one: one[1][0])
    lefts, tops, rights, bottoms = zip(*(box for _, box in ordered), strict=True)
    return " ".join(text.strip() for text, _ in ordered), (min(lefts), min(tops), max(rights), max(bottoms))


if __name__ == "__main__":
    main()
