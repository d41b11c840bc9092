"""The page of the machine: what it does, keys for others, logs, and what is missing."""

from typing import Any

import fake_gateway
import pytest
from playwright.sync_api import expect
from streamlit.testing.v1 import AppTest
from test_ui_app import go, text_of

from mofang.ui.run import SCRIPT


@pytest.fixture
def page(gateway: str) -> AppTest:
    page = AppTest.from_file(str(SCRIPT), default_timeout=20)
    page.run()
    go(page, "system")
    return page


def test_what_the_machine_does_is_shown(page: AppTest, state: fake_gateway.State) -> None:
    text = text_of(page)
    assert "18.0 GB" in text and "llama.cpp b7000" in text and "正在回答 1 / 4" in text and "占内存 4%" in text
    assert "MOFANG_N_CTX" in text
    page.button(key="system_unload_qwen2.5-coder-0.5b-instruct").click().run()
    assert not state.models[0]["loaded"] and "内存里没有模型" in text_of(page)


def test_before_there_is_a_history_that_is_said(page: AppTest, state: fake_gateway.State) -> None:
    state.history = []
    page.run()
    assert "再过几秒" in text_of(page)


def test_a_key_is_made_shown_once_and_ended(page: AppTest, state: fake_gateway.State) -> None:
    page.text_input(key="key_name").set_value("小王 <b>")
    page.number_input(key="key_per_minute").set_value(30)
    page.selectbox(key="key_expires").set_value("month")
    next(button for button in page.button if button.label == "发一个密钥").click().run()
    (key,) = state.keys.values()
    assert (key["name"], key["requests_per_minute"], key["expires_in_s"]) == ("小王 <b>", 30, 30 * 86_400)
    assert "tokens_per_minute" not in key or key["tokens_per_minute"] is None
    assert [code.value for code in page.code if "mf-" in code.value] == ["mf-geheim"]
    assert "小王 &lt;b&gt;" in text_of(page) and "每分钟至多 30 个请求" in text_of(page)
    page.button(key="key_seen").click().run()
    assert not [code.value for code in page.code if "mf-" in code.value]
    page.button(key=f"revoke_sure_{key['id']}").click().run()
    assert state.keys[key["id"]]["state"] == "revoked" and "已撤销" in text_of(page)


def test_a_key_without_a_name_is_not_made(page: AppTest, state: fake_gateway.State) -> None:
    next(button for button in page.button if button.label == "发一个密钥").click().run()
    assert not state.keys and "请先写给谁用" in text_of(page)


def test_logs_are_read(page: AppTest) -> None:
    assert "100 行里的最后一行 <b>" in [code.value for code in page.code]
    page.selectbox(key="log_lines").set_value(2000).run()
    assert "2000 行里的最后一行 <b>" in [code.value for code in page.code]


def test_what_is_missing_is_told_with_what_to_type(page: AppTest) -> None:
    assert "apt-get" not in text_of(page)
    page.button(key="doctor_run").click().run()
    text = text_of(page)
    assert "sudo apt-get install libgomp1" in text and "缺少" in text and "留意" in text


@pytest.mark.browser
@pytest.mark.parametrize("width", [390, 1440])
def test_the_page_fits_and_draws_the_hour(bench: Any, visit: Any, width: int) -> None:
    page = visit(f"{bench.url}/system", width=width)
    expect(page.locator("[data-testid=stVegaLiteChart] :is(canvas, svg)")).to_be_visible()
    for tab in range(4):
        page.get_by_role("tab").nth(tab).click()
        page.wait_for_timeout(500)
        assert page.evaluate("document.scrollingElement.scrollWidth") <= width
