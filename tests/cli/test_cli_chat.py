"""`mofang chat` without a keyboard: pipes, one question, /commands, and the conversation that the gateway keeps."""

import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest
from cli_fakes import FakeClient, Run


def test_one_question_prints_the_answer_alone(run: Run, client: FakeClient) -> None:
    result = run("chat", "-p", "你好🙂，模坊", "--temperature", "0", "--max-tokens", "50", "-s", "简短")
    assert (result.stdout, result.exit_code) == ("你好🙂，模坊\n", 0)
    body = client.bodies[0]
    assert (body["temperature"], body["max_tokens"], body["system"], body["model"]) == (0.0, 50, "简短", "auto")


def test_what_comes_through_the_pipe_goes_below_the_question(run: Run) -> None:
    assert run("chat", "-p", "总结", input="第一条\n第二条\n").stdout == "总结\n\n第一条\n第二条\n"
    assert run("chat", "-p", "-", input="只有这个\n").stdout == "只有这个\n"
    empty = run("chat", "-p", "", input="")
    assert empty.exit_code == 2 and "没有问题" in empty.stderr


def test_json_holds_answer_sources_and_usage_and_nothing_else_is_printed(run: Run, client: FakeClient) -> None:
    client.create_knowledge("手册")
    answer = json.loads(run("chat", "-p", "见 [1]", "--kb", "手册", "--json").stdout)
    assert answer["content"] == "见 [1]" and answer["usage"]["completion_tokens"] == 5
    assert [source["cited"] for source in answer["sources"]] == [True, False]
    assert run("chat", "--json").exit_code == 2


def test_each_line_of_a_pipe_is_a_turn_of_one_conversation(run: Run, client: FakeClient) -> None:
    result = run("chat", input="第一句\n\n第二句\\\n还是第二句\n")
    assert result.stdout == "第一句\n第二句\n还是第二句\n"
    (conversation,) = client.conversations_.values()
    assert [message["content"] for message in conversation["messages"]] == [
        "第一句", "第一句", "第二句\n还是第二句", "第二句\n还是第二句",
    ]  # fmt: skip
    parents = [message["parent_id"] for message in conversation["messages"]]
    assert parents == [None, *(message["id"] for message in conversation["messages"][:3])]


def test_an_error_is_told_and_the_pipe_goes_on(run: Run, client: FakeClient) -> None:
    client.fault = {"message": "引擎退出了", "hint": "请再试一次", "code": "engine_failed"}
    result = run("chat", input="一\n/modle\n二\n")
    assert result.exit_code == 1
    assert result.stdout == "一\n二\n" and result.stderr.count("引擎退出了") == 2
    assert "没有命令 /modle，最接近的是 /model" in result.stderr
    assert client.bodies[1]["parent_id"] == "root", "a turn that failed is not the parent of the next one"


def test_continue_takes_up_the_last_conversation_with_its_settings(run: Run, client: FakeClient) -> None:
    client.create_knowledge("手册")
    run("chat", "千问-小", "-p", "记住：7", "-s", "你是助手", "--kb", "手册")
    run("chat", "-p", "另一个")
    first = client.conversations_["conv-1"]
    first["updated_at"] = "zzz"
    result = run("chat", "-c", "-p", "几？", "-s", "新的提示")
    body = client.bodies[-1]
    assert (body["conversation_id"], body["model"], body["knowledge"]) == (first["id"], "千问-小", ["手册"])
    assert body["system"] == "新的提示", "the command line wins"
    assert body["parent_id"] == first["messages"][1]["id"]
    assert "记住：7" in result.stderr


def test_continue_with_nothing_to_continue_says_so(run: Run) -> None:
    result = run("chat", "-c", "-p", "你好")
    assert result.exit_code == 0 and "从头开始" in result.stderr


def test_an_unknown_base_is_told_before_asking(run: Run, client: FakeClient) -> None:
    client.create_knowledge("产品手册")
    result = run("chat", "-p", "你好", "--kb", "产品手冊")
    assert result.exit_code == 1 and "最接近的名字：产品手册" in result.stderr and not client.bodies


def test_an_unknown_model_is_told_before_asking(run: Run, client: FakeClient) -> None:
    result = run("chat", "ecko", input="你好\n")
    assert result.exit_code == 1 and "没有名为 ecko 的模型" in result.stderr and not client.bodies


def test_a_script_is_told_to_pull_a_model_that_is_not_here(run: Run, client: FakeClient) -> None:
    result = run("chat", "qwen3-32b", "-p", "你好")
    assert result.exit_code == 1 and "mofang models pull qwen3-32b" in result.stderr
    client.models_ = []
    assert "mofang models pull auto" in run("chat", "-p", "你好").stderr


def test_a_pipe_that_nobody_reads_stops_the_answer(
    run: Run, client: FakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mofang.cli.answers import PlainScreen

    def broken(self: PlainScreen, content: str, reasoning: str) -> None:
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr(PlainScreen, "delta", broken)
    assert run("chat", "-p", "你好").exit_code == 1
    assert len(client.stopped) == 1


def test_commands(run: Run, client: FakeClient, tmp_path: Path) -> None:
    client.create_knowledge("手册")
    lines = ["/help", "/system 用文言回答", "/model 千问-小", "/model 千文-小", "/kb 手册", "你好 [1]",
             "/sources", "/stats", "/regen", "/history", "/kb -", "／models", "、kb", "//etc 是什么",
             "/new", "再来", "/exit", "不该问"]  # fmt: skip
    result = run("chat", input="\n".join(lines))
    asked = [(body["messages"] or [{"content": None}])[0]["content"] for body in client.bodies]
    assert asked == ["你好 [1]", None, "/etc 是什么", "再来"]
    first, again, second, fresh = client.bodies
    assert (first["system"], first["model"], first["knowledge"]) == ("用文言回答", "千问-小", ["手册"])
    assert again["parent_id"] == client.conversations_[first["conversation_id"]]["messages"][0]["id"]
    assert "knowledge" not in second and second["conversation_id"] == first["conversation_id"]
    assert fresh["conversation_id"] != first["conversation_id"] and fresh["parent_id"] == "root"
    assert "/save 文件" in result.stdout and "第 1 段原文" in result.stdout and "23.4 token/s" in result.stdout
    assert "最接近的名字：千问-小" in result.stderr
    assert "● 千问-小" in result.stdout and "  手册" in result.stdout
    kept = client.conversations_[first["conversation_id"]]
    assert (kept["model"], kept["knowledge"]) == ("千问-小", []), "the workbench sees the same settings"


def test_save_writes_once_and_never_over_a_file(run: Run, tmp_path: Path) -> None:
    markdown, plain = tmp_path / "对话.md", tmp_path / "对话.json"
    lines = [
        "/save " + str(markdown),
        "你好",
        f"/save {markdown}",
        f"/save {plain}",
        f"/save {markdown}",
        "/save 没有/x.md",
    ]
    result = run("chat", "-s", "简短", input="\n".join(lines))
    assert markdown.read_text("utf-8") == "> 简短\n\n## 我\n\n你好\n\n## echo\n\n你好\n"
    assert [turn["role"] for turn in json.loads(plain.read_text("utf-8"))] == ["user", "assistant"]
    assert "还是空的" in result.stderr and "没有覆盖" in result.stderr and "没有文件夹" in result.stderr
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == ["对话.json", "对话.md"]


@pytest.mark.parametrize("second", [False, True])
def test_ctrl_c_stops_the_answer_and_keeps_what_was_said(run: Run, client: FakeClient, second: bool) -> None:
    client.delay_s = 0.05

    def interrupt() -> None:
        time.sleep(0.7)
        if second:
            client.stop_generation = lambda generation_id: None  # type: ignore[method-assign] (a gateway that hangs)
        os.kill(os.getpid(), signal.SIGINT)
        if second:
            time.sleep(0.3)
            os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    result = run("chat", "-p", "很长的回答" * 20)
    assert result.exit_code == 130
    said = result.stdout.strip()
    assert "很长" in said and len(said) < 100
    assert ("已停止" in result.stderr) != second


def test_every_sentence_of_the_command_line_exists_in_both_languages() -> None:
    """Keys that are put together when the program runs, which no search of the source finds."""
    from mofang.cli import session
    from mofang.strings import LANGUAGES, say

    for lang in LANGUAGES:
        for name in session.SHOWN:
            assert say(f"cli.usage_{name}", lang=lang).startswith(f"/{name}") and say(f"cli.help_{name}", lang=lang)
    assert set(session.SHOWN) <= set(session.COMMANDS)
