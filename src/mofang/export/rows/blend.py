"""A new row as a mixture of old ones, the same for the embedding and for a head of its own."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

Lines = Callable[[], Iterator[str]]
Tell = Callable[[int], None]


@dataclass(frozen=True, eq=False, slots=True)
class Blend:
    """Old tokens and their shares, which are above 0 and add up to 1; one Blend may stand for many new tokens."""

    ids: Sequence[int]
    shares: Any
    """(len(ids),) float32."""


def evenly(ids: Sequence[int]) -> Blend:
    """Each of them as much."""
    return Blend(ids, torch.full((len(ids),), 1 / len(ids)))


def mixed(weight: torch.Tensor, blends: Sequence[Blend]) -> torch.Tensor:
    """(len(blends), n_embd) in the matrix's type, computed in float32."""
    made: dict[int, torch.Tensor] = {}
    for blend in blends:
        if id(blend) not in made:
            made[id(blend)] = (blend.shares[:, None] * weight[blend.ids].float()).sum(0)
    return torch.stack([made[id(blend)] for blend in blends]).to(weight.dtype)
