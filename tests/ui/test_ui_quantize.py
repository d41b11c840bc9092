"""The page of exporters: forms that the schemas make, sizes told before, runs watched to the end, checks with their report."""

from collections.abc import Iterator
from typing import Any

import fake_gateway
import pytest
from playwright.sync_api import expect
from streamlit.testing.v1 import AppTest
from test_ui_app import go, text_of
from test_ui_train import keys, sent_by

from mofang.recipes import EXPORTERS, recipe_class
from mofang.ui.pages import quantize
from mofang.ui.run import SCRIPT

FOLDER = {**fake_gateway.chat_model("smol-hf"), "format": "hf", "quantization": "", "runnable": False}
GPTQ = {**fake_gateway.chat_model("smol-gptq"), "format": "gptq", "quantization": "gptq 4-bit", "runnable": False}


@pytest.fixture
def page(gateway: str, state: fake_gateway.State) -> AppTest:
    state.models += [FOLDER, GPTQ]
    page = AppTest.from_file(str(SCRIPT), default_timeout=20)
    page.run()
    go(page, "quantize")
    return page


def choose(page: AppTest, kind: str) -> None:
    page.segmented_control(key="quantize_kind").set_value(kind).run()


@pytest.mark.parametrize("kind", EXPORTERS.names())
def test_every_field_of_an_exporter_is_asked_for_once(page: AppTest, kind: str) -> None:
    choose(page, kind)
    _, decided = quantize.CHOOSERS.get(kind, (None, ()))
    fields = set(recipe_class(kind).model_fields) - set(quantize.PLACED) - set(decided)
    assert {name for name in keys(page) if name.startswith(f"quantize_{kind}_")} == {
        f"quantize_{kind}_{name}" for name in fields
    }
    assert f"quantize_model_{kind}" in keys(page)
    assert set(decided) <= set(recipe_class(kind).model_fields)


def test_a_size_is_chosen_and_told_before(page: AppTest) -> None:
    assert page.selectbox(key="quantize_model_gguf").value == "smol-hf"
    page.slider(key="quantize_bits").set_value(4.0).run()
    assert "约 315 MB" in text_of(page), "630,167,424 weights of 4 bits"
    assert sent_by(page, "quantize_start") == {
        "kind": "gguf",
        "recipe": {"model": "smol-hf", "bits": 4.0},
        "launcher": {},
    }


def test_a_type_or_the_fastest_is_chosen(page: AppTest) -> None:
    page.segmented_control(key="quantize_way").set_value("type").run()
    assert sent_by(page, "quantize_start")["recipe"] == {"model": "smol-hf", "type": "q4_k_m"}
    del page.query_params["run"]
    page.run()
    page.segmented_control(key="quantize_way").set_value("speed").run()
    page.number_input(key="quantize_max_kl").set_value(0.02).run()
    assert sent_by(page, "quantize_start")["recipe"] == {"model": "smol-hf", "type": "auto", "max_kl": 0.02}


def test_a_gptq_model_is_kept_to_the_bit(page: AppTest) -> None:
    page.selectbox(key="quantize_model_gguf").set_value("smol-gptq").run()
    assert "逐位保留" in text_of(page) and not [slider for slider in page.slider if slider.key == "quantize_bits"]
    page.selectbox(key="quantize_kept").set_value("q8_0").run()
    assert sent_by(page, "quantize_start")["recipe"] == {"model": "smol-gptq", "type": "q8_0"}


def test_what_a_training_led_to_can_be_quantized(page: AppTest, state: fake_gateway.State) -> None:
    run = next(iter(state.runs))
    page.selectbox(key="quantize_model_gguf").set_value(run).run()
    assert sent_by(page, "quantize_start")["recipe"] == {"model": run, "bits": 4.8}


def test_only_what_was_changed_is_sent(page: AppTest) -> None:
    choose(page, "gptq")
    page.number_input(key="quantize_gptq_bits").set_value(3)
    page.toggle(key="quantize_gptq_refine").set_value(False).run()
    assert sent_by(page, "quantize_start")["recipe"] == {"model": "smol-hf", "bits": 3, "refine": False}


def test_two_models_are_compared(page: AppTest) -> None:
    choose(page, "check")
    page.selectbox(key="quantize_model_check").set_value("smol-gptq").run()
    page.selectbox(key="quantize_reference").set_value("smol-hf").run()
    page.toggle(key="quantize_check_answers").set_value(False).run()
    assert sent_by(page, "quantize_start")["recipe"] == {"model": "smol-gptq", "reference": "smol-hf", "answers": False}


def test_a_fault_of_a_field_is_told(page: AppTest) -> None:
    choose(page, "gptq")
    page.number_input(key="quantize_gptq_bits").set_value(5).run()
    page.button(key="quantize_start").click().run()
    assert "bits 的值 5 不可用" in text_of(page) and "run" not in page.query_params


def test_what_came_of_it_is_checked_in_one_click(page: AppTest, state: fake_gateway.State) -> None:
    run = fake_gateway.new_run(state, "gguf", {"model": "smol-hf", "bits": 4.8})
    fake_gateway.finished(state, run)
    page.query_params["run"] = run["id"]
    page.run()
    text = text_of(page)
    assert "4.81" in text and "0.0123" in text and "完成" in text
    page.button(key="quantize_check").click().run()
    check = list(state.runs.values())[-1]
    assert check["kind"] == "check" and check["recipe"]["model"] == run["model"]
    fake_gateway.finished(state, check)
    page.run()
    assert "平均 KL 0.0321" in " ".join(block.value for block in page.markdown)


def test_a_failure_is_said(page: AppTest, state: fake_gateway.State) -> None:
    run = fake_gateway.new_run(state, "gptq", {"model": "smol-hf"})
    run.update(status="failed", error={"message": "磁盘空间不足", "hint": "请清理空间"})
    page.query_params["run"] = run["id"]
    page.run()
    assert "磁盘空间不足" in text_of(page) and "run_resume" in [button.key for button in page.button]


def test_without_a_model_the_way_to_one_is_shown(page: AppTest, state: fake_gateway.State) -> None:
    state.models, state.runs = [fake_gateway.chat_model()], {}
    page.run()
    assert "导入" in text_of(page) and "go_models" in [button.key for button in page.button]
    assert "quantize_start" not in [button.key for button in page.button]


# ---- in a browser ----


@pytest.fixture
def quantizes(bench: Any) -> Iterator[str]:
    """The page's URL; afterwards the gateway is as it was."""
    runs, models = dict(bench.state.runs), list(bench.state.models)
    bench.state.models = [*models, FOLDER]
    yield f"{bench.url}/quantize"
    bench.state.runs, bench.state.models = runs, models


@pytest.mark.browser
@pytest.mark.parametrize("width", [390, 1440])
def test_a_model_is_made_smaller_and_talked_to(bench: Any, visit: Any, quantizes: str, width: int) -> None:
    page = visit(quantizes, width=width)
    expect(page.get_by_text("约 ").first).to_be_visible()
    assert page.evaluate("document.scrollingElement.scrollWidth") <= width
    page.locator(".st-key-quantize_start button").click()
    expect(page.locator(".mf-head h2")).to_contain_text("smol-hf")
    expect(page.locator(".mf-head .mf-badge")).to_have_text("完成", timeout=20_000)
    expect(page.locator(".mf-stats")).to_contain_text("4.81")
    assert page.evaluate("document.scrollingElement.scrollWidth") <= width
    page.locator(".st-key-run_chat button").click()
    expect(page.locator("[data-testid=stChatInput] textarea")).to_be_visible()
