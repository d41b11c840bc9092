"""How fast a pull goes: rates over the last seconds, told at most ten times a second; and sizes for people."""

import time
from collections import deque
from collections.abc import Callable

from mofang.messages import Progress

Report = Callable[[Progress], None]

WINDOW_S = 5.0
"""Seconds over which a rate is taken: long enough to be calm, short enough to follow a connection that slows."""
INTERVAL_S = 0.1


class Meter:
    """Turns "done so far" into Progress with a rate. One meter a stage; `stage` is a name of strings' stage_*."""

    def __init__(self, report: Report, stage: str, total: int = 0, *, unit: str = "bytes", detail: str = "") -> None:
        self.report = report
        self.stage = stage
        self.total = total
        self.unit = unit
        self.detail = detail
        self._seen: deque[tuple[float, int]] = deque()
        self._told = 0.0

    def at(self, done: int, *, always: bool = False) -> None:
        """`done` of all so far. A step back (a download begun anew) starts the rate anew."""
        now = time.monotonic()
        if self._seen and done < self._seen[-1][1]:
            self._seen.clear()
        if not always and self._seen and now - self._told < INTERVAL_S and done != self.total:
            return
        self._seen.append((now, done))
        while len(self._seen) > 2 and now - self._seen[0][0] > WINDOW_S:
            self._seen.popleft()
        self._told = now
        first_time, first_done = self._seen[0]
        passed = now - first_time
        rate = (done - first_done) / passed if passed > INTERVAL_S else 0.0
        self.report(Progress(self.stage, done, self.total, self.unit, rate, self.detail))


def notice(report: Report, sentence: str) -> None:
    """Say something in the course of the work: a source passed over, a default skipped."""
    report(Progress("notice", 0, detail=sentence))


def size(n_bytes: float) -> str:
    """Bytes for people, in decimal units as disks and hubs count: "491 MB", "1.12 GB"."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if n_bytes >= factor:
            value = n_bytes / factor
            return f"{value:.2f} {unit}" if value < 10 else f"{value:.0f} {unit}"
    return f"{n_bytes:.0f} B"
