"""Drafted questions on the knowledge page: begun, checked one by one, kept, evaluated on."""

import json
from typing import Any

import fake_gateway
import pytest
from playwright.sync_api import expect
from streamlit.testing.v1 import AppTest
from test_ui_app import go, run_until, text_of

from mofang.ui.run import SCRIPT


@pytest.fixture
def page(gateway: str) -> AppTest:
    page = AppTest.from_file(str(SCRIPT), default_timeout=20)
    page.run()
    go(page, "knowledge")
    return page


def furnish(page: AppTest, state: fake_gateway.State, n: int = 3) -> None:
    state.questions["handbook"] = [fake_gateway.question(number) for number in range(1, n + 1)]
    page.run()


def keys(page: AppTest) -> set[str]:
    return {str(button.key) for button in page.button}


def test_drafting_is_a_job_whose_report_is_shown(page: AppTest, state: fake_gateway.State) -> None:
    state.step_s = 0.02
    page.number_input(key="questions_n").set_value(2).run()
    page.button(key="questions_start").click().run()
    run_until(page, lambda: "出了 2 道题" in text_of(page))
    assert "指着“这段”说 2" in text_of(page) and len(state.questions["handbook"]) == 2


def test_one_is_decided_and_the_next_comes(page: AppTest, state: fake_gateway.State) -> None:
    furnish(page, state)
    rows = state.questions["handbook"]
    page.text_area(key="question_question_handbook_q1").set_value("改过的问题？")
    page.button(key="question_on").click().run()
    assert rows[0]["question"] == "改过的问题？" and rows[0]["state"] == "open", "kept before it is decided"
    assert "第 2 道，共 3 道" in text_of(page)
    page.button(key="question_back").click().run()
    page.button(key="question_accepted").click().run()
    page.button(key="question_dropped").click().run()
    assert [row["state"] for row in rows] == ["accepted", "dropped", "open"]
    assert "第 1 道，共 1 道" in text_of(page) and page.text_area(key="question_question_handbook_q3").value
    page.segmented_control(key="questions_state_handbook").set_value("dropped").run()
    page.button(key="question_open").click().run()
    assert rows[1]["state"] == "open"


def test_the_passage_opens_in_its_document(page: AppTest, state: fake_gateway.State) -> None:
    furnish(page, state)
    assert fake_gateway.SENTENCE in text_of(page)
    page.button(key="question_view").click().run()
    start = fake_gateway.TEXT.index(fake_gateway.SENTENCE)
    assert page.query_params["doc"] == "doc_1"
    assert page.query_params["at"] == f"{start}-{start + len(fake_gateway.SENTENCE)}"
    state.questions["handbook"][0]["document_id"] = None
    page.query_params.clear()
    page.run()
    assert "question_view" not in keys(page) and "已经不在知识库里" in text_of(page)


def test_an_empty_question_is_refused_in_words(page: AppTest, state: fake_gateway.State) -> None:
    furnish(page, state)
    page.text_area(key="question_question_handbook_q1").set_value("  ")
    page.button(key="question_accepted").click().run()
    assert state.questions["handbook"][0]["state"] == "open"
    assert "question 的值不可用" in text_of(page) and state.questions["handbook"][0]["question"].strip()


def test_the_accepted_ones_are_the_set_that_is_measured(page: AppTest, state: fake_gateway.State) -> None:
    furnish(page, state)
    assert "questions_evaluate" not in keys(page)
    page.button(key="question_accepted").click().run()
    page.button(key="questions_evaluate").click().run()
    run_until(page, lambda: "3 道题" in text_of(page))
    (job,) = (job for job in state.jobs.values() if job["kind"] == "evaluate")
    assert job["result"]["files"] == ["handbook.jsonl"]
    page.button(key="questions_delete_sure").click().run()
    assert "handbook" not in state.questions


def test_who_may_only_read_decides_nothing(page: AppTest, state: fake_gateway.State) -> None:
    state.bases["handbook"]["writable"] = False
    furnish(page, state)
    assert page.text_area(key="question_question_handbook_q1").disabled
    assert not keys(page) & {"questions_start", "question_accepted", "question_dropped", "questions_delete_sure"}


@pytest.mark.browser
def test_questions_are_checked_from_the_keyboard(bench: Any, visit: Any) -> None:
    bench.state.questions["handbook"] = []
    page = visit(f"{bench.url}/knowledge", width=390)
    page.get_by_role("tab").nth(2).click()
    page.locator(".st-key-questions_n input").fill("3")
    page.keyboard.press("Tab")
    page.locator(".st-key-questions_start button").click()
    steps = page.locator(".st-key-question_steps")
    expect(steps).to_contain_text("第 1 道，共 3 道", timeout=20_000)
    page.locator("[class*=st-key-question_question_] textarea").first.fill("怎样让模坊看到文件夹？")
    page.keyboard.press("Alt+Y")
    expect(steps).to_contain_text("共 2 道")
    page.reload()
    page.get_by_role("tab").nth(2).click()
    expect(steps).to_contain_text("共 2 道")
    page.keyboard.press("Alt+N")
    expect(steps).to_contain_text("第 2 道")
    page.keyboard.press("Alt+X")
    expect(steps).to_contain_text("第 1 道，共 1 道")
    rows = bench.state.questions["handbook"]
    assert [row["state"] for row in rows] == ["accepted", "open", "dropped"]
    assert rows[0]["question"] == "怎样让模坊看到文件夹？"
    page.locator(".st-key-question_view button").click()
    expect(page.locator("[role=dialog] .mf-document mark")).to_have_text(fake_gateway.SENTENCE)
    page.keyboard.press("Escape")
    assert page.evaluate("document.scrollingElement.scrollWidth") <= 390
    with page.expect_download() as saved:
        page.locator(".st-key-questions_download button").click()
    assert len([json.loads(line) for line in saved.value.path().read_text("utf-8").splitlines()]) == 1
    page.locator(".st-key-questions_evaluate button").click()
    expect(page.locator(".st-key-report_evaluate")).to_contain_text("3 道题", timeout=20_000)
