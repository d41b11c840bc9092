"""The tokens whose embedding rows are most like that of one token, and from them on to theirs."""

from functools import partial
from html import escape
from typing import Any, Final

import streamlit as st

from mofang.ui.components.base import fragment, plain, quiet
from mofang.ui.components.tokens import bar, chip, table
from mofang.ui.components.working import WRITERS, ask, keep, model_of
from mofang.ui.session import client, t
from mofang.ui.tokens import Option, legible

SHOWN: Final = 20


@fragment()
def near(models: list[dict[str, Any]]) -> None:
    text = st.text_input(
        t("near_token"), key=keep("near_text", t("near_example")), help=t("near_help"), on_change=_walk
    )
    model = model_of(models, WRITERS, "near_model")
    if model is None:
        return
    st.button(t("near_look"), key="near_look", type="primary", icon=":material/hub:", on_click=_look)
    if not st.session_state.get("near_on") or not text:
        return
    held = st.session_state.get("near_id")
    wanted: str | int = held[1] if held and held[0] == model else text
    found = ask("near", (model, wanted), partial(client().neighbours, model, wanted, SHOWN))
    if found:
        _show(model, found)


def _look() -> None:
    _walk()
    st.session_state["near_on"] = True


def _walk(model: str = "", token_id: int | None = None) -> None:
    """Look at that token next; without one, at what is written in the field."""
    st.session_state["near_id"] = None if token_id is None else (model, token_id)


def _show(model: str, found: dict[str, Any]) -> None:
    here = found["token"]
    quiet(
        t("near_of", text=legible(bytes(here["bytes"])), id=here["id"], n=f"{found['n_vocab']:,}", d=found["dimensions"],
          type=found["type"])
    )  # fmt: skip
    rows = [
        [
            chip(Option(one["id"], bytes(one["bytes"]), 0.0)),
            f'<span class="mf-quiet">{one["id"]}</span>',
            bar(max(0.0, one["cosine"]), f"{one['cosine']:.3f}"),
        ]
        for one in found["data"]
    ]
    table([t("odds_token"), t("odds_id"), t("near_cosine")], rows, t("near_caption"))
    st.html(f'<div class="mf-label">{escape(t("near_walk"))}</div>')
    with st.container(horizontal=True, gap="small", key="near_walks"):
        for one in found["data"][:10]:
            label = plain(legible(bytes(one["bytes"])))
            st.button(label, key=f"near_{one['id']}", on_click=_walk, args=(model, one["id"]))
