"""Whether two engines say the same: the distribution of the next token, over a text that both are led along.

The divergence is of the tokens that the first thinks likeliest, one by one, and all others together: never more than
the divergence over the whole vocabulary, and within a thousandth of it, since what is left has next to no weight.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mofang.engine.base import ChatEngine
from mofang.messages import NextToken

N_TOP = 200
MAX_MEAN_KL, MIN_SAME_TOP = 1e-3, 0.99
"""Bounds of "the same": nats, and share of positions with the same likeliest token."""
_LEAST = 1e-12


@dataclass(frozen=True, slots=True)
class Agreement:
    mean_kl: float
    """Kullback-Leibler divergence of the second from the first in nats, averaged over positions."""
    same_top: float
    n_tokens: int

    @property
    def passed(self) -> bool:
        return self.mean_kl <= MAX_MEAN_KL and self.same_top >= MIN_SAME_TOP

    def as_dict(self) -> dict[str, Any]:
        return {name: round(value, 7) for name, value in asdict(self).items()}


async def agreement(
    reference: ChatEngine,
    other: ChatEngine,
    ids: Sequence[int],
    *,
    first: int = 8,
    tell: Callable[[int, int], None] = lambda done, total: None,
) -> Agreement:
    """Compare what both expect at each position of `ids` from `first` on, given all before it."""
    divergences, same = [], 0
    for position in range(first, len(ids)):
        prompt = list(ids[:position])
        theirs, ours = await reference.next_token(prompt, n_top=N_TOP), await other.next_token(prompt, n_top=2 * N_TOP)
        divergences.append(divergence(theirs, ours))
        same += theirs.top[0].token_id == ours.top[0].token_id
        tell(position - first + 1, len(ids) - first)
    return Agreement(sum(divergences) / len(divergences), same / len(divergences), len(divergences))


def divergence(reference: NextToken, other: NextToken) -> float:
    """KL(reference ‖ other) in nats over the tokens that both list, and everything else as one."""
    ours = {candidate.token_id: candidate.logprob for candidate in other.top}
    total, mass, other_mass = 0.0, 0.0, 0.0
    for candidate in reference.top:
        if candidate.token_id in ours:
            probability = math.exp(candidate.logprob)
            total += probability * (candidate.logprob - ours[candidate.token_id])
            mass += probability
            other_mass += math.exp(ours[candidate.token_id])
    rest, other_rest = max(1 - mass, _LEAST), max(1 - other_mass, _LEAST)
    return total + rest * math.log(rest / other_rest)
