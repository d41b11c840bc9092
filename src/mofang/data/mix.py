"""Which examples are learned and how often: several sources with weights, and a share that is held out.

What is held out follows from the rows themselves, not from their order, file or seed: the same row is on the same side
in every run, with its copies, and all examples of a row (a pair, the stretches of a document) stay together.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mofang.data.cache import Prepared
from mofang.data.encode import Example
from mofang.data.made import Made

Places = NDArray[np.int64]
"""(n, 2): number of the source, number of the example in it."""


class Chosen(Made[Example]):
    """Examples of several sources as one sequence; an example may be in it several times."""

    def __init__(self, sources: Sequence[Prepared], places: Places) -> None:
        self.sources = sources
        self.places = places

    def __len__(self) -> int:
        return len(self.places)

    def make(self, number: int) -> Example:
        source, place = self.places[number].tolist()
        found: Example = self.sources[source][place]
        return found

    def column(self, name: str) -> NDArray[np.int64]:
        """A column of cache.INDEX for every example: "length", "supervised"…"""
        values = np.empty(len(self), np.int64)
        for number, source in enumerate(self.sources):
            here = self.places[:, 0] == number
            values[here] = source.entries[name][self.places[here, 1]]
        return values


def everything(sources: Sequence[Prepared]) -> Chosen:
    """All examples of all sources, one source after the other."""
    parts = [_places(number, np.arange(len(source))) for number, source in enumerate(sources)]
    return Chosen(sources, np.concatenate(parts) if parts else np.empty((0, 2), np.int64))


def hold_out(chosen: Chosen, share: float, *, whole_rows: bool = True) -> tuple[Chosen, Chosen]:
    """(the rest, about `share` of the examples: the rows with the lowest digests).

    `whole_rows` False takes stretches out of the midst of documents, for a text that is one document alone.
    """
    digests = _digests(chosen) if whole_rows else _spread(_digests(chosen) + chosen.places[:, 1].astype(np.uint64))
    found, counts = np.unique(digests, return_counts=True)
    n = int(np.searchsorted(np.cumsum(counts), round(len(chosen) * share), side="right"))
    if n == 0 and share and len(found) > 1 and round(len(chosen) * share):
        n = 1  # a first row of many examples
    held = np.isin(digests, found[:n])
    return Chosen(chosen.sources, chosen.places[~held]), Chosen(chosen.sources, chosen.places[held])


def weigh(chosen: Chosen, weights: Sequence[float]) -> Chosen:
    """Each source's examples as often as its weight says: 2 is twice each, 0.5 half of them, 1.5 all and half again.

    A part of a source is the same in every epoch and run. Raises nothing; `weights` are as many as sources.
    """
    digests = _digests(chosen)
    parts = []
    for number, weight in enumerate(weights):
        here = chosen.places[:, 0] == number
        places = chosen.places[here]
        whole, part = divmod(weight, 1)
        parts += [places] * int(whole)
        if part and len(places):
            found, counts = np.unique(_spread(digests[here]), return_counts=True)
            n = int(np.searchsorted(np.cumsum(counts), part * len(places), side="left")) + 1
            parts.append(places[np.isin(_spread(digests[here]), found[:n])])
    return Chosen(chosen.sources, np.concatenate(parts) if parts else chosen.places[:0])


def _digests(chosen: Chosen) -> NDArray[np.uint64]:
    return chosen.column("digest").view(np.uint64)


def _spread(digests: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Another order than hold_out's: what has the lowest digests is held out already."""
    return digests * np.uint64(0x9E3779B97F4A7C15)  # an odd number: one to one, modulo 2^64


def _places(source: int, numbers: NDArray[np.int64]) -> Places:
    return np.stack([np.full(len(numbers), source, np.int64), numbers.astype(np.int64)], axis=1)
