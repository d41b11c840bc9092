"""The training page: the form that the schema makes, and runs that are watched, stopped, resumed, exported, talked to.

In a real Chromium against the scripted gateway (fake_gateway: real recipes and readers, scripted runs); what needs no
browser in process.
"""

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import fake_gateway
import pytest
from hypothesis import given
from hypothesis import strategies as st
from playwright.sync_api import Locator, Page, TimeoutError, expect
from streamlit.testing.v1 import AppTest
from test_ui_app import go, text_of

from mofang.client import Client
from mofang.recipes import METHODS, recipe_class
from mofang.recipes.training import Training
from mofang.ui.components import compare
from mofang.ui.pages import train
from mofang.ui.run import SCRIPT

GOOD = json.dumps({"instruction": "你好", "output": "你好，我是小坊。"}, ensure_ascii=False)
BROKEN = json.dumps({"instruction": "你好"}, ensure_ascii=False)


# ---- in process ----


@pytest.fixture
def page(gateway: str) -> AppTest:
    page = AppTest.from_file(str(SCRIPT), default_timeout=20)
    page.run()
    go(page, "train")
    return page


def keys(page: AppTest) -> set[str]:
    kinds = (page.number_input, page.text_input, page.text_area, page.selectbox, page.toggle, page.multiselect)
    return {str(element.key) for kind in kinds for element in kind}


@pytest.mark.parametrize("kind", METHODS.names())
def test_every_field_of_the_recipe_is_asked_for_once(page: AppTest, kind: str) -> None:
    page.segmented_control(key="train_method").set_value(kind).run()
    asked = keys(page)
    fields = set(recipe_class(kind).model_fields) - set(train.PLACED)
    assert {name for name in asked if name.startswith(f"train_{kind}_")} == {f"train_{kind}_{name}" for name in fields}
    assert {"train_data", "train_name", "train_export", "train_launcher"} <= asked


def test_the_groups_know_no_field_that_is_gone() -> None:
    listed = [name for names in (train.MAIN, train.PLACED, *train.GROUPS.values()) for name in names]
    assert set(listed) == set(Training.model_fields) and len(listed) == len(set(listed))


def sent_by(page: AppTest, button: str = "train_start") -> dict[str, Any]:
    """What the page posts when its work is started."""
    sent: list[dict[str, Any]] = []
    real = Client.request

    def note(client: Client, method: str, path: str, body: Any = None, **more: Any) -> Any:
        if (method, path) == ("POST", "/v1/runs"):
            sent.append(body)
        return real(client, method, path, body, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Client, "request", note)
        page.button(key=button).click().run()
    (body,) = sent
    return body


def test_a_launcher_is_chosen_with_its_own_fields(page: AppTest, state: fake_gateway.State) -> None:
    page.multiselect(key="train_data").set_value(["身份.jsonl"]).run()
    page.selectbox(key="train_launcher").set_value("torchrun").run()
    page.number_input(key="train_launcher_torchrun_processes").set_value(2).run()
    assert sent_by(page)["launcher"] == {"launcher": "torchrun", "processes": 2}
    assert "几个进程（torchrun）" in text_of(page)
    assert list(state.runs.values())[-1]["launcher"]["processes"] == 2


def test_faults_of_a_launcher_are_told(page: AppTest) -> None:
    page.multiselect(key="train_data").set_value(["身份.jsonl"]).run()
    page.selectbox(key="train_launcher").set_value("torchrun").run()
    page.number_input(key="train_launcher_torchrun_nodes").set_value(2).run()
    page.button(key="train_start").click().run()
    assert "rendezvous" in text_of(page) and "主机:端口" in text_of(page)


def test_pre_training_begins_a_new_model_where_no_base_is_chosen(page: AppTest) -> None:
    page.segmented_control(key="train_method").set_value("pretrain").run()
    page.multiselect(key="train_data").set_value(["身份.jsonl"]).run()
    page.selectbox(key="train_base_or_new").set_value("").run()
    page.text_input(key="train_pretrain_tokenizer").set_value("甲").run()
    assert sent_by(page)["recipe"] == {"data": ["身份.jsonl"], "tokenizer": "甲", "export": "q8_0"}


def test_only_what_was_changed_is_sent(page: AppTest, state: fake_gateway.State) -> None:
    assert page.button(key="train_start").disabled
    page.multiselect(key="train_data").set_value(["身份.jsonl"]).run()
    assert "32 条样例" in text_of(page) and "<mark>我是小坊" in text_of(page)
    page.number_input(key="train_sft_epochs").set_value(2)
    page.number_input(key="train_sft_max_steps").set_value(7)
    assert page.text_area(key="train_sft_lora_targets").value == "all-linear"
    page.text_area(key="train_sft_lora_targets").set_value("q_proj\n v_proj ")
    page.text_area(key="train_sft_sample_prompts").set_value("你好，你是谁？")
    page.toggle(key="train_sft_packing").set_value(False)
    page.text_input(key="train_name").set_value("乙").run()
    assert sent_by(page) == {
        "kind": "sft",
        "recipe": {
            "base": "qwen2.5-coder-0.5b-instruct", "data": ["身份.jsonl"], "name": "乙", "export": "q8_0", "epochs": 2,
            "max_steps": 7, "lora_targets": ["q_proj", "v_proj"], "sample_prompts": ["你好，你是谁？"], "packing": False,
        },
        "launcher": {},
    }  # fmt: skip
    assert page.query_params["run"] == list(state.runs)[-1]


def test_all_faults_are_shown_at_once(page: AppTest) -> None:
    page.multiselect(key="train_data").set_value(["身份.jsonl"]).run()
    page.number_input(key="train_sft_learning_rate").set_value(1.0)
    page.number_input(key="train_sft_max_grad_norm").set_value(0.0).run()
    page.button(key="train_start").click().run()
    said = text_of(page)
    assert "learning_rate 的值 1.0 不可用" in said and "max_grad_norm 的值 0.0 不可用" in said


def test_the_missing_extra_is_told_with_its_pip_line(page: AppTest, state: fake_gateway.State) -> None:
    state.can_train = False
    page.multiselect(key="train_data").set_value(["身份.jsonl"]).run()
    page.button(key="train_start").click().run()
    assert "需要 Python 库 torch" in text_of(page) and "pip install &#x27;mofang[train]&#x27;" in text_of(page)


def test_without_a_model_to_teach_the_way_to_one_is_shown(page: AppTest, state: fake_gateway.State) -> None:
    state.models = [model for model in state.models if model["kind"] == "embedding"]
    page.run()
    assert "go_models" in [button.key for button in page.button] and "train_start" not in keys(page)


def test_a_newcomer_is_told_what_to_do(page: AppTest, state: fake_gateway.State) -> None:
    state.runs.clear()
    page.run()
    assert "还没有训练过模型" in text_of(page) and '"instruction": "你是谁？"' in page.code[0].value


def test_a_run_that_is_gone_is_said(page: AppTest) -> None:
    page.query_params["run"] = "没有-0301"
    page.run()
    assert "没有编号为 没有-0301 的运行" in text_of(page) and "run" not in page.query_params
    assert "训练记录 1" in [tab.label for tab in page.tabs]


def test_a_failed_run_says_why_and_can_be_deleted(page: AppTest, state: fake_gateway.State) -> None:
    run = next(iter(state.runs.values()))
    run.update(
        status="failed",
        error={"code": "not_finite", "message": "第 3 步的损失不是有限的数", "hint": "请减小 learning_rate"},
    )
    page.query_params["run"] = run["id"]
    page.run()
    assert "第 3 步的损失不是有限的数" in text_of(page) and "请减小 learning_rate" in text_of(page)
    page.button(key="run_delete_sure").click().run()
    assert not state.runs and "run" not in page.query_params


def test_what_the_model_said_on_the_way_is_shown_newest_first(page: AppTest, state: fake_gateway.State) -> None:
    run = fake_gateway.new_run(state, "sft", {"base": "b", "data": ["d.jsonl"], "name": "甲"})
    for step in range(21):
        fake_gateway.measured(run, step)
    page.query_params["run"] = run["id"]
    page.run()
    text = text_of(page)
    assert any("你是谁？" in code.value for code in page.code) and "我是小坊，&lt;学了&gt; 20 步。" in text
    assert text.index("第 20 步") < text.index("第 10 步") < text.index("第 0 步")


def test_trainings_are_compared_by_what_differs(page: AppTest, state: fake_gateway.State) -> None:
    assert "比较" not in [tab.label for tab in page.tabs], "one training has nothing to be compared with"
    first = next(iter(state.runs.values()))
    second = fake_gateway.new_run(state, "sft", {**first["recipe"], "learning_rate": 1e-4, "name": "小坊"})
    for step in range(11):
        fake_gateway.measured(second, step)
    fake_gateway.finished(state, second)
    page.run()
    assert "比较" in [tab.label for tab in page.tabs]
    assert len(page.multiselect(key="compare_runs").value) == 2
    table = page.dataframe[0].value
    said = dict(zip(table["项目"], table.iloc[:, 1:].values.tolist(), strict=True))
    assert sorted(said["学习率"]) == ["0.0001", "0.0002"] and "底座模型" not in said
    assert len(set(table.columns)) == 3, "two trainings of one title are told apart"


@given(st.lists(st.dictionaries(st.sampled_from("abc"), st.integers(0, 2)), min_size=1, max_size=4))
def test_what_differs(recipes: list[dict[str, int]]) -> None:
    found = compare.differing(recipes)
    for name in "abc":
        assert (name in found) is (len({one.get(name) for one in recipes}) > 1)


def test_an_export_that_fails_is_said_and_can_be_tried_again(page: AppTest, state: fake_gateway.State) -> None:
    run = next(iter(state.runs))
    export = fake_gateway.new_run(state, "gguf", {"model": run})
    export.update(status="failed", error={"message": "磁盘空间不足", "hint": "请清理空间"})
    page.query_params["run"] = run
    page.run()
    assert "磁盘空间不足" in text_of(page) and "run_export" in [button.key for button in page.button]


def test_what_a_client_asks_for_a_preview(gateway: str) -> None:
    with Client(gateway) as client:
        assert client.preview_dataset("身份.jsonl", "m")["n_cut"] == 0
        assert client.preview_dataset("身份.jsonl", "m", 16)["n_cut"] == 32


# ---- in a browser ----


@pytest.fixture
def trains(bench: Any) -> Iterator[str]:
    """The training page's URL; afterwards the gateway is as it was."""
    runs, data, models = dict(bench.state.runs), dict(bench.state.datasets), list(bench.state.models)
    yield f"{bench.url}/train"
    bench.state.runs, bench.state.datasets, bench.state.models = runs, data, models
    bench.state.step_s = 0.1


def choose_data(page: Page, name: str = "身份.jsonl") -> None:
    page.get_by_role("tab").nth(1).click()
    page.locator(".st-key-train_data input").click()
    page.get_by_role("option", name=name).click()
    page.keyboard.press("Escape")
    expect(page.locator(".st-key-train_preview mark")).to_contain_text("我是小坊")


def start(page: Page, name: str) -> None:
    choose_data(page)
    page.locator(".st-key-train_name input").fill(name)
    page.keyboard.press("Enter")
    page.locator(".st-key-train_start button").click()
    expect(page.locator(".mf-head h2")).to_contain_text(name)


def chip(page: Page) -> Locator:
    return page.locator(".mf-head .mf-badge")


def steps_done(page: Page) -> int:
    text = page.get_by_text(re.compile(r"第 \d+ / 40 步")).inner_text()
    found = re.search(r"第 (\d+) /", text)
    assert found
    return int(found[1])


@pytest.mark.browser
def test_a_training_is_watched_survives_a_reload_and_is_talked_to(bench: Any, visit: Any, trains: str) -> None:
    page = visit(trains)
    bench.state.step_s = 0.25
    start(page, "甲")
    expect(chip(page)).to_have_text("进行中")
    chart = page.locator("[data-testid=stVegaLiteChart] :is(canvas, svg)")
    expect(chart).to_be_visible()
    loss = page.locator(".mf-stats b").first
    expect(loss).to_contain_text("→")
    before, at = loss.inner_text(), steps_done(page)
    chart.evaluate("canvas => { canvas.dataset.mine = 'yes' }")
    expect(loss).not_to_have_text(before)
    page.wait_for_timeout(1500)
    assert steps_done(page) > at
    assert chart.get_attribute("data-mine") == "yes", "the chart was made anew: it flickers"
    page.reload()
    expect(page.locator(".mf-head h2")).to_contain_text("甲")
    expect(page.get_by_text("还剩约")).to_be_visible()
    assert steps_done(page) > at
    expect(chip(page)).to_have_text("完成", timeout=30_000)
    expect(page.get_by_text("每秒 token").first).to_be_visible()
    page.locator(".st-key-run_chat button").click()
    expect(page.get_by_role("combobox", name="模型")).to_have_value("甲-q8_0")
    page.fill("[data-testid=stChatInput] textarea", "你是谁？")
    page.press("[data-testid=stChatInput] textarea", "Enter")
    expect(page.locator(".mf-copy")).to_be_visible()
    assert bench.state.requests[-1]["model"] == "甲-q8_0"


@pytest.mark.browser
def test_a_training_is_stopped_and_goes_on(bench: Any, visit: Any, trains: str) -> None:
    page = visit(trains)
    start(page, "丙")
    expect(page.locator(".mf-stats b").first).to_contain_text("→")
    page.locator(".st-key-run_stop button").click()
    expect(page.locator(".st-key-run_stop button")).to_contain_text("正在存档并停下")
    expect(chip(page)).to_have_text("已停止")
    run = list(bench.state.runs.values())[-1]
    done = run["metrics"][-1]["step"]
    assert 0 < done < fake_gateway.STEPS
    page.locator(".st-key-run_resume button").click()
    expect(chip(page)).to_have_text("进行中")
    expect(chip(page)).to_have_text("完成", timeout=30_000)
    assert [row["step"] for row in run["metrics"] if "loss" in row] == list(range(1, fake_gateway.STEPS + 1))
    page.locator(".st-key-all_runs button").click()
    expect(page.locator(".mf-figures", has_text="丙-q8_0")).to_be_visible()


@pytest.mark.browser
def test_a_finished_training_is_exported_later(bench: Any, visit: Any, trains: str) -> None:
    page = visit(f"{trains}?run={next(iter(bench.state.runs))}")
    page.locator(".st-key-run_export button").click()
    expect(page.get_by_text("转换 · ")).to_be_visible()
    page.reload()
    expect(page.locator(".st-key-run_chat button")).to_be_visible(timeout=20_000)
    page.locator(".st-key-run_chat button").click()
    expect(page.get_by_role("combobox", name="模型")).to_have_value(re.compile("-q8_0$"))


def pick(page: Page, box: str, option: str) -> None:
    """Choose in a select box. What is typed while the page's script runs may be lost."""
    for _ in range(6):
        page.wait_for_timeout(1000)
        page.locator(f"{box} input").click()
        page.keyboard.type(option)
        with suppress(TimeoutError):
            page.get_by_role("option").first.click(timeout=3000)
            return
        page.keyboard.press("Escape")
    pytest.fail(f"{option} cannot be chosen")


@pytest.mark.browser
@pytest.mark.parametrize("width", [390, 1440])
def test_the_whole_form_fits_and_a_launcher_is_chosen(bench: Any, visit: Any, trains: str, width: int) -> None:
    page = visit(trains, width=width)
    page.get_by_role("tab").nth(1).click()
    page.locator(".st-key-train_more_fields summary").click()
    expect(page.locator(".st-key-train_more_launcher")).to_be_visible()
    assert page.evaluate("document.scrollingElement.scrollWidth") <= width
    labels = page.locator("[class*=st-key-train_more_] [data-testid=stWidgetLabel] p")
    expect(labels.nth(25)).to_be_visible()  # they come one after another
    heights = labels.evaluate_all("all => all.map(label => label.getBoundingClientRect().height)")
    assert max(heights) < 30, "a label is one line"
    pick(page, ".st-key-train_launcher", "torchrun")
    expect(page.locator(".st-key-train_launcher_torchrun_processes")).to_be_visible()


@pytest.mark.browser
def test_a_broken_row_is_named_and_the_right_file_is_taken(bench: Any, visit: Any, trains: str) -> None:
    page = visit(trains)
    page.get_by_role("tab").nth(1).click()

    def upload(name: str, *lines: str) -> None:
        content = "\n".join(lines).encode()
        chooser = page.locator("[class*=st-key-train_files_] input[type=file]")
        expect(chooser).to_have_count(1)
        chooser.set_input_files([{"name": name, "mimeType": "application/json", "buffer": content}])

    upload("坏.jsonl", GOOD, BROKEN)
    expect(page.locator("[role=alert]")).to_contain_text("坏.jsonl 第 2 行，字段 output：缺少")
    expect(page.locator("[role=alert]")).to_contain_text("请改正这一行")
    assert "坏.jsonl" not in bench.state.datasets
    upload("好.jsonl", GOOD, GOOD)
    expect(page.locator("[role=alert]")).to_have_count(0)
    expect(page.locator(".st-key-train_data")).to_contain_text("好.jsonl")
    expect(page.locator(".st-key-train_preview")).to_contain_text("2 条样例")
    expect(page.locator(".st-key-train_start button")).to_be_enabled()
