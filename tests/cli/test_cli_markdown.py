"""What a stream leaves on the screen is what rendering the whole text at once prints, however it was cut."""

import io

import pytest
from cli_fakes import Terminal
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from mofang.cli import markdown
from mofang.cli.markdown import Markdown, MarkdownStream

ANSWER = """# 模坊 MOFANG 使用说明

模坊是一个 Python 工具，把开源大语言模型（open language model）在自己的机器上从头用到尾。支持**量化**与`LoRA`。

床前明月光，
疑是地上霜。

1. 先安装：`pip install mofang`，然后运行 mofang up 就可以在浏览器里看到工作台。
2. 再对话

3. 第三步
   - 内层一
   - 内层二

```python
def 你好(name: str) -> str:

    return f"你好，{name}"
```

---
| 模型 | 大小 | 说明 |
|---|---:|---|
| 千问 | 491 MB | 会说中文的小模型，可以在普通的笔记本电脑上运行 |

<think>不要消失</think>

> 引用：见[文档](https://example.com/a)。

[1]: 这也不要消失

完。🙂
"""


class _Screen(io.StringIO):
    def __init__(self, width: int, height: int) -> None:
        super().__init__()
        self.terminal = Terminal(width, height)

    def write(self, text: str) -> int:
        self.terminal.write(text.replace("\n", "\r\n"))
        return len(text)


def _console(screen: _Screen) -> Console:
    terminal = screen.terminal
    return Console(file=screen, force_terminal=True, width=terminal.width, height=terminal.height, emoji=False)


def _streamed(text: str, cuts: list[int], width: int, height: int) -> str:
    screen = _Screen(width, height)
    stream = MarkdownStream(_console(screen)).start()
    for begin, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
        stream.feed(text[begin:end])
    stream.close()
    return screen.terminal.text()


def _whole(text: str, width: int, height: int) -> str:
    screen = _Screen(width, height)
    _console(screen).print(Markdown(text))
    return screen.terminal.text()


@pytest.fixture(autouse=True)
def _draw_every_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(markdown, "REDRAW_S", 0.0)


@pytest.mark.parametrize(("width", "height"), [(80, 24), (40, 8), (60, 5)])
def test_character_by_character(width: int, height: int) -> None:
    every = list(range(1, len(ANSWER)))
    assert _streamed(ANSWER, every, width, height) == _whole(ANSWER, width, height)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, len(ANSWER)), max_size=30), st.integers(30, 90), st.integers(4, 30))
def test_however_it_is_cut(cuts: list[int], width: int, height: int) -> None:
    assert _streamed(ANSWER, sorted(cuts), width, height) == _whole(ANSWER, width, height)


BLOCKS = ["一段话。\n", "\n", "1. 甲\n", "2", ". 乙\n", "- 丙\n", "  续\n", "```\n", "代码\n", "---\n", "# 题", "\n\n",
          "> 引\n", "|a|b|\n", "|-|-|\n", "    缩进\n", "**粗", "体** ", "\r\n", "文"]  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from(BLOCKS), max_size=25))
def test_whatever_markdown_it_is(pieces: list[str]) -> None:
    text = "".join(pieces)
    ends = [len("".join(pieces[: n + 1])) for n in range(len(pieces) - 1)]
    assert _streamed(text, ends, 50, 12) == _whole(text, 50, 12)


def test_a_single_line_break_stays_and_html_is_shown() -> None:
    shown = _whole(ANSWER, 80, 24)
    assert "床前明月光，\n疑是地上霜。" in shown
    assert "<think>不要消失</think>" in shown
    assert "[1]: 这也不要消失" in shown
    assert "文档 (https://example.com/a)" in shown


def test_closed_blocks_are_printed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[str] = []
    real = Markdown.__init__

    def spy(self: Markdown, markup: str) -> None:
        drawn.append(markup)
        real(self, markup)

    monkeypatch.setattr(Markdown, "__init__", spy)
    text = "".join(f"第 {n} 段，说一些话。\n\n" for n in range(200))
    _streamed(text, list(range(20, len(text), 20)), 60, 20)
    # Rendering the whole answer at every piece would be about a hundred times this.
    assert sum(map(len, drawn)) < 8 * len(text)


def test_the_cursor_is_shown_again(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(force_terminal=True, width=40)
    stream = MarkdownStream(console).start()
    stream.feed("你好")
    stream.close()
    stream.close()
    written = capsys.readouterr().out
    assert written.rindex("\x1b[?25h") > written.rindex("\x1b[?25l")
