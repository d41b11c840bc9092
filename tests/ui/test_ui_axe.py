"""Every page by axe-core: nothing serious for people who use a screen reader, a keyboard, or see little contrast."""

from typing import Any

import fake_gateway
import pytest
from axe_playwright_python.sync_playwright import Axe
from test_ui_browser import PANELS, unfold

from mofang.ui.places import PLACES

SERIOUS = ("serious", "critical")


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("path", [place.path for place in PLACES.values()])
def test_no_serious_finding(bench: Any, visit: Any, path: str, scheme: str) -> None:
    page = visit(f"{bench.url}/{path}", scheme=scheme)
    page.wait_for_selector(".mf-hero, .mf-head, .mf-user")
    page.wait_for_function("!document.querySelector('[data-testid=stSkeleton]')")
    page.wait_for_timeout(1500)
    check(page)


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_serious_finding_in_what_the_microscope_shows(bench: Any, visit: Any, scheme: str) -> None:
    page = visit(f"{bench.url}/lens", scheme=scheme)
    for number, (button, there) in enumerate(PANELS.values()):
        page.get_by_role("tab").nth(number).click()
        page.locator(f".st-key-{button} button").click()
        page.locator(there).first.wait_for()
        page.wait_for_timeout(500)
        check(page)
    page.goto(f"{bench.url}/concepts")
    shown = page.locator("[class*=st-key-show_]")
    shown.last.wait_for()
    for number in range(shown.count()):
        unfold(shown.nth(number))
    page.wait_for_timeout(1500)
    check(page)


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_serious_finding_in_a_report_card_and_in_questions(bench: Any, visit: Any, scheme: str) -> None:
    run = fake_gateway.extended(bench.state)
    bench.state.questions["handbook"] = [fake_gateway.question(1), fake_gateway.question(2)]
    page = visit(f"{bench.url}/train?run={run['id']}", scheme=scheme)
    page.locator(".st-key-extend_cut_after .mf-piece").first.wait_for()
    page.wait_for_timeout(500)
    check(page)
    page.goto(f"{bench.url}/knowledge")
    page.get_by_role("tab").nth(2).click()
    page.locator("[class*=st-key-question_question_] textarea").first.wait_for()
    page.wait_for_timeout(500)
    check(page)


def check(page: Any) -> None:
    seen = Axe().run(page).response
    assert {"color-contrast", "button-name"} <= {one["id"] for one in seen["passes"]}, "the page was looked at"
    found = seen["violations"]
    told = [
        f"{one['id']}: {one['help']}\n  "
        + "\n  ".join(f"{node['target']} {node['html'][:200]}" for node in one["nodes"][:5])
        for one in found
        if one["impact"] in SERIOUS
    ]
    assert not told, "\n".join(told)
