"""Which models fit into memory together, and which leave for another. Counts bytes; loads and unloads nothing."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from mofang.platform import Held, Memory

RESERVE_SHARE, MAX_RESERVE = 32, 1 << 30
"""What stays free for everything else on the machine: 1/32 of its memory, at most 1 GiB. A guess, not studied."""


@dataclass(frozen=True, slots=True)
class Guest:
    """A model that is in memory or on its way there."""

    name: str
    needs: int
    """Bytes by the estimate that it was let in with."""
    held: Held
    stays: bool = False
    """It must not leave now: it is in use, or pinned."""
    used_at: float = 0.0

    @property
    def bytes(self) -> int:
        """What it counts for: pages that were promised and not touched yet are taken, too."""
        return max(self.needs, self.held.resident)


def free(memory: Memory, budget: int, guests: Collection[Guest]) -> int:
    """Bytes left for one more; below 0 when more is taken than there is. `budget` 0: by what the machine has free.

    What a guest holds of its own comes back when it leaves; the files that it maps are available all along.
    """
    room = budget or memory.available + sum(guest.held.private for guest in guests) - reserve(memory)
    return room - sum(guest.bytes for guest in guests)


def reserve(memory: Memory) -> int:
    return min(memory.total // RESERVE_SHARE, MAX_RESERVE)


def leavers(needed: int, left: int, guests: Collection[Guest]) -> Sequence[str] | None:
    """Who leaves so that `needed` fit where `left` are free: idle longest first. None: even that is not enough."""
    chosen: list[str] = []
    for guest in sorted((guest for guest in guests if not guest.stays), key=lambda guest: guest.used_at):
        if needed <= left:
            break
        chosen.append(guest.name)
        left += guest.bytes
    return chosen if needed <= left else None
