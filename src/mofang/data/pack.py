"""Examples of one step side by side in rows: fewer, fuller matrix products. No example sees another (train/attention).

Best fit, longest first: the fullest row that still has room (as trl's "bfd"). Sorting happens within one step only,
so that packing changes nothing that is learned, only how fast.
"""

from collections.abc import Sequence


def pack(lengths: Sequence[int], row_tokens: int) -> list[list[int]]:
    """Numbers of the examples in each row. A row holds at most `row_tokens`, or one longer example alone."""
    rows: list[list[int]] = []
    room: list[int] = []
    for number in sorted(range(len(lengths)), key=lambda number: (-lengths[number], number)):
        length = lengths[number]
        fitting = [row for row, left in enumerate(room) if left >= length]
        if fitting:
            row = min(fitting, key=lambda row: (room[row], row))
            rows[row].append(number)
            room[row] -= length
        else:
            rows.append([number])
            room.append(row_tokens - length)
    return rows
