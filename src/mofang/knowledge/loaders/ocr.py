"""Text from pictures of pages, by RapidOCR (PaddleOCR's small models under onnxruntime; its wheel brings them along).

Only this file may import it [ocr]. Chinese of both scripts and Latin letters; one column: what stands side by side is
read as one line.
"""

import logging
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.uint8]
"""(height, width, 3), blue green red."""
Words = tuple[str, tuple[float, float, float, float]]
"""A line's text, and its left, top, right, bottom in pixels."""


class RapidReader:
    """Loads the models once (about a second); `read` takes about five seconds of processor time for a full page."""

    def __init__(self) -> None:
        from rapidocr import RapidOCR

        # Its level is a global of the library's own; "error" keeps the paths of its models out of our log.
        logging.getLogger("RapidOCR").setLevel(logging.ERROR)
        self._engine = RapidOCR(params={"Global.log_level": "error"})

    def read(self, picture: Picture) -> list[Words]:
        """Lines from the top to the bottom."""
        found: Any = self._engine(picture)
        if found.boxes is None or not found.txts:
            return []
        boxes = np.asarray(found.boxes, dtype=np.float64)  # (n, 4 corners, x and y)
        edges = np.concatenate([boxes.min(axis=1), boxes.max(axis=1)], axis=1)
        pieces = [(text, tuple(map(float, edge))) for text, edge in zip(found.txts, edges, strict=True) if text.strip()]
        return list(_lines(pieces))  # type: ignore[arg-type]


def _lines(pieces: Sequence[Words]) -> Iterator[Words]:
    """Pieces whose middles lie at one height are one line, from left to right."""
    line: list[Words] = []
    for piece in sorted(pieces, key=lambda one: one[1][1] + one[1][3]):
        if line and _middle(piece) - _middle(line[0]) > 0.4 * (line[0][1][3] - line[0][1][1]):
            yield _joined(line)
            line = []
        line.append(piece)
    if line:
        yield _joined(line)


def _middle(piece: Words) -> float:
    return (piece[1][1] + piece[1][3]) / 2


def _joined(line: Sequence[Words]) -> Words:
    ordered = sorted(line, key=lambda one: one[1][0])
    lefts, tops, rights, bottoms = zip(*(box for _, box in ordered), strict=True)
    return " ".join(text.strip() for text, _ in ordered), (min(lefts), min(tops), max(rights), max(bottoms))
