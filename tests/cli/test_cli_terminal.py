"""`mofang chat` as a person sees it: a real process in a pseudo-terminal, keys in, a screen out.

Most of it runs against the gateway in memory; the last tests go through the real gateway and its echo engine.
"""

import json
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cli_fakes import PtyProgram

HERE = Path(__file__).parent
FAKED = """
import sys; sys.path.insert(0, {here!r})
import cli_fakes, mofang.api
fake = cli_fakes.FakeClient(delay_s={delay_s})
fake.create_knowledge("手册")
mofang.api.gateway = fake.gateway
from mofang.cli.main import main
main()
"""
Start = Callable[..., PtyProgram]


@pytest.fixture
def start(home: Path) -> Iterator[Start]:
    """Start `mofang` with these arguments; `real` talks to its own gateway instead of the one in memory."""
    programs = []
    env = {**os.environ, "TERM": "xterm-256color", "PYTHONWARNINGS": "default"}
    env.pop("COLUMNS", None)

    def begin(*arguments: str, real: bool = False, delay_s: float = 0.0, width: int = 80) -> PtyProgram:
        faked = FAKED.format(here=str(HERE), delay_s=delay_s)
        program = ["-m", "mofang"] if real else ["-c", faked]
        programs.append(PtyProgram([sys.executable, *program, *arguments], env, width))
        return programs[-1]

    yield begin
    for program in programs:
        if program.process.poll() is None:
            program.process.kill()
            program.process.wait()


def test_ctrl_c_stops_the_answer_and_not_the_program(start: Start) -> None:
    chat = start("chat", delay_s=0.05)
    chat.expect("› ")
    chat.type("慢慢地说一段很长的话" * 8 + "\r")
    chat.expect("慢慢地说", times=9)  # eight were typed; the answer has begun
    chat.type("\x03")
    chat.expect("（已停止）")
    chat.type("还在吗\r")
    chat.expect("还在吗", times=2)
    chat.expect("23.4 token/s")
    said = chat.screen.split("（已停止）")[0]
    assert said.count("慢慢地说") < 16, "the answer did not go on to its end"
    chat.type("\x04")
    assert chat.end() == 0
    assert "Traceback" not in chat.screen and "Warning" not in chat.screen


def test_sigint_from_outside_does_the_same(start: Start) -> None:
    chat = start("chat", delay_s=0.05)
    chat.expect("› ")
    chat.type("一二三四五六七八九十" * 10 + "\r")
    chat.expect("一二三四", times=11)
    os.kill(chat.process.pid, signal.SIGINT)
    chat.expect("（已停止）")
    chat.type("/exit\r")
    assert chat.end() == 0


def test_at_the_prompt_ctrl_c_clears_the_line_and_twice_leaves(start: Start) -> None:
    chat = start("chat")
    chat.expect("说点什么")
    chat.type("写错了的话")
    chat.expect("› 写错了的话")
    chat.type("\x03")
    chat.expect("再按一次 Ctrl-C 退出")
    assert "写错了" not in chat.screen
    chat.type("好")
    chat.expect("› 好")
    chat.type("\x7f")
    chat.expect("说点什么")
    chat.type("\x03")
    chat.expect("再按一次 Ctrl-C 退出")
    assert chat.process.poll() is None, "typing in between disarms it"
    chat.type("\x03")
    assert chat.end() == 0


def test_several_lines_history_and_completion(start: Start, home: Path) -> None:
    chat = start("chat")
    chat.expect("› ")
    chat.type("第一行\x1b\r第二行\\\r第三行\r")
    chat.expect("第三行", times=2)
    assert "第一行\n第二行\n第三行" in chat.screen
    chat.type("/mode\t\t")
    chat.expect("/model")
    chat.type("\x03")
    chat.expect("再按一次")
    chat.type("\x1b[A")
    chat.expect("› 第一行", times=2)
    chat.type("\x03\x03")
    assert chat.end() == 0
    history = home / "chat_history"
    assert "+第二行" in history.read_text("utf-8") and history.stat().st_mode & 0o077 == 0


def test_commands_and_errors_bring_the_prompt_back(start: Start) -> None:
    chat = start("chat")
    chat.expect("› ")
    chat.type("/hlep\r")
    chat.expect("没有命令 /hlep，最接近的是 /help")
    chat.type("/kb 手册\r")
    chat.expect("知识库：手册")
    chat.type("怎么装？见 [2]\r")
    chat.expect("● [2] 手册/第2章.md · 安装 › Linux")
    chat.type("/stats\r")
    chat.expect("全程")
    chat.type("/quit\r")
    assert chat.end() == 0


def test_markdown_and_chinese_fill_a_narrow_screen(start: Start) -> None:
    chat = start("chat", width=40)
    chat.expect("› ")
    chat.type("**模坊** 是一个 Python 工具，从头到尾都在自己的机器上运行，不需要网络。\r")
    chat.expect("token/s")
    answer = chat.screen.split("不需要网络。")[1]
    assert "**" not in answer
    assert "模坊 是一个 Python 工具，从头到尾都在自\n己的机器上运行，" in answer


def test_a_pull_shows_rate_and_time_left_and_survives_ctrl_c(start: Start) -> None:
    pull = start("models", "pull", "千问", delay_s=0.5)
    pull.expect("12 MB/s")
    pull.expect("剩 0:")
    pull.type("\x03")
    pull.expect("再次运行同一条命令会从这里接着取")
    assert pull.end() == 130


def test_rm_asks(start: Start) -> None:
    rm = start("models", "rm", "echo")
    rm.expect("[y/N]")
    rm.type("n\r")
    rm.expect("没有删除")
    assert rm.end() == 1


# ---- through the real gateway ----


@pytest.fixture
def echo(home: Path) -> None:
    folder = home / "models" / "echo"
    folder.mkdir(parents=True)
    manifest = {"name": "echo", "kind": "chat", "format": "gguf", "engine": "echo", "echo": {"delay_s": 0.02}}
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.usefixtures("echo")
def test_the_real_gateway_stops_keeps_and_continues(start: Start, home: Path) -> None:
    chat = start("chat", "echo", real=True)
    chat.expect("› ")
    chat.type("真正的网关也要能停下来" * 12 + "\r")
    chat.expect("真正的网关", times=14)
    chat.type("\x03")
    chat.expect("（已停止）")
    chat.type("/history\r")
    chat.expect("echo\n")
    chat.type("接着说\r")
    chat.expect("3 token")
    chat.type("/regen\r")
    chat.expect("3 token", times=2)
    chat.type("\x04")
    assert chat.end() == 0
    assert "Traceback" not in chat.screen

    again = start("chat", "-c", real=True)
    again.expect("接着上次的对话：真正的网关")
    again.expect("（4")  # messages: the answer that /regen made replaced the one before it
    again.type("/history\r")
    again.expect("接着说", times=2)
    again.type("\x04")
    assert again.end() == 0


@pytest.mark.usefixtures("echo")
def test_the_real_gateway_through_a_pipe(home: Path) -> None:
    import subprocess

    program = [sys.executable, "-m", "mofang", "chat", "echo"]
    done = subprocess.run(program, input="你好🙂\n再见\n", capture_output=True, text=True, encoding="utf-8", timeout=60)
    assert (done.stdout, done.returncode) == ("你好🙂\n再见\n", 0), done.stderr
    done = subprocess.run(
        [*program, "-p", "见面", "--json"], input="", capture_output=True, text=True, encoding="utf-8", timeout=60
    )
    answer = json.loads(done.stdout)
    assert answer["content"] == "见面" and answer["usage"]["completion_tokens"] == 2
    assert not re.search("Traceback|Warning", done.stderr)
