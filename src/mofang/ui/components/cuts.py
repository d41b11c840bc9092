"""How a text is cut into tokens, by two models side by side."""

from collections.abc import Mapping, Sequence
from functools import partial
from html import escape
from typing import Any, Final

import streamlit as st

from mofang.ui.components.base import fragment, quiet, stats
from mofang.ui.components.tokens import cut
from mofang.ui.components.working import WRITERS, ask, keep, model_of
from mofang.ui.session import client, t

SHOWN: Final = 2_000
"""Tokens that are drawn; all are counted."""

Piece = Mapping[str, Any]


@fragment()
def cuts(models: list[dict[str, Any]]) -> None:
    text = st.text_area(t("lens_text"), key=keep("cut_text", t("cut_example")), height=110)
    with st.container(key="cut_models"):
        first = model_of(models, WRITERS, "cut_first")
        if first is None:
            return
        second = model_of(models, WRITERS, "cut_second", label=t("cut_second"), place=1)
    st.button(t("cut_look"), key="cut_look", type="primary", icon=":material/content_cut:", on_click=_look)
    if not st.session_state.get("cut_on") or not text:
        return
    with st.container(key="cut_sides"):
        for side, model in (("first", first), ("second", second)):
            if model and not (side == "second" and model == first):
                with st.container(key=f"cut_side_{side}", border=True):
                    cut_by(f"cut_{side}", model, text)
    if second == first:
        quiet(t("cut_same"))


def _look() -> None:
    st.session_state["cut_on"] = True


def cut_by(slot: str, model: str, text: str) -> None:
    """One model's cut with its figures."""
    st.html(f'<div class="mf-card"><b>{escape(model)}</b></div>')
    pieces = ask(slot, (model, text), partial(client().pieces, text, model, parse_special=False))
    if pieces is None:
        return
    if not pieces:
        quiet(t("cut_none"))
        return
    stats(*_figures(pieces, text))
    cut(pieces[:SHOWN])
    if len(pieces) > SHOWN:
        quiet(t("cut_more", n=f"{len(pieces) - SHOWN:,}"))


def _figures(pieces: Sequence[Piece], text: str) -> list[tuple[str, str]]:
    n = len(pieces)
    return [
        (t("cut_tokens"), f"{n:,}"),
        (t("cut_characters"), f"{len(text) / n:.2f}"),
        (t("cut_bytes"), f"{len(text.encode()) / n:.2f}"),
        (t("cut_parts"), f"{sum(piece['piece'] is None for piece in pieces):,}"),
    ]
