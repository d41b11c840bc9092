"""Many visitors, one after another and at once: every answer whole, none sees another's, and memory comes back."""

import random
from typing import Any

import fake_gateway
import psutil
import pytest
from playwright.sync_api import Browser, Page, expect
from test_ui_browser import ANSWER, QUESTION, ask

pytestmark = [pytest.mark.browser, pytest.mark.soak, pytest.mark.timeout(3000)]

ROUNDS, AT_ONCE = 40, 5
WARM = 10
"""Rounds until every page was once seen and what is kept for all is there."""
PLACES = ("models", "train", "quantize", "lens", "concepts", "knowledge", "system")


def _asked(page: Page, question: str) -> None:
    page.locator(f"{QUESTION}:enabled").wait_for()
    ask(page, question)
    page.locator(".mf-user").last.wait_for()


def _visit(browser: Browser, url: str, number: int, rng: random.Random) -> None:
    """AT_ONCE people ask; some reload in the middle, some look at another page and come back, some just leave."""
    contexts = [browser.new_context() for _ in range(AT_ONCE)]
    pages = [context.new_page() for context in contexts]
    for page in pages:
        page.set_default_timeout(60_000)
        page.goto(url)
    for person, page in enumerate(pages):
        _asked(page, f"慢慢说，第 {number} 轮第 {person} 人")
    for person, page in enumerate(pages):
        mine = f"第 {number} 轮第 {person} 人"
        match rng.choice(("stay", "reload", "elsewhere", "leave")):
            case "leave":
                continue
            case "reload":
                page.reload()
            case "elsewhere":
                here = page.url
                page.goto(f"{url}/{rng.choice(PLACES)}")
                page.locator(".mf-head").first.wait_for()
                page.goto(here)
        expect(page.locator(".mf-user").last).to_contain_text(mine, timeout=60_000)
        expect(page.locator(ANSWER).last).to_have_text(fake_gateway.SLOW, timeout=60_000)
    for context in contexts:
        context.close()


def test_visitors_come_and_go_and_memory_comes_back(bench: Any, browser: Browser) -> None:
    process, rng, held = psutil.Process(bench.pid), random.Random(7), []
    for number in range(ROUNDS):
        _visit(browser, bench.url, number, rng)
        held.append(process.memory_info().rss)
        print(f"round {number}: {held[-1] / 1e6:.0f} MB, {process.num_threads()} threads", flush=True)
    assert "Traceback" not in bench.log.read_text(), bench.log.read_text()[-3000:]
    warm, last = max(held[:WARM]), min(held[-WARM:])
    assert last < 1.3 * warm, f"{warm / 1e6:.0f} MB after {WARM} rounds, {last / 1e6:.0f} MB after {ROUNDS}"
