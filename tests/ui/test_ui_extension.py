"""Extending a tokenizer in the workbench: the form, the report card, and the steps to a model that uses it."""

from typing import Any

import fake_gateway
import pytest
from playwright.sync_api import expect
from streamlit.testing.v1 import AppTest
from test_ui_app import go, run_until, text_of
from test_ui_train import sent_by

from mofang.recipes import recipe_class
from mofang.ui.components import extension
from mofang.ui.run import SCRIPT

MODEL = "qwen2.5-coder-0.5b-instruct"


@pytest.fixture
def page(gateway: str, state: fake_gateway.State) -> AppTest:
    state.datasets["文集.txt"] = "很多文字。\n".encode() * 40
    state.datasets["表.csv"] = b"a,b\n"
    page = AppTest.from_file(str(SCRIPT), default_timeout=20)
    page.run()
    go(page, "train")
    return page


def buttons(page: AppTest) -> set[str]:
    return {str(button.key) for button in page.button}


def test_only_what_was_chosen_is_sent(page: AppTest, state: fake_gateway.State) -> None:
    assert page.button(key="extend_start").disabled
    assert sorted(page.multiselect(key="extend_data").options) == ["文集.txt", "身份.jsonl"], "a table is no text"
    page.multiselect(key="extend_data").set_value(["文集.txt"])
    page.text_input(key="extend_path").set_value(" /data/文集 ")
    page.number_input(key="extend_new_tokens").set_value(500).run()
    body = sent_by(page, "extend_start")
    assert (body["kind"], body["recipe"]) == (
        "extend", {"model": MODEL, "texts": ["文集.txt", "/data/文集"], "new_tokens": 500},
    )  # fmt: skip
    assert page.query_params["run"] == list(state.runs)[-1] and "学习 token" in text_of(page)


def test_every_field_of_the_recipe_is_asked_for(page: AppTest) -> None:
    kinds = (page.number_input, page.text_input, page.selectbox)
    asked = {str(one.key) for kind in kinds for one in kind if str(one.key).startswith("extend_")}
    fields = set(recipe_class("extend").model_fields) - set(extension.PLACED)
    assert {f"extend_{name}" for name in fields} | {"extend_model", "extend_path"} == asked


def test_the_report_card_and_the_way_to_a_training(page: AppTest, state: fake_gateway.State) -> None:
    run = fake_gateway.extended(state)
    run["recipe"]["texts"] = ["/home/mofang/.mofang/datasets/文集.txt", "/data/别处.txt"]
    page.query_params["run"] = run["id"]
    page.run()
    said = text_of(page)
    assert "值得扩充" in said and "0.62 → 1.43" in said and "× 1.89" in said and "&lt;新&gt;" in said
    assert "扩充前 · token 数 21" in said and "扩充后 · token 数 3" in said and "比要的少 20 个" in said
    assert "extend_train" not in buttons(page)
    recipe = sent_by(page, "extend_resize")["recipe"]
    assert recipe == {"model": MODEL, "tokenizer": run["result"]["path"]}
    run_until(page, lambda: "extend_train" in buttons(page))
    made = next(one["model"] for one in state.runs.values() if one["kind"] == "resize")
    page.button(key="extend_train").click().run()
    assert "run" not in page.query_params
    assert page.segmented_control(key="train_method").value == "pretrain"
    assert page.selectbox(key="train_base_or_new").value == made
    assert page.multiselect(key="train_data").value == ["文集.txt"], "what lies elsewhere is not at the gateway"
    assert sent_by(page)["recipe"]["base"] == made


def test_rows_of_another_tokenizer_are_not_ours(page: AppTest, state: fake_gateway.State) -> None:
    run = fake_gateway.extended(state)
    other = fake_gateway.new_run(state, "resize", {"model": MODEL, "tokenizer": "/another"})
    fake_gateway.finished(state, other)
    page.query_params["run"] = run["id"]
    page.run()
    assert "extend_resize" in buttons(page) and "extend_train" not in buttons(page)


def test_few_texts_have_no_card_and_it_is_said(page: AppTest, state: fake_gateway.State) -> None:
    run = fake_gateway.extended(state)
    run["result"] = {name: value for name, value in run["result"].items() if name != "card"} | {"cuts": None}
    page.query_params["run"] = run["id"]
    page.run()
    assert "不到 20 行" in text_of(page) and "值得扩充" not in text_of(page)


def test_the_page_of_exports_shows_the_same(page: AppTest, state: fake_gateway.State) -> None:
    run = fake_gateway.extended(state)
    go(page, "quantize")
    assert "extend" not in page.segmented_control(key="quantize_kind").options
    page.query_params["run"] = run["id"]
    page.run()
    assert "值得扩充" in text_of(page)


def test_two_tokenizers_are_measured_on_the_same_texts(page: AppTest, state: fake_gateway.State) -> None:
    state.step_s = 0.01
    state.models.append(fake_gateway.chat_model("另一个"))
    page.run()
    assert page.button(key="measure_start").disabled
    page.multiselect(key="extend_data").set_value(["文集.txt"])
    page.selectbox(key="measure_against").set_value("另一个").run()
    body = sent_by(page, "measure_start")
    recipe = {"model": MODEL, "texts": ["文集.txt"], "against": "另一个"}
    assert (body["kind"], body["recipe"]) == ("measure", recipe)
    run_until(page, lambda: len(page.dataframe) > 0)
    table = page.dataframe[0].value
    assert list(table.columns) == ["项目", MODEL, "另一个"]
    rows = dict(zip(table["项目"], table.iloc[:, 1:].values.tolist(), strict=True))
    assert rows["字符/token"] == ["0.60", "1.60"] and rows["不能原样还原的行"] == ["1 / 40", "1 / 40"]
    assert rows["字符/token：汉字"] == ["0.60", "1.60"]


@pytest.mark.browser
@pytest.mark.parametrize("width", [390, 1440])
def test_a_tokenizer_is_extended_and_its_model_trained(bench: Any, visit: Any, width: int) -> None:
    page = visit(f"{bench.url}/train", width=width)
    page.get_by_role("tab", name="扩充分词器").click()
    text = "".join(f"人工智能会写诗，第 {n} 行。\n" for n in range(40)).encode()
    page.locator("[class*=st-key-extend_files_] input[type=file]").set_input_files(
        [{"name": "新文集.txt", "mimeType": "text/plain", "buffer": text}]
    )
    start = page.locator(".st-key-extend_start button")
    expect(start).to_be_enabled()
    start.click()
    expect(page.get_by_text("学习 token")).to_be_visible()
    after = page.locator(".st-key-extend_cut_after .mf-piece")
    expect(after).to_have_count(3, timeout=20_000)
    assert page.evaluate("document.scrollingElement.scrollWidth") <= width
    page.reload()
    expect(after).to_have_count(3)
    page.locator(".st-key-extend_resize button").click()
    onward = page.locator(".st-key-extend_train button")
    expect(onward).to_be_visible(timeout=20_000)
    onward.click()
    expect(page.locator(".st-key-train_data")).to_contain_text("新文集.txt")
    expect(page.locator(".st-key-train_base_or_new input")).to_have_value(f"{MODEL}-hf")
    expect(page.locator(".st-key-train_start button")).to_be_enabled()
    page.locator(".st-key-train_start button").click()
    expect(page.locator(".st-key-run_progress")).to_be_visible()
    assert list(bench.state.runs.values())[-1]["kind"] == "pretrain"
