"""Personas: chosen for a new conversation; made, imported from cards, changed and deleted in a dialog."""

from collections.abc import Callable
from typing import Any

import streamlit as st

from mofang.errors import MofangError
from mofang.ui.components.base import guarded, plain, quiet, show_error
from mofang.ui.session import client, t

Persona = dict[str, Any]
CARDS = ["png", "json", "yaml", "yml"]
CARD_MB = 16
"""What the gateway takes."""


def choose(current: str | None, take: Callable[[Persona | None], None]) -> None:
    """The choice above a conversation that has not begun; `take` is told of it."""
    known = client().personas()
    by_id = {persona["id"]: persona for persona in known}
    chosen = by_id.get(current or "")
    key = f"persona_{current}_{len(known)}"
    label = str(chosen["name"]) if chosen else t("persona")
    turn = st.session_state.setdefault("persona_round", 0)

    def shut() -> None:  # a popover that is open would lie over the dialog: another key is another one, closed
        st.session_state["persona_round"] = turn + 1

    with (
        st.popover(
            plain(label if len(label) <= 14 else label[:13] + "…"),
            icon=":material/face:",
            key=f"persona_pop_{turn}",
            type="primary" if chosen else "secondary",
        ),
        st.container(key="persona_body"),
    ):
        if known:
            st.pills(
                t("persona_choose"),
                list(by_id),
                default=chosen["id"] if chosen else None,
                format_func={name: plain(persona["name"]) for name, persona in by_id.items()}.__getitem__,
                key=key,
                on_change=lambda: take(by_id.get(st.session_state[key] or "")),
            )
        quiet(t("persona_help"))
        manage = st.button(
            t("personas_manage"), key="personas_manage", icon=":material/edit:", type="tertiary", on_click=shut
        )
    if manage:
        st.dialog(t("personas_manage"), width="medium")(editor)()


@guarded
def editor() -> None:
    """Every persona as a form, a new one, and cards."""
    known = client().personas()
    for persona in known:
        with st.expander(plain(persona["name"]), key=f"persona_edit_{persona['id']}"):
            _form(persona)
    with st.expander(t("persona_new"), icon=":material/add:", key="persona_edit_new", expanded=not known):
        _form(None)
    _import()


def _form(persona: Persona | None) -> None:
    """One persona's fields, or those of a new one."""
    own, kept = (persona["id"], persona) if persona else ("new", {})
    with st.form(f"persona_form_{own}", border=False):
        fields = {
            "name": st.text_input(t("persona_name"), kept.get("name", ""), max_chars=100, key=f"persona_name_{own}"),
            "system": st.text_area(
                t("system_prompt"), kept.get("system", ""), placeholder=t("system_placeholder"), key=f"persona_system_{own}"
            ),
            "greeting": st.text_area(
                t("persona_greeting"), kept.get("greeting", ""), placeholder=t("persona_greeting_placeholder"),
                key=f"persona_greeting_{own}", height=68,
            ),
        }  # fmt: skip
        with st.container(horizontal=True):
            saved = st.form_submit_button(t("save"), type="primary", key=f"persona_save_{own}")
            deleted = persona is not None and st.form_submit_button(
                t("delete"), icon=":material/delete:", key=f"persona_delete_{own}"
            )
    if not saved and not deleted:
        return
    try:
        if deleted:
            client().delete_persona(own)
        elif persona:
            client().change_persona(own, **fields)
        else:
            client().create_persona(**fields)
    except MofangError as error:
        show_error(error)
    else:
        st.rerun()


def _import() -> None:
    turn = st.session_state.setdefault("persona_import_round", 0)
    file = st.file_uploader(
        t("persona_import"),
        type=CARDS,
        key=f"persona_file_{turn}",
        help=t("persona_import_help"),
        max_upload_size=CARD_MB,
    )
    if file is None:
        return
    try:
        client().import_personas(file.getvalue())
    except MofangError as error:
        show_error(error)
    else:
        st.session_state["persona_import_round"] = turn + 1
        st.rerun()
