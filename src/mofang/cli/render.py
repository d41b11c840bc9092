"""What the commands share when they show something: consoles, JSON, tables, sizes, and the progress of long work.

Results go to standard output; progress and notes go to standard error, so that a pipe carries results only. Nothing
here knows a gateway or a model. rich is imported when something is shown, so that `mofang --help` stays quick.
"""

import difflib
import json
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any

from mofang.strings import say

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

SECONDS_BETWEEN_LINES = 5.0
"""How often progress is written where it cannot be drawn (a log, a pipe)."""


def out() -> "Console":
    """Standard output, as it is now (tests and pipes exchange it)."""
    from rich.console import Console

    return Console(file=sys.stdout, highlight=False, emoji=False)


def err() -> "Console":
    """Standard error: notes, progress, questions."""
    from rich.console import Console

    return Console(file=sys.stderr, highlight=False, emoji=False)


def show(*lines: "RenderableType") -> None:
    """Write results. Strings are taken as they are: brackets in a name are not markup."""
    out().print(*lines, sep="\n", markup=False, soft_wrap=all(isinstance(line, str) for line in lines))


def note(sentence: str, style: str = "dim") -> None:
    """Write a remark beside the result."""
    err().print(sentence, style=style, markup=False, soft_wrap=True)


def warn(message: str, hint: str = "") -> None:
    """Something went wrong that does not end the program: the message, and what to do below it."""
    note(message, style="red")
    if hint:
        note(hint, style="yellow")


def show_json(value: Any) -> None:
    """One JSON document on standard output, and nothing else."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False, indent=2) + "\n")
    sys.stdout.flush()


# ---- quantities ----


def size(n_bytes: float) -> str:
    """Decimal, as disks and hubs count: "491 MB", "4.68 GB"."""
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        value = n_bytes / scale
        # 999.6 MB would round to "1000 MB", so the next unit begins a little earlier.
        if value >= 0.9995:
            return f"{value:.2f} {unit}" if value < 9.995 else f"{value:.0f} {unit}"
    return f"{n_bytes:.0f} B"


def count(number: float) -> str:
    """Parameters as people say them: "494M", "7.6B"."""
    for unit, scale in (("T", 1e12), ("B", 1e9), ("M", 1e6)):
        if number >= scale * 0.9995:
            return f"{number / scale:.3g}{unit}"
    return f"{number:,.0f}"


def clock(seconds: float) -> str:
    """Minutes and seconds, hours when there are any: "0:07", "1:02:03"."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def amount(number: float, unit: str) -> str:
    """A number with its unit as the progress events name it; bytes get a readable one."""
    if unit == "bytes":
        return size(number)
    return f"{number:,.0f} {word('unit', unit)}".rstrip()


def word(group: str, name: str) -> str:
    """A stage or unit in the reader's language. Third parties bring their own, which are shown as they are."""
    try:
        return say(f"cli.{group}_{name}")
    except KeyError:
        return name


def progress_words(progress: Mapping[str, Any]) -> tuple[str, str]:
    """The stage, and the numbers: done of total, rate, time left. From a `Progress` as JSON."""
    stage, unit = word("stage", str(progress.get("stage") or "")), str(progress.get("unit") or "")
    done, total, rate = progress.get("done") or 0, progress.get("total") or 0, progress.get("rate") or 0
    parts = []
    if total:
        parts.append(f"{size(done) if unit == 'bytes' else f'{done:,.0f}'} / {amount(total, unit)}")
    elif done:
        parts.append(amount(done, unit))
    if rate:
        parts.append(f"{amount(rate, unit)}/s" if unit == "bytes" or rate >= 10 else f"{rate:.1f}/s")
    left = progress.get("seconds_left")
    if left is None and rate and done > total * 0.02:  # a guess from less is none
        left = max(0.0, total - done) / rate if total else None
    if left is not None:
        parts.append(say("cli.time_left", time=clock(float(left))))
    return stage, " · ".join(parts)


def nearest(name: str, known: Iterable[str]) -> str:
    """The known name that is most like `name`; "" when none is."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return close[0] if close else ""


class ProgressBar:
    """A bar on standard error when that is a terminal, else a line now and then. A context manager."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._bar: Any = None
        self._last_line = 0.0
        self._last_stage = ""

    def __enter__(self) -> "ProgressBar":
        console = err()
        if console.is_terminal:
            from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

            self._bar = Progress(
                SpinnerColumn(),
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=20),
                TextColumn("{task.fields[numbers]}", markup=False),
                console=console,
                transient=True,
            )
            self._bar.start()
            self._task = self._bar.add_task(self._title, total=None, numbers="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def say(self, sentence: str) -> None:
        """A remark in the course of the work, which stays above the bar."""
        if self._bar is not None:
            self._bar.console.print(sentence, style="yellow", markup=False)
        else:
            note(sentence)

    def update(self, progress: Mapping[str, Any]) -> None:
        """Show a `Progress` as JSON."""
        from mofang.cli.wrap import shorten

        stage, numbers = progress_words(progress)
        detail = str(progress.get("detail") or "")
        if self._bar is not None:
            label = shorten(" ".join(part for part in (stage or self._title, detail) if part), 28)
            self._bar.update(
                self._task,
                description=label,
                total=progress.get("total") or None,
                completed=progress.get("done") or 0,
                numbers=numbers,
            )
            return
        now = time.monotonic()
        if stage != self._last_stage or now - self._last_line >= SECONDS_BETWEEN_LINES:
            self._last_stage, self._last_line = stage, now
            note(" · ".join(part for part in (self._title, stage, detail, numbers) if part), style="")


@contextmanager
def working(sentence: str) -> Iterator[None]:
    """Say what takes a moment: a spinner that vanishes, or nothing where it cannot be drawn."""
    console = err()
    if not console.is_terminal:
        yield
        return
    from rich.text import Text

    with console.status(Text(sentence, style="dim")):
        yield


# ---- tables ----


def table(columns: Sequence[tuple[str, str]], rows: Iterable[Sequence[Any]]) -> "RenderableType":
    """`columns` are (heading, "left" | "right"). The first column takes what the others leave; nothing is cut off."""
    from rich import box
    from rich.table import Table

    from mofang.cli.wrap import ChineseText

    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold", expand=False)
    for heading, align in columns:
        number = align == "right"
        grid.add_column(heading, justify="right" if number else "left", no_wrap=number)
    for row in rows:
        grid.add_row(*(ChineseText(value) if isinstance(value, str) else value for value in row))
    return grid


def facts(pairs: Iterable[tuple[str, str]]) -> "RenderableType":
    """Names and values below each other."""
    from rich.table import Table

    from mofang.cli.wrap import ChineseText

    grid = Table(box=None, show_header=False, pad_edge=False)
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column()
    for name, value in pairs:
        grid.add_row(name, ChineseText(value))
    return grid


def confirm(question: str) -> bool:
    """Ask on standard error; only an explicit yes counts. Raises Invalid when nobody can be asked."""
    from mofang.errors import Invalid

    if not sys.stdin.isatty():
        raise Invalid("cli.needs_yes", question=question)
    err().print(f"{question} [y/N] ", end="", markup=False)
    return sys.stdin.readline().strip().lower() in ("y", "yes", "是", "好")
