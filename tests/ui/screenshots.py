"""Pictures of every page of a running workbench: `python tests/ui/screenshots.py URL FOLDER [--width 390]… [--ask]`.

One file a page, language, colour scheme and width. With --ask it asks the built-in documentation a question first, in
each language, and takes the answer with an opened source: the pictures of README are made so, against a real model.
"""

import argparse
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright

CHROMIUM = "/usr/bin/chromium"
LENS = (
    ("writing", "write", "button.mf-token"),
    ("next", "odds_look", ".mf-bar.after"),
    ("cuts", "cut_look", ".mf-piece"),
    ("map", "map_draw", ".mf-map"),
    ("near", "near_look", ".st-key-near_walks"),
)
"""The microscope's tabs: what is pressed in each, and what comes of it."""


def open_page(browser: Browser, url: str, *, lang: str, scheme: str, width: int) -> Page:
    context = browser.new_context(
        viewport={"width": width, "height": 900 if width > 600 else 844},
        color_scheme="dark" if scheme == "dark" else "light",
        locale="zh-CN" if lang == "zh" else "en-US",
        has_touch=width < 600,
        device_scale_factor=2 if width < 600 else 1,
    )
    page = context.new_page()
    page.goto(f"{url}?lang={lang}")
    return page


def settle(page: Page) -> None:
    """The page is drawn and nothing is on its way."""
    page.wait_for_selector(".mf-hero, .mf-head, .mf-user")
    page.wait_for_function("!document.querySelector('[data-testid=stSkeleton]')")
    page.wait_for_timeout(600)


def walk(page: Page, url: str, lang: str, ask: bool, name: str, folder: Path) -> None:
    def shot(what: str) -> None:
        settle(page)
        page.screenshot(path=folder / f"{what}.{name}.png")

    shot("chat-empty")
    if ask:
        page.locator(".st-key-examples button").last.click()
        page.wait_for_selector(".mf-copy", timeout=300_000)
        if page.locator("a[href^='#s-']").count():
            page.locator("a[href^='#s-']").first.click()
        shot("chat-answer")
    page.locator("[class*=st-key-settings_] button").first.click()
    shot("chat-settings")
    page.keyboard.press("Escape")
    if page.viewport_size and page.viewport_size["width"] < 600:
        page.locator("[data-testid=stExpandSidebarButton]").click()
        shot("sidebar")
        page.locator("[data-testid=stSidebarCollapseButton] button").click()
    page.goto(f"{url}/models?lang={lang}")
    settle(page)
    if page.locator("[class*=st-key-details_] summary").count():
        page.locator("[class*=st-key-details_] summary").first.click()
        page.wait_for_selector(".mf-facts")
    shot("models-installed")
    page.get_by_role("tab").nth(1).click()
    shot("models-catalogue")
    page.goto(f"{url}/train?lang={lang}")
    settle(page)
    if page.locator("[class*=st-key-see_run_]").count():
        shot("train-runs")
        page.locator("[class*=st-key-see_run_] button").first.click()
        page.wait_for_selector(".mf-stats")
        shot("train-run")
    else:
        shot("train-new")
    page.goto(f"{url}/lens?lang={lang}")
    settle(page)
    for number, (panel, button, there) in enumerate(LENS):
        page.get_by_role("tab").nth(number).click()
        page.locator(f".st-key-{button} button").click()
        page.locator(there).first.wait_for(timeout=300_000)
        if panel == "writing":
            page.locator("button.mf-token").nth(1).click()
            page.wait_for_selector(".st-key-options")
        settle(page)
        page.screenshot(path=folder / f"lens-{panel}.{name}.png", full_page=True)
    page.goto(f"{url}/concepts?lang={lang}")
    shot("concepts")
    for summary in page.locator("[class*=st-key-show_] summary").all():
        summary.click()
        page.wait_for_timeout(1_500)
    settle(page)
    page.screenshot(path=folder / f"concepts-open.{name}.png", full_page=True)
    page.goto(f"{url}/knowledge?lang={lang}")
    shot("knowledge-documents")
    page.get_by_role("tab").nth(1).click()
    page.locator("[class*=st-key-query_] input").fill("怎样使用已经下载好的模型")
    page.keyboard.press("Enter")
    page.wait_for_selector(".mf-hit")
    shot("knowledge-search")
    page.locator("[class*=st-key-view_hit_] button").first.click()
    page.wait_for_selector("[role=dialog] :is(.mf-document, .mf-page)")
    shot("knowledge-document")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("url")
    options.add_argument("folder", type=Path)
    options.add_argument("--width", type=int, action="append")
    options.add_argument("--lang", action="append")
    options.add_argument("--scheme", action="append")
    options.add_argument("--ask", action="store_true")
    chosen = options.parse_args()
    chosen.folder.mkdir(parents=True, exist_ok=True)
    url = chosen.url.rstrip("/")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        for lang in chosen.lang or ("zh", "en"):
            for scheme in chosen.scheme or ("light", "dark"):
                for width in chosen.width or (1440, 390):
                    page = open_page(browser, url, lang=lang, scheme=scheme, width=width)
                    walk(page, url, lang, chosen.ask, f"{lang}.{scheme}.{width}", chosen.folder)
                    page.context.close()
        browser.close()


if __name__ == "__main__":
    main()
