"""Edited and continued conversations, personas and formulas in a real Chromium."""

import base64
import json
import struct
from pathlib import Path
from typing import Any

import fake_gateway
import pytest
from playwright.sync_api import expect
from test_ui_browser import ANSWER, OVERFLOW, QUESTION, ask

pytestmark = pytest.mark.browser

FORMULAS = (
    "行内 $x^2$ 与 \\(a_1\\)，价钱 $5 与 $10。\n\n单独成行：\n\\[\n\\int_0^1 x\\,dx = \\frac{1}{2}\n\\]\n\n"
    "- 列表里\n  \\[E=mc^2\\]\n- 完"
)


def answered(page: Any, n: int) -> None:
    expect(page.locator(".mf-copy")).to_have_count(n, timeout=30_000)


def test_edit_branch_and_reload(bench: Any, visit: Any) -> None:
    page = visit(bench.url)
    ask(page, "第一问")
    answered(page, 1)
    page.locator(".mf-user").hover()
    page.get_by_role("button", name="修改问题").click()
    field = page.locator("[class*=st-key-editor_] textarea")
    field.fill("改过的第一问")
    page.get_by_role("button", name="保存并提问").click()
    expect(page.locator(".mf-user")).to_have_text("改过的第一问")
    answered(page, 1)
    expect(page.get_by_text("2/2")).to_be_visible()
    page.get_by_role("button", name="修改回答").click()
    field.fill("我写的回答")
    page.get_by_role("button", name="保存", exact=True).click()
    expect(page.locator(ANSWER).last).to_have_text("我写的回答")
    page.reload()
    expect(page.locator(".mf-user")).to_have_text("改过的第一问")
    expect(page.locator(ANSWER).last).to_have_text("我写的回答")
    page.locator("[class*=st-key-under_turn_]").get_by_role("button", name="上一个版本").click()
    expect(page.locator(".mf-user")).to_have_text("第一问")
    assert page.evaluate(OVERFLOW) == []


def test_stopped_and_gone_on_with(bench: Any, visit: Any) -> None:
    page = visit(bench.url)
    ask(page, "慢慢说，再接着说")
    expect(page.locator(ANSWER).last).to_contain_text("这是一个")
    page.locator(".st-key-stop button").click()
    expect(page.get_by_text("已停止")).to_be_visible()
    page.get_by_role("button", name="继续写").click()
    expect(page.locator(ANSWER).last).to_have_text(fake_gateway.SLOW, timeout=40_000)
    expect(page.get_by_text("2/2")).to_be_visible()


def test_found_exported_and_imported(bench: Any, visit: Any, tmp_path: Path) -> None:
    page = visit(bench.url)
    ask(page, "一个找得到的词")
    answered(page, 1)
    page.locator(".st-key-new_chat button").click()
    expect(page.get_by_text("今天想聊点什么？")).to_be_visible()
    page.locator(".st-key-find_chats input").fill("找得到")
    page.keyboard.press("Enter")
    rows = page.locator("[class*=st-key-conv_row_]")
    expect(rows).to_have_count(1)
    rows.locator("[class*=st-key-menu_] button").click()
    page.get_by_role("menuitem", name="导出").click()
    with page.expect_download() as download:
        page.get_by_role("button", name="JSON 文件").click()
    file = tmp_path / "对话.json"
    download.value.save_as(file)
    assert json.loads(file.read_text())["conversations"][0]["messages"][0]["content"] == "一个找得到的词"
    with page.expect_download() as download:
        page.get_by_role("button", name="Markdown 文件").click()
    assert download.value.suggested_filename == "一个找得到的词.md"
    page.keyboard.press("Escape")
    page.locator(".st-key-import_chats button").click()
    before = len(bench.state.conversations)
    page.locator("[role=dialog] input[type=file]").set_input_files(file)
    expect(page.locator(".mf-user")).to_have_text("一个找得到的词")
    assert len(bench.state.conversations) == before + 1
    assert page.evaluate(OVERFLOW) == []


def test_a_card_greets(bench: Any, visit: Any) -> None:
    card = {
        "name": "木匠",
        "description": "{{char}}做桌子。",
        "first_mes": "要做什么？",
        "personality": "",
        "scenario": "",
    }
    text = b"chara\0" + base64.b64encode(json.dumps(card).encode())
    chunk = struct.pack(">I", len(text)) + b"tEXt" + text + b"\0\0\0\0"
    png = b"\x89PNG\r\n\x1a\n" + chunk + b"\0\0\0\0IEND\xaeB`\x82"
    page = visit(bench.url)
    page.locator("[class*=st-key-persona_pop] button").first.click()
    page.get_by_role("button", name="管理角色").click()
    page.locator("[role=dialog] input[type=file]").set_input_files(
        {"name": "木匠.png", "mimeType": "image/png", "buffer": png}
    )
    expect(page.locator("[role=dialog]")).to_have_count(0)
    page.locator("[class*=st-key-persona_pop] button").first.click()
    page.locator(".st-key-persona_body").get_by_text("木匠").click()
    expect(page.locator(".st-key-answer_greeting")).to_contain_text("要做什么？")
    page.keyboard.press("Escape")
    ask(page, "一张桌子")
    answered(page, 2)
    kept = list(bench.state.conversations.values())[-1]
    assert kept["system"] == "木匠做桌子。" and kept["messages"][1]["parent_id"] == kept["messages"][0]["id"]
    bench.state.personas.clear()


@pytest.mark.parametrize("width", [390, 1440])
def test_formulas_are_drawn(bench: Any, visit: Any, width: int) -> None:
    page = visit(bench.url, width=width)
    ask(page, "公式")
    answered(page, 1)
    conversation = list(bench.state.conversations.values())[-1]
    conversation["messages"][-1]["content"] = FORMULAS
    page.reload()
    expect(page.locator(QUESTION)).to_be_enabled()
    said = page.locator(ANSWER).last
    expect(said.locator(".katex")).to_have_count(4)
    expect(said.locator(".katex-display")).to_have_count(2)
    expect(said.locator(".katex-error")).to_have_count(0)
    expect(said).to_contain_text("价钱 $5 与 $10")
    expect(said.locator("li")).to_have_count(2)
    expect(page.locator(".mf-gauge")).to_be_visible()
    assert page.evaluate(OVERFLOW) == []
