"""The evaluation of a base: sent, watched, shown with what was missed."""

from typing import Any

import fake_gateway
import pytest
from playwright.sync_api import expect
from streamlit.testing.v1 import AppTest
from test_ui_app import go, text_of

from mofang.ui.components import evaluation
from mofang.ui.run import SCRIPT


def test_what_came_of_it_and_what_was_missed(gateway: str, state: fake_gateway.State) -> None:
    job = fake_gateway.start_job(state, "evaluate", "handbook")
    job.update(status="done", result=fake_gateway.EVALUATION)
    page = AppTest.from_file(str(SCRIPT), default_timeout=20)
    page.session_state["evaluate_handbook"] = job["id"]
    page.run()
    go(page, "knowledge")
    text = text_of(page)
    assert "3 道题" in text and "p50 12 毫秒" in text and "1 份文档不在知识库里" in text
    measures, missed = (frame.value for frame in page.dataframe[:2])
    assert measures.values.tolist() == [["recall@1", 0.5, 0.6, 0.7], ["mrr@10", 0.5, 0.6, 0.7]]
    assert missed.values.tolist() == [["找不到的 <b>", 3, "–", 30]]
    page.button(key=f"dismiss_{job['id']}").click().run()
    assert "p50 12 毫秒" not in text_of(page)


def test_nothing_is_begun_without_questions(gateway: str) -> None:
    page = AppTest.from_file(str(SCRIPT), default_timeout=20)
    page.run()
    go(page, "knowledge")
    assert page.button(key="evaluate_start").disabled


def test_files_of_a_set_go_where_they_belong() -> None:
    assert [evaluation.placed(name) for name in ("题.jsonl", "queries.jsonl", "test.tsv")] == [
        "题.jsonl", "queries.jsonl", "qrels/test.tsv",
    ]  # fmt: skip


@pytest.mark.browser
@pytest.mark.parametrize("width", [390, 1440])
def test_a_base_is_measured(bench: Any, visit: Any, width: int) -> None:
    page = visit(f"{bench.url}/knowledge", width=width)
    page.get_by_role("tab").nth(2).click()
    row = evaluation.EXAMPLE.encode()
    page.locator("[class*=st-key-evaluate_files_] input[type=file]").set_input_files(
        [{"name": "题.jsonl", "mimeType": "application/json", "buffer": row}]
    )
    start = page.locator(".st-key-evaluate_start button")
    expect(start).to_be_enabled()
    start.click()
    report = page.locator(".st-key-report_evaluate")
    expect(report.locator("[data-testid=stVegaLiteChart] :is(canvas, svg)")).to_be_visible(timeout=20_000)
    expect(report).to_contain_text("没有找到的题 1")
    job = list(bench.state.jobs.values())[-1]
    assert job["result"]["files"] == ["题.jsonl"]
    assert page.evaluate("document.scrollingElement.scrollWidth") <= width
