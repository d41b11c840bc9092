"""The sidebar: mark, pages, conversations (new, open, rename, delete), language."""

from collections.abc import Mapping
from html import escape
from typing import Any

import streamlit as st

from mofang.errors import MofangError
from mofang.ui.components.base import mark, plain, show_error
from mofang.ui.places import PLACES
from mofang.ui.session import client, conversation_id, language, link_params, open_conversation, set_language, t

SHOWN = 30
"""Conversations listed before "more" is asked for."""


def sidebar(pages: Mapping[str, Any], current: Any, conversations: list[dict[str, Any]] | None) -> None:
    """`conversations` None: the gateway does not tell them just now; pages and language can still be chosen."""
    with st.sidebar:
        st.html(f'<div class="mf-brand">{mark()}<span>{escape(t("app_name"))}</span></div>')
        for name, page in pages.items():
            st.page_link(
                page,
                label=t(f"page_{name}"),
                icon=f":material/{PLACES[name].icon}:",
                query_params=link_params(),
                width="stretch",
            )
        if conversations is not None:
            _conversations(conversations, pages["chat"], is_chat=current is pages["chat"])
        _language()


def _conversations(conversations: list[dict[str, Any]], chat_page: Any, *, is_chat: bool) -> None:
    with st.container(key="conversations"):
        if st.button(t("new_chat"), key="new_chat", icon=":material/add:", width="stretch", shortcut="Ctrl+Shift+O"):
            _go(chat_page, None, is_chat)
        limit = st.session_state.get("conversations_shown", SHOWN)
        here = conversation_id() if is_chat else None
        for conversation in conversations[:limit]:
            _row(conversation, chat_page, is_chat=is_chat, is_here=conversation["id"] == here)
        if len(conversations) > limit and st.button(t("more"), key="more_conversations", type="tertiary"):
            st.session_state["conversations_shown"] = limit + SHOWN
            st.rerun()


def _row(conversation: dict[str, Any], chat_page: Any, *, is_chat: bool, is_here: bool) -> None:
    name = conversation["id"]
    state = "here" if is_here else "row"
    with st.container(horizontal=True, vertical_alignment="center", wrap=False, gap=None, key=f"conv_{state}_{name}"):
        title = conversation.get("title") or t("untitled")
        busy = " ·" if conversation.get("running_generation_id") else ""
        if st.button(f"{plain(title)}{busy}", key=f"open_{name}", type="tertiary", width="stretch"):
            _go(chat_page, name, is_chat)
        chosen = st.menu_button(
            t("chat_actions"),
            ("rename", "delete"),
            key=f"menu_{name}",
            icon=":material/more_horiz:",
            type="tertiary",
            format_func={option: t(option) for option in ("rename", "delete")}.__getitem__,
        )
    if chosen == "rename":
        _rename(name, title)
    elif chosen == "delete":
        _delete(name, title)


def _go(chat_page: Any, conversation: str | None, is_chat: bool) -> None:
    open_conversation(conversation)
    if is_chat:
        st.rerun()
    st.switch_page(chat_page, query_params=link_params(c=conversation))


def _rename(name: str, title: str) -> None:
    @st.dialog(t("rename_title"))
    def ask() -> None:
        with st.form("rename", border=False):
            wanted = st.text_input(t("rename_label"), value=title, max_chars=200, key="rename_to")
            if st.form_submit_button(t("save"), type="primary"):
                try:
                    client().change_conversation(name, title=wanted.strip())
                except MofangError as error:
                    show_error(error)
                else:
                    st.rerun()

    ask()


def _delete(name: str, title: str) -> None:
    @st.dialog(t("delete_chat_title"))
    def ask() -> None:
        st.write(t("delete_chat_text", title=plain(title)))
        if st.button(t("delete"), key="delete_sure", type="primary", icon=":material/delete:"):
            try:
                client().delete_conversation(name)
            except MofangError as error:
                show_error(error)
            else:
                if conversation_id() == name:
                    open_conversation(None)
                st.rerun()

    ask()


def _language() -> None:
    names = {"zh": "中文", "en": "English"}

    def change() -> None:
        if chosen := st.session_state["language_switch"]:
            set_language(chosen)

    with st.container(key="language"):
        st.segmented_control(
            t("language"),
            list(names),
            default=language(),
            required=True,
            format_func=names.__getitem__,
            key="language_switch",
            on_change=change,
            label_visibility="collapsed",
            width="stretch",
        )
