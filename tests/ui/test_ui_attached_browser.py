"""Files dropped into a chat, two answers beside each other, diagrams: in a real Chromium."""

from typing import Any

import fake_gateway
import pytest
from playwright.sync_api import Page, expect
from test_ui_axe import check
from test_ui_browser import ANSWER, OVERFLOW, QUESTION, SAID, ask

pytestmark = pytest.mark.browser

SECOND = "another-model"
DROP = """([name, type]) => {
  const data = new DataTransfer();
  data.items.add(new File(["%PDF-1.4"], name, {type}));
  return data;
}"""


def drop(page: Page, name: str, kind: str = "application/pdf") -> None:
    """As from a folder beside the browser's window."""
    data = page.evaluate_handle(DROP, [name, kind])
    expect(page.locator(QUESTION)).to_be_enabled()
    page.dispatch_event(QUESTION, "dragover", {"dataTransfer": data})
    expect(page.get_by_text("把文件拖到这里")).to_be_visible()
    page.dispatch_event("[data-testid=stChatInput] [role=presentation][tabindex='0']", "drop", {"dataTransfer": data})
    expect(page.locator("[data-testid=stChatInput]")).to_contain_text(name)


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_a_pdf_is_dropped_and_asked_about(bench: Any, visit: Any, width: int, scheme: str) -> None:
    page = visit(bench.url, width=width, scheme=scheme)
    drop(page, "合同.pdf")
    ask(page, "几天内付款？")
    chip = page.locator(".mf-attached")
    expect(chip).to_have_text("合同.pdf · 3,214 token")
    expect(page.locator(".mf-user")).to_have_text("几天内付款？")
    expect(page.locator(".mf-copy")).to_be_visible()
    expect(page.get_by_text("第 2 页没有文字")).to_be_visible()
    assert page.evaluate(OVERFLOW) == []
    check(page)
    page.reload()
    expect(chip).to_have_text("合同.pdf · 3,214 token")


def test_an_unreadable_file_keeps_the_question_and_a_long_one_leads_on(bench: Any, visit: Any) -> None:
    page = visit(bench.url)
    drop(page, "坏.pdf")
    ask(page, "看看")
    expect(page.locator("[role=alert]")).to_contain_text("坏.pdf 有打开密码")
    expect(page.locator(".mf-user")).to_have_text("看看")
    page.locator(".st-key-send_again button").click()
    expect(page.locator(".mf-copy")).to_be_visible()
    page.locator(".st-key-new_chat button").click()
    expect(page.get_by_text("今天想聊点什么？")).to_be_visible()
    drop(page, "长.pdf")
    ask(page, "说什么？")
    expect(page.locator("[role=alert]")).to_contain_text("51,200 个 token")
    page.locator("[class*=st-key-go_knowledge_] button").click()
    page.wait_for_url(lambda url: "/knowledge" in url)
    expect(page.locator(".mf-head")).to_be_visible()


@pytest.mark.parametrize(("width", "scheme"), [(1440, "light"), (390, "dark")])
def test_two_models_beside_each_other(bench: Any, visit: Any, width: int, scheme: str) -> None:
    if SECOND not in [model["id"] for model in bench.state.models]:
        bench.state.models.append(fake_gateway.chat_model(SECOND))
    page = visit(bench.url, width=width, scheme=scheme)
    page.locator("[class*=st-key-settings_] button").first.click()
    page.locator("[class*=st-key-beside_new] input").click()
    page.get_by_role("option", name=SECOND).click()
    page.keyboard.press("Escape")
    ask(page, "慢慢比")
    answers = page.locator(".st-key-beside [class*=st-key-answer_] .stMarkdown")
    expect(answers).to_have_count(2)
    for place in range(2):
        expect(answers.nth(place)).to_contain_text("这是一个慢慢")
    left, right = (
        page.locator(".st-key-beside [data-testid=stColumn]").nth(place).bounding_box() for place in range(2)
    )
    if width == 390:
        assert right["y"] >= left["y"] + left["height"] and right["width"] > 300, "one under the other"
    else:
        assert abs(right["y"] - left["y"]) < 2 and right["x"] >= left["x"] + left["width"] and left["width"] > 400
    assert page.evaluate(OVERFLOW) == []
    page.reload()
    expect(answers).to_have_count(2)
    expect(page.locator(".mf-speaker").nth(1)).to_have_text(SECOND)
    page.locator("[class*=st-key-stop_msg] button").first.click()
    expect(page.get_by_text("已停止")).to_be_visible()
    expect(answers.nth(1)).to_have_text(fake_gateway.SLOW, timeout=60_000)
    expect(page.locator(QUESTION)).to_be_enabled()
    check(page)
    assert page.evaluate(OVERFLOW) == []
    page.locator("[class*=st-key-choose_] button").click()
    expect(page.get_by_text("接着这个聊")).to_be_visible()
    chosen = list(bench.state.conversations.values())[-1]["messages"][2]
    ask(page, "接着")
    expect(page.get_by_text("2/2")).to_be_visible()
    expect(page.locator(".mf-copy")).to_have_count(3, timeout=60_000)
    assert list(bench.state.conversations.values())[-1]["messages"][3]["parent_id"] == chosen["id"]


@pytest.mark.parametrize(("width", "scheme", "lang"), [(1440, "light", "zh"), (390, "dark", "en")])
def test_diagrams_are_drawn_and_a_broken_one_says_why(
    bench: Any, visit: Any, width: int, scheme: str, lang: str
) -> None:
    page = visit(f"{bench.url}/?lang={lang}", width=width, scheme=scheme)
    ask(page, "画一张图")
    image = page.locator("[data-testid=stMermaidChart] img")
    expect(image).to_have_count(1, timeout=60_000)
    expect(image).to_have_attribute("alt", {"zh": "图表", "en": "Diagram"}[lang])
    assert image.evaluate("one => one.decode().then(() => one.naturalWidth)") > 100
    broken = page.locator("[class*=st-key-diagram_]").last
    expect(broken.locator("[data-testid=stMermaidError]")).to_contain_text("Parse error")
    expect(broken.locator("[data-testid=stMermaidError]")).to_contain_text(
        {"zh": "画不出来", "en": "diagram error"}[lang]
    )
    expect(broken.locator(".mf-broken")).to_contain_text("A[没有关上 --> B")
    good = page.locator("[class*=st-key-diagram_]").first
    expect(good.locator(".mf-broken")).not_to_be_visible()
    expect(good.locator("pre").first).not_to_be_visible()
    good.locator("summary").click()
    expect(good.locator("pre").first).to_contain_text("A[提问] --> B{有资料?}")
    expect(page.locator(ANSWER).last).to_contain_text("完。")
    assert page.evaluate(OVERFLOW) == []
    check(page)
    if lang == "zh":
        assert not {"Fullscreen", "Download as PNG", "Copy to clipboard"} & set(page.evaluate(SAID))


def test_a_diagram_that_is_being_written_is_code(bench: Any, visit: Any) -> None:
    bench.state.delay_s = 0.03
    try:
        page = visit(bench.url)
        ask(page, "画一张图")
        expect(page.locator(f"{ANSWER} [data-testid=stCode]").first).to_contain_text("flowchart")
        assert page.locator("[data-testid=stMermaidChart]").count() == 0
    finally:
        bench.state.delay_s = 0.004
    expect(page.locator("[data-testid=stMermaidChart] img")).to_have_count(1, timeout=60_000)


def test_a_diagram_brings_nothing_from_elsewhere(bench: Any, browser: Any) -> None:
    """Mermaid would load pictures and follow links that an answer names; the page's policy and an image forbid it."""
    chart = 'flowchart LR\n  A@{ img: "http://evil.example/x.png" }\n  A --> B["<img src=http://evil.example/y.png>"]'
    page = browser.new_page()
    came: list[str] = []
    why: list[Any] = []
    page.on("response", lambda answer: came.append(answer.url) if "evil" in answer.url else None)
    page.on("requestfailed", lambda asked: why.append(asked.failure) if "evil" in asked.url else None)
    page.goto(bench.url)
    ask(page, "画一张图")
    expect(page.locator(".mf-copy")).to_be_visible(timeout=30_000)
    list(bench.state.conversations.values())[-1]["messages"][-1]["content"] = f"```mermaid\n{chart}\n```"
    page.reload()
    expect(page.locator("[data-testid=stMermaidError], [data-testid=stMermaidChart] img").first).to_be_visible(
        timeout=30_000
    )
    assert came == [] and set(why) <= {"csp"}
    page.close()
