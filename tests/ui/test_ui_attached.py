"""Files that go with a question, two models beside each other, diagrams: the page's logic, with AppTest."""

from typing import Any

import fake_gateway
import pytest
from streamlit.testing.v1 import AppTest
from test_ui_app import run_until, text_of
from test_ui_turns import ask

from mofang.ui import prose
from mofang.ui.components import beside
from mofang.ui.run import SCRIPT
from mofang.ui.tree import path

FIRST, SECOND = "qwen2.5-coder-0.5b-instruct", "another-model"


@pytest.fixture
def page(gateway: str) -> AppTest:
    return AppTest.from_file(str(SCRIPT), default_timeout=20)


def only(state: fake_gateway.State) -> dict[str, Any]:
    [conversation] = state.conversations.values()
    return conversation


def said(state: fake_gateway.State) -> list[dict[str, Any]]:
    return list(only(state)["messages"])


def drawn(page: AppTest, beginning: str) -> list[str]:
    return [str(one.value) for one in page.markdown if str(one.value).startswith(beginning)]


def over(page: AppTest) -> AppTest:
    return run_until(page, lambda: not page.chat_input[0].disabled)


def attach(page: AppTest, question: str, *names: str) -> None:
    box = page.chat_input[0]
    for name in names:
        box.upload(name, b"content")
    box.set_value(question).run()
    assert not page.exception


# ---- files ----


def test_a_file_goes_with_the_question_and_its_tokens_stand_beside_it(page: AppTest, state: fake_gateway.State) -> None:
    page.run()
    attach(page, "几天内付款？", "合同.pdf", "图.png")
    content = state.requests[-1]["messages"][0]["content"]
    ids = list(state.files)
    assert [part.get("file") for part in content[:2]] == [
        {"file_id": ids[0], "filename": "合同.pdf"},
        {"file_id": ids[1], "filename": "图.png"},
    ]
    assert content[2] == {"type": "text", "text": "几天内付款？"}
    over(page)
    shown = text_of(page)
    assert "合同.pdf · 3,214 token" in shown and ">图.png<" in shown and ">几天内付款？<" in shown
    assert "合同.pdf: 第 2 页没有文字" in shown
    assert only(state)["title"] == "几天内付款？"
    ask(page, "再问")
    again = AppTest.from_file(str(SCRIPT), default_timeout=20)
    again.query_params["c"] = only(state)["id"]
    again.run()
    assert "合同.pdf · 3,214 token" in text_of(again)


def test_a_file_alone_is_a_question_named_after_it(page: AppTest, state: fake_gateway.State) -> None:
    page.run()
    page.chat_input[0].upload("合同.pdf", b"x")
    page.run()
    over(page)
    [conversation] = state.conversations.values()
    assert conversation["title"] == "合同.pdf"
    assert [part["type"] for part in conversation["messages"][0]["content"]] == ["file"]


def test_unreadable_files_are_named_and_the_question_is_kept_with_the_others(
    page: AppTest, state: fake_gateway.State
) -> None:
    page.run()
    attach(page, "看看", "坏一.pdf", "好.pdf", "坏二.pdf")
    shown = text_of(page)
    assert "坏一.pdf 有打开密码" in shown and "坏二.pdf 有打开密码" in shown and shown.count("请先去掉密码") == 1
    assert ">看看<" in shown and ">好.pdf<" in shown and state.requests == [] and state.conversations == {}
    assert [name for name, _ in state.files.values()] == ["好.pdf"], "what cannot be read does not stay"
    page.button(key="send_again").click().run()
    over(page)
    content = state.requests[-1]["messages"][0]["content"]
    assert content[0]["file"]["filename"] == "好.pdf" and len(content) == 2 and len(state.files) == 1


def test_a_refused_question_keeps_its_files(page: AppTest, state: fake_gateway.State) -> None:
    page.run()
    state.is_full = True
    attach(page, "看看", "好.pdf")
    assert "排队的请求已满" in text_of(page) and ">好.pdf<" in text_of(page)
    state.is_full = False
    page.button(key="send_again").click().run()
    over(page)
    assert len(state.files) == 1 and "好.pdf · 3,214 token" in text_of(page)


def test_files_that_do_not_fit_lead_to_a_knowledge_base(page: AppTest, state: fake_gateway.State) -> None:
    page.run()
    attach(page, "说什么？", "长.pdf")
    over(page)
    assert "51,200 个 token" in text_of(page) and "放进知识库" in text_of(page) and ">说什么？<" in text_of(page)
    own = said(state)[1]["id"]
    page.button(key=f"go_knowledge_{own}").click().run()
    assert "知识库" in text_of(page) and not page.chat_input
    again = AppTest.from_file(str(SCRIPT), default_timeout=20)
    again.query_params["c"] = only(state)["id"]
    again.run()
    assert [button for button in again.button if button.key == f"go_knowledge_{own}"], "after a reload, too"


def test_an_edited_question_keeps_the_files_that_are_left(page: AppTest, state: fake_gateway.State) -> None:
    page.run()
    attach(page, "一问", "甲.pdf", "乙.pdf")
    over(page)
    question = said(state)[0]
    page.button(key=f"edit_{question['id']}").click().run()
    assert page.text_area(key=f"edit_text_{question['id']}").value == "一问"
    [_, second] = list(state.files)
    page.pills(key=f"attached_keep_{question['id']}").set_value([second])
    page.button(key=f"edit_save_{question['id']}").click().run()
    over(page)
    content = state.requests[-1]["messages"][0]["content"]
    assert [part["type"] for part in content] == ["file", "text"] and content[0]["file"]["file_id"] == second
    assert "甲.pdf" not in text_of(page) and "2/2" in text_of(page)


# ---- two models ----


@pytest.fixture
def two(page: AppTest, state: fake_gateway.State) -> AppTest:
    state.models.append(fake_gateway.chat_model(SECOND))
    page.run()
    page.selectbox(key="beside_new").set_value(SECOND).run()
    return page


def test_two_models_answer_beside_each_other_and_one_is_gone_on_with(two: AppTest, state: fake_gateway.State) -> None:
    page = two
    page.chat_input[0].set_value("比一比").run()
    assert only(state)["beside"] == SECOND
    assert [request["model"] for request in state.requests] == ["auto", SECOND]
    over(page)
    question, left, right = said(state)
    assert [left["parent_id"], right["parent_id"]] == [question["id"]] * 2
    assert (state.requests[1]["messages"], state.requests[1]["parent_id"]) == ([], question["id"])
    shown = text_of(page)
    assert len(drawn(page, "**上下文窗口**")) == 2 and f">{FIRST}<" in shown and f">{SECOND}<" in shown
    assert shown.count("23.4 token/秒") == 2 and "1/2" not in shown
    assert [button.key for button in page.button if str(button.key).startswith("choose_")] == [f"choose_{right['id']}"]
    page.button(key=f"choose_{right['id']}").click().run()
    assert [button.key for button in page.button if str(button.key).startswith("choose_")] == [f"choose_{left['id']}"]
    page.chat_input[0].set_value("接着").run()
    assert state.requests[-2]["parent_id"] == right["id"]
    over(page)
    shown = text_of(page)
    assert "2/2" in shown and len(drawn(page, "**上下文窗口**")) == 3, (
        "the first turn is versions now, the second two columns"
    )


def test_without_a_choice_the_conversation_goes_on_with_its_own_model(two: AppTest, state: fake_gateway.State) -> None:
    two.chat_input[0].set_value("比一比").run()
    over(two)
    again = AppTest.from_file(str(SCRIPT), default_timeout=20)
    again.query_params["c"] = only(state)["id"]
    again.run()
    again.chat_input[0].set_value("接着").run()
    assert state.requests[-2]["parent_id"] == said(state)[1]["id"]
    over(again)


def test_each_is_given_again_by_its_own_model(two: AppTest, state: fake_gateway.State) -> None:
    two.chat_input[0].set_value("比一比").run()
    over(two)
    left, right = said(state)[1:]
    two.button(key=f"again_{right['id']}").click().run()
    over(two)
    assert (len(state.requests), state.requests[-1]["model"]) == (3, SECOND)
    assert len(drawn(two, "**上下文窗口**")) == 2
    newest = said(state)[-1]
    assert [button.key for button in two.button if str(button.key).startswith("choose_")] == [f"choose_{newest['id']}"]
    two.button(key=f"again_{left['id']}").click().run()
    over(two)
    assert (len(state.requests), state.requests[-1]["model"]) == (4, "auto")


def test_one_column_is_stopped_and_the_other_goes_on(two: AppTest, state: fake_gateway.State) -> None:
    two.chat_input[0].set_value("慢").run()
    run_until(two, lambda: all(one["content"] for one in said(state)[1:]))
    left, right = said(state)[1:]
    again = AppTest.from_file(str(SCRIPT), default_timeout=20)
    again.query_params["c"] = only(state)["id"]
    again.run()
    assert again.chat_input[0].disabled and len(drawn(again, "这是一个")) == 2, "a reload follows both"
    again.button(key=f"stop_{left['id']}").click().run()
    run_until(again, lambda: "已停止" in text_of(again))
    assert again.chat_input[0].disabled and said(state)[2]["status"] == "running"
    again.button(key="stop").click().run()
    over(again)
    assert {one["status"] for one in said(state)[1:]} == {"stopped"} and right["id"] == said(state)[2]["id"]


def test_a_second_model_that_is_refused_leaves_the_first(
    two: AppTest, state: fake_gateway.State, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mofang.client import Client
    from mofang.errors import Busy

    begin = Client.generate

    def generate(self: Client, body: Any) -> Any:
        if body["model"] == SECOND:
            raise Busy("engine.queue_full", model=SECOND, waiting=1, retry_after_s=1)
        return begin(self, body)

    monkeypatch.setattr(Client, "generate", generate)
    two.chat_input[0].set_value("问").run()
    assert SECOND in text_of(two)
    over(two)
    assert len(said(state)) == 2 and "重新发送" not in text_of(two)


def test_pairs_are_found_among_versions() -> None:
    def message(name: str, model: str | None, role: str = "assistant") -> dict[str, Any]:
        return {
            "id": name,
            "parent_id": None if role == "user" else "q",
            "role": role,
            "model": model,
            "status": "done",
        }

    def names(*answers: dict[str, Any], chosen: str = "") -> list[str]:
        messages = [message("q", None, "user"), *answers]
        turns = path(messages, {"q": chosen})
        return [one["id"] for one in beside.pair_of({"messages": messages, "beside": "b"}, turns)]

    a1, a2, b1, b2 = message("a1", "a"), message("a2", "a"), message("b1", "b"), message("b2", "b")
    assert names(a1, b1) == ["a1", "b1"] and names(a1, b1, a2) == ["a2", "b1"] and names(a1, b1, b2) == ["a1", "b2"]
    assert names(a1, a2) == [] and names(b1) == [] and names(b1, b2) == ["b1", "b2"], "a model beside itself"
    assert names(a1, b1, a2, chosen="a1") == [], "an older version is looked at"
    assert beside.pair_of({"messages": [a1, b1], "beside": ""}, path([message("q", None, "user"), a1, b1], {})) == []


# ---- diagrams ----


def test_diagrams_are_drawn_when_the_answer_is_whole(page: AppTest, state: fake_gateway.State) -> None:
    page.run()
    ask(page, "画一张图")
    charts = drawn(page, "````mermaid")
    assert len(charts) == 2 and "A[提问] --> B{有资料?}" in charts[0]
    shown = text_of(page)
    assert shown.count("<pre") == 4 and shown.count("A[提问] --&gt; B{有资料?}") == 3 and "查看源码" in shown
    assert "流程如下：" in shown and "完。" in shown


CHART = "```mermaid\ngraph LR\n  A-->B\n```"


@pytest.mark.parametrize(
    ("text", "charts"),
    [
        (CHART, ["graph LR\n  A-->B"]),
        (f"前\n{CHART}\n后", ["graph LR\n  A-->B"]),
        ("~~~ Mermaid\nA\n~~~", ["A"]),
        ("   ```mermaid\n   graph\n     x\n   ```", ["graph\n  x"]),
        ("````mermaid\n```\n````", ["```"]),
        (CHART.removesuffix("```"), []),
        ("```mermaid\n\n```", []),
        ("```python\n```mermaid\n```", []),
        (f"- 列表\n\n      {CHART}", []),
        ("`mermaid`", []),
    ],
)
def test_an_answer_is_cut_at_its_diagrams(text: str, charts: list[str]) -> None:
    pieces = list(prose.pieces(text))
    assert [piece for piece, is_diagram in pieces if is_diagram] == charts
    rest = "".join(piece for piece, is_diagram in pieces if not is_diagram)
    assert ("前" in rest) is ("前" in text) and ("后" in rest) is ("后" in text)


def test_what_is_not_drawn_stays_code() -> None:
    assert prose.to_markdown(CHART) == CHART.replace("mermaid", "text", 1)
    assert prose.to_markdown("```mermaid\ngraph L") == "```text\ngraph L"
    assert prose.to_markdown("```mermaid-js\nx\n```") == "```text-js\nx\n```"
    assert prose.to_markdown("说 ```mermaid``` 这个词") == "说 ```mermaid``` 这个词"
