"""Examples side by side in rows: fewer, fuller matrix products. No example sees another (train/attention).

Best fit, longest first: the fullest row that still has room (as trl's "bfd"). The loop packs within each step, so that
packing changes nothing that is learned, only how fast.
"""

import heapq
from bisect import bisect_left, insort
from collections.abc import Sequence


def pack(lengths: Sequence[int], row_tokens: int) -> list[list[int]]:
    """Numbers of the examples in each row. A row holds at most `row_tokens`, or one longer example alone.

    Of rows that are equally full the first one is taken. n log n: a million examples take seconds.
    """
    rows: list[list[int]] = []
    rooms: list[int] = []
    """How much room the rows have that have any, each figure once, ascending."""
    having: dict[int, list[int]] = {}
    """Room → the rows that have it, as a heap."""
    for number in sorted(range(len(lengths)), key=lambda number: (-lengths[number], number)):
        length = lengths[number]
        at = bisect_left(rooms, length)
        if at < len(rooms):
            room = rooms[at]
            row = heapq.heappop(having[room])
            if not having[room]:
                del having[room], rooms[at]
            rows[row].append(number)
        else:
            room, row = row_tokens, len(rows)
            rows.append([number])
        left = room - length
        if left > 0:
            if left not in having:
                insort(rooms, left)
                having[left] = []
            heapq.heappush(having[left], row)
    return rows
