"""Tools in a real Chromium: chosen in their popover, a call allowed, another refused, a reload while one runs."""

from typing import Any

import pytest
from playwright.sync_api import Page, expect
from test_ui_axe import check
from test_ui_browser import ANSWER, OVERFLOW, ask

pytestmark = pytest.mark.browser

INPUT = "[data-testid=stChatInput] textarea"
CARD = "[class*=st-key-call_]"
RESULT = "[class*=st-key-tool_result_]"


def choose(page: Page, *titles: str) -> None:
    page.locator("[class*=st-key-tools_pop_] button").first.click()
    body = page.locator(".st-key-tools_body")
    for title in titles:
        body.get_by_text(title, exact=True).click()
        expect(body.get_by_role("checkbox", name=title)).to_be_checked()
    expect(body.get_by_text("MCP 服务器 坏 没有正常工作")).to_be_visible()


@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1280, "light")])
def test_allowed_and_refused(bench: Any, visit: Any, width: int, scheme: str) -> None:
    page = visit(bench.url, width=width, scheme=scheme)
    choose(page, "计算", "慢慢来")
    assert page.evaluate(OVERFLOW) == []
    check(page)
    page.keyboard.press("Escape")
    expect(page.get_by_role("button", name="工具 2")).to_be_visible()
    bench.state.decisions.clear()
    ask(page, "用工具")
    expect(page.locator(CARD)).to_have_count(2)
    expect(page.locator(CARD).first).to_contain_text("6 * 7")
    expect(page.locator(INPUT)).to_be_disabled()
    assert page.evaluate(OVERFLOW) == []
    check(page)
    page.get_by_role("button", name="允许").click()
    expect(page.locator(RESULT)).to_have_count(1)
    expect(page.locator(RESULT)).to_contain_text("计算 · 已执行")
    expect(page.locator(CARD)).to_have_count(1)
    page.get_by_role("button", name="拒绝").click()
    expect(page.locator(ANSWER).last).to_contain_text("工具说：42、用户不允许")
    expect(page.locator(INPUT)).to_be_enabled()
    assert [one["decision"] for one in bench.state.decisions] == ["run", "refuse"]
    page.locator(RESULT).last.locator("summary").click()
    expect(page.locator(RESULT).last.locator(".mf-result")).to_have_text("用户不允许")
    assert page.evaluate(OVERFLOW) == []
    page.wait_for_timeout(500)
    check(page)


def test_a_reload_while_it_runs(bench: Any, visit: Any) -> None:
    page = visit(bench.url)
    choose(page, "慢慢来")
    page.keyboard.press("Escape")
    ask(page, "用工具")
    page.get_by_role("button", name="允许").click()
    expect(page.get_by_text("正在执行工具")).to_be_visible()
    page.reload()
    expect(page.get_by_text("正在执行工具")).to_be_visible()
    expect(page.locator(ANSWER).last).to_contain_text("工具说：42", timeout=20_000)
    expect(page.locator(INPUT)).to_be_enabled()
    expect(page.locator(RESULT)).to_contain_text("钟 · 慢慢来 · 已执行")


def test_one_that_takes_too_long_is_stopped(bench: Any, visit: Any) -> None:
    page = visit(bench.url, width=390)
    choose(page, "慢慢来")
    page.keyboard.press("Escape")
    ask(page, "用工具")
    page.get_by_role("button", name="允许").click()
    page.get_by_role("button", name="停止这次调用").click()
    expect(page.locator(RESULT)).to_contain_text("慢慢来 · 已停止")
    page.locator(".st-key-tools_go_on button").click()
    expect(page.locator(ANSWER).last).to_contain_text("工具说：用户中途停止了这次调用")
    expect(page.locator(INPUT)).to_be_enabled()
    assert page.evaluate(OVERFLOW) == []


def test_what_is_trusted_is_not_asked_about(bench: Any, visit: Any) -> None:
    page = visit(bench.url + "/?lang=en")
    choose(page, "计算")
    page.keyboard.press("Escape")
    ask(page, "用工具")
    page.locator(CARD).get_by_text("Do not ask again in this conversation").click()
    page.get_by_role("button", name="Allow").click()
    expect(page.locator(ANSWER).last).to_contain_text("工具说：42")
    expect(page.locator(INPUT)).to_be_enabled()
    ask(page, "再用工具")
    expect(page.locator(RESULT)).to_have_count(2)
    expect(page.locator(ANSWER).last).to_contain_text("工具说：42")
    expect(page.locator(CARD)).to_have_count(0)
