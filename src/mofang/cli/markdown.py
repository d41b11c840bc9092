"""Markdown in the terminal while it is still being written.

`MarkdownStream` prints a block for good as soon as no later text can change it, and redraws only the block that is
still open. So nothing flickers, the cost of a piece does not grow with the answer, and what stands on the screen at
the end is what rendering the whole text at once would print (a test compares the two). Knows nothing of models.

Differences from rich's own rendering: Chinese wraps between characters, a single line break stays one (models write
verses and addresses), HTML is shown as it was written instead of vanishing, and a link shows where it leads.
"""

import time
from copy import copy
from typing import Any, ClassVar

from markdown_it import MarkdownIt
from markdown_it.token import Token
from rich.console import Console, ConsoleOptions, JustifyMethod, RenderResult
from rich.live import Live
from rich.markdown import Heading, MarkdownContext, MarkdownElement, Paragraph, TableDataElement
from rich.markdown import Markdown as RichMarkdown
from rich.segment import Segment

from mofang.cli.wrap import ChineseText

REDRAW_S = 0.08
"""At most about twelve redraws a second: drawing must not take the processor from the model."""


class _Paragraph(Paragraph):
    def on_enter(self, context: MarkdownContext) -> None:
        super().on_enter(context)
        self.text = ChineseText(justify="left")


class _Heading(Heading):
    LEVEL_ALIGN: ClassVar[dict[str, JustifyMethod]] = {**Heading.LEVEL_ALIGN, "h1": "left"}


class _Cell(TableDataElement):
    def __init__(self, justify: JustifyMethod) -> None:
        super().__init__(justify)
        self.content = ChineseText("", justify=justify)


def _parser() -> MarkdownIt:
    # Without reference definitions a block's look depends on nothing below it, and a "[1]: …" does not vanish.
    return MarkdownIt().enable(["strikethrough", "table"]).disable(["html_block", "html_inline", "reference"])


class Markdown(RichMarkdown):
    """`markup` rendered as this module's docstring says: one block below the other, a blank line between them."""

    elements: ClassVar[dict[str, type[MarkdownElement]]] = {
        **RichMarkdown.elements,
        "paragraph_open": _Paragraph,
        "heading_open": _Heading,
        "td_open": _Cell,
        "th_open": _Cell,
    }

    def __init__(self, markup: str) -> None:
        super().__init__("", hyperlinks=False, code_theme="ansi_dark")
        self.markup = markup
        self.parsed = _parser().parse(markup)
        for token in self.parsed:
            for child in token.children or ():
                if child.type == "softbreak":
                    child.type = "hardbreak"

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        tokens, begin, gap = self.parsed, 0, False
        for index, token in enumerate(tokens):
            if token.level == 0 and token.nesting <= 0:
                if gap:
                    yield Segment.line()
                yield from self._block(tokens[begin : index + 1], console, options)
                begin, gap = index + 1, leaves_gap(token)

    def _block(self, tokens: list[Token], console: Console, options: ConsoleOptions) -> RenderResult:
        one = copy(self)
        one.parsed = tokens
        for index, part in enumerate(RichMarkdown.__rich_console__(one, console, options)):
            # rich puts a blank line above a list or quote, even when nothing stands before it.
            if index or part != Segment.line():
                yield part


def leaves_gap(last: Token) -> bool:
    """Whether a blank line belongs below the block that ends with this token. A rule brings its own."""
    return last.type != "hr"


class _Tail:
    """The last `height` lines of the open block, so that the region that is redrawn always fits the screen."""

    def __init__(self, parts: list[Any], height: int) -> None:
        self.parts = parts
        self.height = height

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        lines: list[list[Segment]] = []
        for part in self.parts:
            lines += console.render_lines(part, options.update(height=None), pad=False)
        for index, line in enumerate(lines[-self.height :]):
            if index:
                yield Segment.line()
            yield from line


class MarkdownStream:
    """`start`, feed pieces of text, then `close`."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._open = ""
        self._gap = False
        """The block before was printed and leaves a blank line behind it."""
        self._drawn_at = 0.0
        self._dirty = False
        self._parser = _parser()
        self._live = Live(console=console, auto_refresh=False, transient=True, vertical_overflow="visible")

    def start(self) -> "MarkdownStream":
        self._live.start()
        return self

    def feed(self, piece: str) -> None:
        self._open += piece
        self._dirty = True
        self.tick()

    def tick(self) -> None:
        """Draw what is new, if the last drawing was long enough ago."""
        now = time.monotonic()
        if self._dirty and now - self._drawn_at >= REDRAW_S:
            self._print_closed()
            self._live.update(self._tail(), refresh=True)
            self._drawn_at = now
            self._dirty = False

    def close(self) -> None:
        """Print what is still open, for good. Safe to call twice."""
        if self._live.is_started:
            self._live.update("")
            self._live.stop()
        if self._open.strip():
            self._console.print(*self._blocks(self._open), sep="\n")
        self._open = ""

    def _blocks(self, markup: str) -> list[Any]:
        return ["", Markdown(markup)] if self._gap else [Markdown(markup)]

    def _tail(self) -> Any:
        if not self._open.strip():
            return ""
        return _Tail(self._blocks(self._open), max(1, self._console.height - 2))

    def _print_closed(self) -> None:
        """Print the blocks that are followed by another one: a parser that reads line by line never changes those."""
        whole_lines = self._open[: self._open.rfind("\n") + 1]
        if not whole_lines:
            return
        blocks = [token for token in self._parser.parse(whole_lines) if token.level == 0 and token.map]
        if len(blocks) < 2:
            return
        begin = blocks[-1].map[0] if blocks[-1].map else 0
        lines = self._open.split("\n")
        closed, self._open = "\n".join(lines[:begin]) + "\n", "\n".join(lines[begin:])
        printed = self._blocks(closed)
        self._gap = leaves_gap(blocks[-2])
        self._live.update(self._tail())
        self._console.print(*printed, sep="\n")
