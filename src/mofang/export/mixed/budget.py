"""A type for every matrix within a size, so that together they lose the least.

What single matrices lose is small and adds up, so the least sum is found by one price for a byte: each matrix takes the
type whose loss and price together are least, and the price is the lowest at which all fit. What is then left over goes to
whoever gains the most by it. The sum is the least possible up to what one matrix could still gain.
"""

from collections.abc import Mapping
from dataclasses import dataclass

STEPS = 200
"""Halvings of the range of prices."""


@dataclass(frozen=True, slots=True)
class Option:
    """What a matrix may become."""

    type: str
    n_bytes: int
    loss: float


Table = Mapping[str, list[Option]]
"""Matrix → its options."""


def bounds(table: Table) -> tuple[int, int]:
    """Bytes of all matrices at their smallest and their largest."""
    sizes = [[option.n_bytes for option in options] for options in table.values()]
    return sum(map(min, sizes)), sum(map(max, sizes))


def choose(table: Table, n_bytes: int) -> dict[str, Option]:
    """The options that take at most `n_bytes` together. Raises ValueError when the smallest take more."""
    if n_bytes < bounds(table)[0]:
        raise ValueError(f"at least {bounds(table)[0]} bytes, not {n_bytes}")
    low, high = 1e-30, 1e30
    for _ in range(STEPS):
        price = (low * high) ** 0.5
        if size(_at(table, price)) > n_bytes:
            low = price
        else:
            high = price
    return _filled(table, _at(table, high), n_bytes)


def size(chosen: Mapping[str, Option]) -> int:
    return sum(option.n_bytes for option in chosen.values())


def loss(chosen: Mapping[str, Option]) -> float:
    return sum(option.loss for option in chosen.values())


def _at(table: Table, price: float) -> dict[str, Option]:
    return {
        name: min(options, key=lambda option: (option.loss + price * option.n_bytes, option.n_bytes))
        for name, options in table.items()
    }


def _filled(table: Table, chosen: dict[str, Option], n_bytes: int) -> dict[str, Option]:
    """Use up what is left, the largest gain for a byte first."""
    while True:
        left = n_bytes - size(chosen)
        steps = [
            ((chosen[name].loss - option.loss) / max(1, option.n_bytes - chosen[name].n_bytes), name, option)
            for name, options in table.items()
            for option in options
            if option.n_bytes - chosen[name].n_bytes <= left and option.loss < chosen[name].loss
        ]
        if not steps:
            return chosen
        _, name, best = max(steps, key=lambda step: step[:2])
        chosen = {**chosen, name: best}
