"""Chinese text in a terminal: where a line may break, and what fits.

rich breaks at spaces only, so a Chinese sentence after an English word would start a new line of its own, and a full
stop could begin a line. Chinese breaks between characters, except before closing and after opening marks (JIS X 4051
calls it kinsoku). Knows nothing of Markdown.
"""

import re

from rich.cells import cell_len, chop_cells, set_cell_size
from rich.console import Console, JustifyMethod, OverflowMethod
from rich.containers import Lines
from rich.text import Text

_WIDE = (
    "\u1100-\u115f\u2e80-\ua4cf\uac00-\ud7a3\uf900-\ufaff\ufe30-\ufe6f\uff01-\uff60\uffe0-\uffe6"
    "\U0001f300-\U0001f64f\U0001f680-\U0001f6ff\U0001f900-\U0001faff\U00020000-\U0003fffd"
)
"""Characters two cells wide between which a line may break (Unicode's EastAsianWidth.txt, W and F)."""
_OPEN = "（《〈「『【〔〖［｛“‘(\\[{"
_CLOSE = "，。、；：？！）》〉」』】〕〗］｝”’…—·％,.;:?!)\\]}%"
_JOINED = "(?:[\ufe00-\ufe0f\u20e3\U0001f3fb-\U0001f3ff]|\u200d.)*"
JOINER = "\u200d"
_UNIT = re.compile(rf"(?:[{_OPEN}]*(?:(?![{_CLOSE}])[{_WIDE}]{_JOINED}|[^\s{_WIDE}{_OPEN}]+)[{_CLOSE}]*|\S)\s*|\s+")
"""What is not torn apart: one Chinese character or one Latin word, with the marks that must not leave it."""


def line_breaks(text: str, width: int) -> list[int]:
    """Offsets at which to break one line of `text` so that each piece fits `width` cells, its last spaces apart."""
    breaks: list[int] = []
    used = 0
    for match in _UNIT.finditer(text):
        unit, start = match.group(), match.start()
        needed = cell_len(unit.rstrip())
        if used and used + needed > width:
            breaks.append(start)
            used = 0
        if needed > width:
            pieces = chop_cells(unit.rstrip(), width)
            for piece in pieces[:-1]:
                start += len(piece)
                breaks.append(start)
            used = cell_len(pieces[-1]) + len(unit) - len(unit.rstrip())
        else:
            used += cell_len(unit)
    return breaks


def shorten(text: str, width: int) -> str:
    """`text` on one line of at most `width` cells, with an ellipsis where it was cut."""
    line = " ".join(text.split())
    return line if cell_len(line) <= width else set_cell_size(line, width - 1).rstrip() + "…"


class ChineseText(Text):
    """rich's Text, wrapped by `line_breaks`."""

    def wrap(
        self,
        console: Console,
        width: int,
        *,
        justify: JustifyMethod | None = None,
        overflow: OverflowMethod | None = None,
        tab_size: int = 8,
        no_wrap: bool | None = None,
    ) -> Lines:
        if no_wrap or self.no_wrap:
            return super().wrap(console, width, justify=justify, overflow=overflow, tab_size=tab_size, no_wrap=True)
        lines = Lines()
        for line in self.split(allow_blank=True):
            # A joiner that joins nothing (half an emoji of a streamed answer): rich counts cells wrong, or raises.
            line = line[len(line.plain) - len(line.plain.lstrip(JOINER)) :]
            if "\t" in line:
                line.expand_tabs(tab_size)
            pieces = line.divide(line_breaks(line.plain, width))
            for piece in pieces:
                piece.rstrip_end(width)
            pieces.justify(console, width, justify=justify or self.justify or "left", overflow="fold")
            lines.extend(pieces)
        return lines
