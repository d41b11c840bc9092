"""The sidebar: mark, pages, conversations (new, find, open, rename, export, delete, import), language."""

import json
from collections.abc import Callable, Mapping
from html import escape
from typing import Any, Final

import streamlit as st

from mofang.errors import MofangError
from mofang.ui.components.base import fault, guarded, mark, plain, quiet, show_error, tell
from mofang.ui.places import PLACES
from mofang.ui.session import client, conversation_id, language, link_params, open_conversation, set_language, t
from mofang.ui.tree import path

SHOWN = 30
"""Conversations listed before "more" is asked for."""
IMPORT_MB = 32
"""The gateway's own bound, as it is where nobody changed it."""


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
        if conversations:
            conversations = _found(conversations)
        limit = st.session_state.get("conversations_shown", SHOWN)
        here = conversation_id() if is_chat else None
        for conversation in conversations[:limit]:
            _row(conversation, chat_page, is_chat=is_chat, is_here=conversation["id"] == here)
        if len(conversations) > limit and st.button(t("more"), key="more_conversations", type="tertiary"):
            st.session_state["conversations_shown"] = limit + SHOWN
            st.rerun()
        if st.button(t("import_chats"), key="import_chats", icon=":material/upload:", type="tertiary"):
            _import(chat_page, is_chat)


def _found(conversations: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """All of them, or those that hold the words in the field."""
    query = st.text_input(
        t("find_chats"),
        placeholder=t("find_chats"),
        key="find_chats",
        max_chars=200,
        label_visibility="collapsed",
        icon=":material/search:",
    )
    if not query or not query.strip():
        return conversations
    found = client().conversations(query)
    if not found:
        quiet(t("find_none"))
    return found


def _row(conversation: dict[str, Any], chat_page: Any, *, is_chat: bool, is_here: bool) -> None:
    name = conversation["id"]
    state = "here" if is_here else "row"
    with st.container(horizontal=True, vertical_alignment="center", wrap=False, gap=None, key=f"conv_{state}_{name}"):
        title = conversation.get("title") or t("untitled")
        busy = " ·" if conversation.get("running_generation_id") else ""
        if st.button(f"{plain(title)}{busy}", key=f"open_{name}", type="tertiary", width="stretch"):
            st.session_state["show_message"] = (conversation.get("hit") or {}).get("message_id")
            _go(chat_page, name, is_chat)
        chosen = st.menu_button(
            t("chat_actions"),
            ("rename", "export", "delete"),
            key=f"menu_{name}",
            icon=":material/more_horiz:",
            type="tertiary",
            format_func={option: t(option) for option in ("rename", "export", "delete")}.__getitem__,
        )
    if hit := conversation.get("hit"):
        quiet(hit["text"])
    if chosen in _ACTIONS:
        _ACTIONS[chosen](name, title)


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


def _export(name: str, title: str) -> None:
    """The files are made when the dialog opens: a download must not wait for a run of the page."""

    @st.dialog(t("export_title"))
    @guarded
    def ask() -> None:
        turns = path(client().conversation(name)["messages"], st.session_state.get(f"versions_{name}", {}))
        leaf = turns[-1].message["id"] if turns else None
        for form, suffix, kind in (("markdown", "md", "text/markdown"), ("json", "json", "application/json")):
            st.download_button(
                t(f"export_{form}"),
                client().export_conversation(name, form, leaf if form == "markdown" else None),
                f"{_file_name(title)}.{suffix}",
                kind,
                key=f"export_{form}",
                icon=":material/download:",
                on_click="ignore",
                width="stretch",
            )
            quiet(t(f"export_{form}_help"))

    ask()


def _file_name(title: str) -> str:
    """What every file system takes."""
    return "".join(" " if letter in '\\/:*?"<>|\n\t' else letter for letter in title).strip(" .")[:80] or "mofang"


_ACTIONS: Final[dict[str, Callable[[str, str], None]]] = {"rename": _rename, "export": _export, "delete": _delete}


def import_form() -> str | None:
    """Conversations out of a file; the first of them, once they are in."""
    quiet(t("import_help"))
    file = st.file_uploader(t("import_file"), type=["json"], key="import_file", max_upload_size=IMPORT_MB)
    if file is None:
        return None
    try:
        made = client().import_conversations(json.loads(file.getvalue()))
    except ValueError as error:  # also bytes that are no text
        fault(t("import_not_json", why=str(error)))
        return None
    except MofangError as error:
        show_error(error)
        return None
    if made["skipped_messages"]:
        tell(t("import_skipped", n=made["skipped_messages"]))
    return str(made["data"][0]["id"])


def _import(chat_page: Any, is_chat: bool) -> None:
    @st.dialog(t("import_chats"))
    @guarded
    def ask() -> None:
        if first := import_form():
            _go(chat_page, first, is_chat)

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
