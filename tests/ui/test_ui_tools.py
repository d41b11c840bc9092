"""Tools on the page: chosen, asked about before each call, gone on with, kept over a reload."""

from typing import Any

import fake_gateway
import pytest
from streamlit.testing.v1 import AppTest
from test_ui_app import run_until, text_of

from mofang.ui.components import tools
from mofang.ui.run import SCRIPT
from mofang.ui.tree import Turn

FIRST = "conv_000001"


@pytest.fixture
def page(gateway: str) -> AppTest:
    return AppTest.from_file(str(SCRIPT), default_timeout=20)


def again() -> AppTest:
    """The same conversation in another tab, or after a reload."""
    page = AppTest.from_file(str(SCRIPT), default_timeout=20)
    page.query_params["c"] = FIRST
    page.run()
    assert not page.exception
    return page


def choose(page: AppTest, *names: str) -> None:
    page.session_state["tools_pop_new"] = True
    run_until(page, lambda: bool(page.checkbox))
    for name in names:
        page.checkbox(key=f"tool_new_{name}").check().run()


def ask(page: AppTest, question: str) -> None:
    page.chat_input[0].set_value(question).run()


def said(state: fake_gateway.State) -> list[dict[str, Any]]:
    return list(state.conversations[FIRST]["messages"])


def button(page: AppTest, begins: str) -> Any:
    return next((one for one in page.button if str(one.key).startswith(begins)), None)


def until_asked(page: AppTest) -> Any:
    run_until(page, lambda: button(page, "run_msg") is not None)
    return button(page, "run_msg")


def until_open(page: AppTest) -> None:
    run_until(page, lambda: not page.chat_input[0].disabled)


def answers(page: AppTest) -> list[str]:
    return [one.value for one in page.markdown if "工具说" in one.value]


def folded(page: AppTest) -> list[str]:
    return [one.label.replace("\\", "") for one in page.expander if "秒" in one.label or "拒绝" in one.label]


def test_tools_are_chosen_with_their_servers_and_faults(page: AppTest, state: fake_gateway.State) -> None:
    page.run()
    assert not page.checkbox, "nobody is asked for tools before they are wanted"
    choose(page, "calculate", "钟__slow")
    shown = text_of(page)
    assert "准确计算一个算式" in shown and "模坊自带" in shown and ">钟<" in shown
    assert "MCP 服务器 坏 没有正常工作" in shown and "看看日志" in shown
    page.checkbox(key="tool_new_钟__slow").uncheck().run()
    ask(page, "你好")
    until_open(page)
    assert state.conversations[FIRST]["tools"] == ["calculate"]
    state.conversations[FIRST]["tools"].append("走了__read")
    page.session_state[f"tools_pop_{FIRST}"] = True
    run_until(page, lambda: bool(page.checkbox))
    assert page.checkbox(key=f"tool_{FIRST}_走了__read").value is True and "现在没有这个工具" in text_of(page)
    page.checkbox(key=f"tool_{FIRST}_走了__read").uncheck().run()
    assert state.conversations[FIRST]["tools"] == ["calculate"]
    page.button(key="new_chat").click().run()
    assert page.session_state["draft"]["tools"] == []


def test_a_call_is_shown_allowed_and_the_answer_goes_on(page: AppTest, state: fake_gateway.State) -> None:
    page.run()
    choose(page, "calculate")
    ask(page, "用工具")
    allow = until_asked(page)
    shown = text_of(page)
    assert "计算" in shown and "想调用这个工具" in shown and "6 * 7" in shown and "expression" in shown
    assert page.chat_input[0].disabled and page.chat_input[0].placeholder == "请先决定上面的工具调用"
    assert state.decisions == [] and button(page, "answer_it") is None
    allow.click().run()
    until_open(page)
    assert [(one["decision"], one["go_on"]) for one in state.decisions] == [("run", True)]
    assert "工具说：42" in text_of(page) and folded(page) == ["计算 · 已执行 · 0.0 秒"]
    assert button(page, "run_msg") is None
    assert folded(again()) == ["计算 · 已执行 · 0.0 秒"]


def test_a_call_is_refused(page: AppTest, state: fake_gateway.State) -> None:
    page.run()
    choose(page, "calculate")
    ask(page, "用工具")
    until_asked(page)
    button(page, "refuse_msg").click().run()
    until_open(page)
    assert [one["decision"] for one in state.decisions] == ["refuse"]
    assert folded(page) == ["计算 · 已拒绝"] and "工具说：用户不允许" in text_of(page)


def test_one_call_after_the_other_and_a_reload_in_between(page: AppTest, state: fake_gateway.State) -> None:
    page.run()
    choose(page, "calculate", "钟__slow")
    ask(page, "用工具")
    allow = until_asked(page)
    assert len([one for one in page.button if str(one.key).startswith("run_msg")]) == 1
    assert "前面的调用决定之后" in text_of(page)
    allow.click().run()
    assert len(state.decisions) == 1
    page = again()
    assert folded(page) == ["计算 · 已执行 · 0.0 秒"] and "钟 · 慢慢来" in text_of(page)
    button(page, "run_msg").click().run()
    assert page.chat_input[0].disabled and page.chat_input[0].placeholder == "正在执行工具…"
    page = again()
    assert "正在执行" in text_of(page), "a reload while it runs finds it running"
    until_open(page)
    assert "工具说：42、42" in text_of(page) and len(said(state)) == 5


def test_what_is_trusted_is_not_asked_about_in_this_conversation(page: AppTest, state: fake_gateway.State) -> None:
    page.run()
    choose(page, "calculate")
    ask(page, "用工具")
    until_asked(page)
    page.checkbox(key=next(one.key for one in page.checkbox if str(one.key).startswith("tool_trust_"))).check().run()
    assert state.decisions == [], "checking it decides nothing"
    button(page, "run_msg").click().run()
    until_open(page)
    ask(page, "再用工具")
    until_open(page)
    assert len(state.decisions) == 2 and answers(page) == ["工具说：42"] * 2
    other = again()
    other.chat_input[0].set_value("又用工具").run()
    assert until_asked(other), "another visit is asked"


def test_another_tab_was_faster(page: AppTest, state: fake_gateway.State) -> None:
    page.run()
    choose(page, "calculate")
    ask(page, "用工具")
    mine = until_asked(page)
    other = again()
    button(other, "run_msg").click().run()
    mine.click().run()
    until_open(page)
    assert len(state.decisions) == 1 and "已经决定过了" not in text_of(page)
    assert answers(page) == ["工具说：42"]


def test_an_answer_that_did_not_go_on_is_one_click_away(page: AppTest, state: fake_gateway.State) -> None:
    page.run()
    choose(page, "calculate")
    ask(page, "用工具")
    allow = until_asked(page)
    state.is_full = True
    allow.click().run()
    run_until(page, lambda: button(page, "tools_go_on") is not None)
    assert not page.chat_input[0].disabled
    state.is_full = False
    button(page, "tools_go_on").click().run()
    until_open(page)
    assert "工具说：42" in text_of(page) and state.requests[-1]["parent_id"] == said(state)[2]["id"]


@pytest.mark.parametrize(
    ("status", "calls", "waits"),
    [("done", [{"id": "c"}], True), ("stopped", [{"id": "c"}], False), ("done", [], False), ("done", None, False)],
)
def test_only_whole_answers_ask(status: str, calls: Any, waits: bool) -> None:
    turns = [Turn({"id": "m", "role": "assistant", "status": status, "tool_calls": calls}, 0, ("m",))]
    assert (tools._standing(turns)[0] is not None) is waits


def test_results_whose_call_is_not_there() -> None:
    lonely = {"id": "m", "role": "tool", "parent_id": "gone", "name": "calculate", "tool_call_id": "c"}
    found = tools._call_of({"messages": [lonely]}, lonely)
    assert found["function"] == {"name": "calculate", "arguments": ""}
