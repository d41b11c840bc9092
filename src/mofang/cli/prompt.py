"""The line that a person types at: prompt_toolkit, with history, several lines, and completion of /commands by Tab.

Enter sends; Alt+Enter, or Enter after a "\\", begins another line. Ctrl-C empties the line; once more, or Ctrl-D,
leaves. Knows nothing of what is typed.
"""

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.buffer import Buffer
from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document
from prompt_toolkit.formatted_text import FormattedText
from prompt_toolkit.history import FileHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

from mofang.strings import say

Words = Callable[[str], Iterable[str]]
"""What may follow: given the text before the word that is being typed, the words that fit there."""


@contextmanager
def unseen_keys() -> Iterator[None]:
    """Keys typed while an answer is drawn do not appear in it; they wait for the next prompt. Ctrl-C still works."""
    try:
        import termios
    except ImportError:  # Windows shows keys only where they are read
        yield
        return
    before = termios.tcgetattr(sys.stdin)
    quiet = [*before[:3], before[3] & ~(termios.ECHO | termios.ICANON), *before[4:]]
    termios.tcsetattr(sys.stdin, termios.TCSADRAIN, quiet)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


class _Words(Completer):
    def __init__(self, words: Words) -> None:
        self._words = words

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        text = document.text_before_cursor
        if not text.startswith("/") or "\n" in text:
            return
        before, _, word = text.rpartition(" ")
        for candidate in self._words(before):
            if candidate.startswith(word):
                yield Completion(candidate, start_position=-len(word))


class Prompt:
    """`ask()` returns what was typed. Raises EOFError when the reader leaves."""

    def __init__(self, history: Path, words: Words) -> None:
        history.touch(mode=0o600)  # what is typed here is nobody else's business
        self._armed = False
        """Ctrl-C was pressed on an empty line: once more leaves."""
        self._session: PromptSession[str] = PromptSession(
            history=FileHistory(str(history)),
            completer=_Words(words),
            complete_while_typing=False,
            multiline=True,
            prompt_continuation="  ",
            key_bindings=self._keys(),
            placeholder=self._placeholder,
            reserve_space_for_menu=4,
        )
        self._session.default_buffer.on_text_changed += self._typed

    def ask(self) -> str:
        return self._session.prompt("› ")

    def _typed(self, buffer: Buffer) -> None:
        if buffer.text:
            self._armed = False

    def _placeholder(self) -> FormattedText:
        return FormattedText([("fg:ansibrightblack", say("cli.leave_again" if self._armed else "cli.placeholder"))])

    def _keys(self) -> KeyBindings:
        keys = KeyBindings()

        @keys.add("enter")
        def send(event: KeyPressEvent) -> None:
            buffer = event.current_buffer
            state = buffer.complete_state
            if state is not None and state.current_completion is not None:
                buffer.apply_completion(state.current_completion)
            elif buffer.document.is_cursor_at_the_end and buffer.text.endswith("\\"):
                buffer.delete_before_cursor()
                buffer.insert_text("\n")
            elif buffer.text.strip():
                buffer.validate_and_handle()

        @keys.add("escape", "enter")
        def another_line(event: KeyPressEvent) -> None:
            event.current_buffer.insert_text("\n")

        @keys.add("c-c")
        @keys.add("<sigint>")
        def interrupt(event: KeyPressEvent) -> None:
            if not event.current_buffer.text and self._armed:
                event.app.exit(exception=EOFError)
                return
            event.current_buffer.reset()
            self._armed = True
            event.app.invalidate()

        return keys
