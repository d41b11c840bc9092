"""Conversations as trees on the page: turns and answers edited, gone on with, found, exported, imported; personas."""

import json
from typing import Any

import fake_gateway
import pytest
from hypothesis import given
from hypothesis import strategies as st
from streamlit.testing.v1 import AppTest
from test_ui_app import run_until, text_of

from mofang.server.shelf import builtin_presets
from mofang.ui import figures, tree
from mofang.ui.components import settings
from mofang.ui.run import SCRIPT


@pytest.fixture
def page(gateway: str) -> AppTest:
    return AppTest.from_file(str(SCRIPT), default_timeout=20)


def ask(page: AppTest, question: str) -> None:
    page.chat_input[0].set_value(question).run()
    run_until(page, lambda: not page.chat_input[0].disabled)


def said(state: fake_gateway.State) -> list[dict[str, Any]]:
    return list(state.conversations["conv_000001"]["messages"])


def test_an_edited_question_is_answered_and_the_old_branch_is_one_click_away(
    page: AppTest, state: fake_gateway.State
) -> None:
    page.run()
    ask(page, "一问")
    ask(page, "二问")
    first, answer = said(state)[:2]
    page.button(key=f"edit_{first['id']}").click().run()
    assert page.text_area(key=f"edit_text_{first['id']}").value == "一问"
    page.text_area(key=f"edit_text_{first['id']}").set_value("改了的一问")
    page.button(key=f"edit_save_{first['id']}").click().run()
    run_until(page, lambda: not page.chat_input[0].disabled)
    assert state.requests[-1]["parent_id"] == "root"
    assert state.requests[-1]["messages"] == [{"role": "user", "content": "改了的一问"}]
    assert "改了的一问" in text_of(page) and "二问" not in text_of(page)
    new = next(one for one in said(state) if one["content"] == "改了的一问")
    page.button(key=f"previous_{new['id']}").click().run()
    shown = text_of(page)
    assert "二问" in shown and "改了的一问" not in shown and "1/2" in shown
    page.button(key=f"edit_{said(state)[2]['id']}").click().run()
    page.button(key=f"edit_cancel_{said(state)[2]['id']}").click().run()
    assert len(said(state)) == 6, "cancelled: nothing was asked"
    again = AppTest.from_file(str(SCRIPT), default_timeout=20)
    again.query_params["c"] = "conv_000001"
    again.run()
    assert "改了的一问" in text_of(again), "after a reload: where the conversation went on last"
    assert said(state)[1] == answer


def test_an_edited_answer_is_a_version_that_the_conversation_goes_on_from(
    page: AppTest, state: fake_gateway.State
) -> None:
    page.run()
    ask(page, "一问")
    answer = said(state)[1]
    page.button(key=f"edit_{answer['id']}").click().run()
    page.text_area(key=f"edit_text_{answer['id']}").set_value("我改的回答")
    page.button(key=f"edit_save_{answer['id']}").click().run()
    shown = text_of(page)
    assert "我改的回答" in shown and "由人改过" in shown and "2/2" in shown
    assert [one["content"] for one in said(state)[1:]] == [fake_gateway.ANSWER, "我改的回答"]
    page.chat_input[0].set_value("接着").run()
    assert state.requests[-1]["parent_id"] == said(state)[2]["id"]
    run_until(page, lambda: not page.chat_input[0].disabled)


def test_any_answer_can_be_given_again(page: AppTest, state: fake_gateway.State) -> None:
    page.run()
    ask(page, "一问")
    ask(page, "二问")
    page.button(key=f"again_{said(state)[1]['id']}").click().run()
    run_until(page, lambda: not page.chat_input[0].disabled)
    assert state.requests[-1]["parent_id"] == said(state)[0]["id"] and "二问" not in text_of(page)


def test_an_answer_that_was_cut_goes_on(page: AppTest, state: fake_gateway.State) -> None:
    page.run()
    ask(page, "太长了")
    cut = said(state)[1]
    assert "没有写完" in text_of(page) and cut["content"] == fake_gateway.ANSWER[:20]
    page.button(key=f"continue_{cut['id']}").click().run()
    run_until(page, lambda: not page.chat_input[0].disabled)
    assert state.requests[-1]["prefix"] == cut["content"] and state.requests[-1]["messages"] == []
    assert said(state)[2]["content"] == fake_gateway.ANSWER and said(state)[1] == cut
    assert not [button for button in page.button if str(button.key).startswith("continue_")], "it is whole now"


def test_how_answers_begin_is_kept_with_the_conversation(page: AppTest, state: fake_gateway.State) -> None:
    page.run()
    page.text_input(key="prefix_new").set_value("好的，").run()
    ask(page, "一问")
    kept = state.conversations["conv_000001"]
    assert kept["prefix"] == "好的，"
    page.text_input(key="prefix_conv_000001").set_value("").run()
    assert kept["prefix"] == ""


def test_the_context_is_shown(page: AppTest, state: fake_gateway.State) -> None:
    page.run()
    ask(page, "一问")
    used = 128 + len(fake_gateway.ANSWER)
    assert f"上下文 {used} / 8,192" in text_of(page) and f"width:{100 * used / 8192:.1f}%" in text_of(page)
    assert figures.context({"usage": {"prompt_tokens": 1}}) is None and figures.context({"n_ctx": 5}) is None


# ---- many conversations ----


def test_conversations_are_found_and_opened_at_the_message(page: AppTest, state: fake_gateway.State) -> None:
    page.run()
    ask(page, "红烧肉怎么做？")
    ask(page, "换个话题")
    page.button(key="new_chat").click().run()
    ask(page, "别的")
    first = said(state)[0]
    state.conversations["conv_000001"]["messages"].append(fake_gateway.message(state, "user", None, content="新的一支"))
    page.text_input(key="find_chats").set_value("红烧肉").run()
    opened = [str(button.key) for button in page.button if str(button.key).startswith("open_")]
    assert opened == ["open_conv_000001"] and "红烧肉怎么做？" in text_of(page)
    page.button(key="open_conv_000001").click().run()
    assert "换个话题" in text_of(page) and "新的一支" not in text_of(page), "on the branch where it was found"
    assert tree.choices_to(said(state), said(state)[2]["id"])[""] == first["id"]
    page.text_input(key="find_chats").set_value("没有这个词").run()
    assert "没有找到" in text_of(page)


def test_conversations_come_in_from_a_file(gateway: str, state: fake_gateway.State) -> None:
    def dialog() -> None:
        import streamlit

        from mofang.ui.components import sidebar

        streamlit.session_state["first"] = sidebar.import_form()

    def send(content: bytes) -> AppTest:
        page = AppTest.from_function(dialog, default_timeout=20)
        page.run()
        page.file_uploader[0].set_value([("对话.json", content, "application/json")]).run()
        assert not page.exception
        return page

    turns = [{"role": "user", "content": "一"}, {"role": "assistant", "content": "二"}]
    page = send(json.dumps({"messages": turns}).encode())
    first = page.session_state["first"]
    assert [one["content"] for one in state.conversations[first]["messages"]] == ["一", "二"]
    assert "不是 JSON" in text_of(send(b"{")) and "不是 JSON" in text_of(send(b"\xff\xfe"))
    assert "不是认得的对话文件" in text_of(send(b"{}")) and len(state.conversations) == 1


# ---- personas and presets ----


def test_a_persona_greets_and_answers(page: AppTest, state: fake_gateway.State) -> None:
    state.personas.append(
        {"id": "p1", "name": "编辑", "system": "你是编辑", "greeting": "稿子呢？", "model": "auto", "sampling": {"temperature": 0.2}}
    )  # fmt: skip
    page.run()
    page.pills(key="persona_None_1").set_value("p1").run()
    assert "稿子呢？" in text_of(page) and "今天想聊点什么？" not in text_of(page)
    assert page.text_area(key="system_new_1").value == "你是编辑"
    ask(page, "在这里")
    kept = state.conversations["conv_000001"]
    assert kept["system"] == "你是编辑" and kept["sampling"]["temperature"] == 0.2 and kept["sampling"]["top_k"] == 40
    assert [one["content"] for one in said(state)[:2]] == ["稿子呢？", "在这里"]
    assert said(state)[1]["parent_id"] == said(state)[0]["id"]
    page.button(key="new_chat").click().run()
    assert "稿子呢？" not in text_of(page) and page.text_area(key="system_new_2").value == ""


def test_personas_are_made_changed_and_deleted(gateway: str, state: fake_gateway.State) -> None:
    def dialog() -> None:
        from mofang.ui.components import personas

        personas.editor()

    page = AppTest.from_function(dialog, default_timeout=20)
    page.run()
    page.text_input(key="persona_name_new").set_value("木匠")
    page.text_area(key="persona_greeting_new").set_value("你好")
    page.button(key="persona_save_new").click().run()
    assert [(one["name"], one["greeting"]) for one in state.personas] == [("木匠", "你好")]
    own = state.personas[0]["id"]
    page.text_area(key=f"persona_system_{own}").set_value("你是木匠")
    page.button(key=f"persona_save_{own}").click().run()
    assert state.personas[0]["system"] == "你是木匠"
    card = json.dumps({"name": "小坊", "first_mes": "我是{{char}}", "description": ""}).encode()
    page.file_uploader[0].set_value([("卡.json", card, "application/json")]).run()
    assert [one["greeting"] for one in state.personas] == ["你好", "我是小坊"]
    page.button(key=f"persona_delete_{own}").click().run()
    assert [one["name"] for one in state.personas] == ["小坊"]


def test_presets_are_kept_taken_and_deleted(page: AppTest, state: fake_gateway.State) -> None:
    page.run()
    page.slider(key="temperature_new_0").set_value(0.35).run()
    page.text_input(key="preset_name_new").set_value("我的取值").run()
    [kept] = state.presets
    assert (
        kept["name"] == "我的取值" and kept["sampling"]["temperature"] == 0.35 and "max_tokens" not in kept["sampling"]
    )
    page.pills(key="preset_new_0_" + kept["id"]).set_value("precise").run()
    assert page.slider(key="temperature_new_1").value == 0.1
    page.pills(key="preset_new_1_precise").set_value(kept["id"]).run()
    assert page.slider(key="temperature_new_2").value == 0.35
    page.button(key="preset_delete_new").click().run()
    assert state.presets == []


def test_what_a_conversation_begins_with_is_the_gateways_balanced_preset() -> None:
    presets = [{"id": name, **preset} for name, preset in builtin_presets().items()]
    found = settings.preset_of({**settings.DEFAULT, "seed": 5}, presets)
    assert found is not None and found["id"] == "balanced"
    assert settings.preset_of({**settings.DEFAULT, "dry_multiplier": 0.8}, presets) is None


# ---- the tree ----


@given(st.lists(st.tuples(st.integers(-1, 20), st.sampled_from(["user", "assistant"])), min_size=1, max_size=15))
def test_every_message_can_be_shown_and_the_newest_is(links: list[tuple[int, str]]) -> None:
    messages: list[tree.Message] = []
    for number, (at, role) in enumerate(links):
        parent = None if at < 0 or not messages else messages[at % len(messages)]["id"]
        messages.append({"id": f"m{number}", "parent_id": parent, "role": role})
    assert tree.path(messages, {})[-1].message is messages[-1]
    for message in messages:
        shown = tree.path(messages, tree.choices_to(messages, message["id"]))
        assert message in [turn.message for turn in shown]
        assert all(turn.versions[turn.version] == turn.message["id"] for turn in shown)
