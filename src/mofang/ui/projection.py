"""Vectors as a flat map: the two directions in which they differ most (principal components), and how alike they are.

Source: Jolliffe, Principal Component Analysis, 2002, section 3.5 (through the singular values of the centred rows).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Points = list[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Flat:
    """`points` within 0 to 1 in both directions, one scale for both; `kept` of the variance, 0 to 1, is in them."""

    points: Points
    kept: float


def flat(vectors: Sequence[Sequence[float]]) -> Flat:
    """(n, d) → n points. A direction's sign is arbitrary: the entry that is largest is made positive."""
    rows = np.asarray(vectors, np.float64)
    centred = rows - rows.mean(axis=0)
    left, sizes, _ = np.linalg.svd(centred, full_matrices=False)
    places = np.zeros((len(rows), 2))
    n = min(2, len(sizes))
    places[:, :n] = left[:, :n] * sizes[:n]
    for column in range(n):
        if places[np.abs(places[:, column]).argmax(), column] < 0:
            places[:, column] *= -1
    total = float((sizes**2).sum())
    return Flat(_within(places), float((sizes[:n] ** 2).sum()) / total if total > 1e-18 else 1.0)


def _within(places: NDArray[np.float64]) -> Points:
    low, high = places.min(axis=0), places.max(axis=0)
    width = float((high - low).max())
    shifted = (places - (low + high) / 2) / width + 0.5 if width > 1e-9 else np.full_like(places, 0.5)
    return [(float(x), float(y)) for x, y in shifted]


def cosines(vectors: Sequence[Sequence[float]]) -> list[list[float]]:
    """How alike each two are: 1 for the same direction, 0 for none in common."""
    rows = np.asarray(vectors, np.float64)
    unit = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.finfo(np.float64).tiny)
    return [[float(value) for value in row] for row in np.clip(unit @ unit.T, -1, 1)]


def pairs(likeness: Sequence[Sequence[float]]) -> list[tuple[int, int, float]]:
    """Each two, the most alike first."""
    found = [(one, other, row[other]) for one, row in enumerate(likeness) for other in range(one + 1, len(row))]
    return sorted(found, key=lambda pair: -pair[2])
