"""What a model expects next: a table of tokens with their probabilities, before and after the samplers."""

from collections.abc import Mapping, Sequence
from functools import partial
from html import escape
from typing import Any, Final

import streamlit as st

from mofang.ui.components.base import fragment, plain, quiet
from mofang.ui.components.settings import RANGES
from mofang.ui.components.tokens import bar, chip, table
from mofang.ui.components.working import WRITERS, ask, keep, model_of
from mofang.ui.session import client, t
from mofang.ui.tokens import Option, legible, percent

CHAIN: Final = ("top_k", "top_p", "min_p", "temperature")
"""In the order in which llama.cpp applies them."""
DEFAULTS: Final = {"temperature": 0.8, "top_k": 40, "top_p": 0.95, "min_p": 0.05}
"""llama.cpp's own."""
SHOWN: Final = 20
"""Tokens of the table."""
APPENDED: Final = 8
"""Of them, those that the text can go on with."""


def sliders(names: Sequence[str], defaults: Mapping[str, float], *, key: str) -> dict[str, Any]:
    """Sampling fields to choose, by name."""
    chosen = {}
    for name in names:
        low, high, step = RANGES[name]
        kind = type(step)
        chosen[name] = st.slider(
            t(name),
            kind(low),
            kind(high),
            step=step,
            key=keep(f"{key}_{name}", kind(defaults[name])),
            help=t(f"{name}_help"),
        )
    return chosen


def option_of(row: Mapping[str, Any]) -> Option:
    """One row of /v1/next_token."""
    data = bytes(row.get("bytes") or ()) or str(row["text"]).encode()
    return Option(row["token_id"], data, row["logprob"])


def odds(found: Mapping[str, Any]) -> None:
    """The answer of /v1/next_token as a table."""
    is_sampled = "n_kept" in found
    head = [t("odds_token"), t("odds_id"), t("odds_before"), *([t("odds_after")] if is_sampled else [])]
    rows = []
    for row in found["top"]:
        option = option_of(row)
        cells = [chip(option), f'<span class="mf-quiet">{option.id}</span>']
        cells.append(bar(option.probability, percent(option.probability)))
        if is_sampled:
            after = float(row["sampled"])
            cells.append(bar(after, percent(after) if after else t("odds_cut"), tone="after" if after else "none"))
        rows.append(cells)
    table(head, rows, t("odds_caption"))


@fragment()
def expected(models: list[dict[str, Any]]) -> None:
    """The panel: a text, the samplers, and what comes next before and after them."""
    text = st.text_area(t("lens_text"), key=keep("odds_text", t("next_example")), height=100)
    model = model_of(models, WRITERS, "odds_model")
    if model is None:
        return
    with st.container(key="odds_fields"):
        chosen = sliders(CHAIN, DEFAULTS, key="odds")
    quiet(t("next_chain"))
    st.button(t("next_look"), key="odds_look", type="primary", icon=":material/query_stats:", on_click=_look)
    if not st.session_state.get("odds_on"):
        return
    question = (model, text, tuple(chosen.items()))
    call = partial(client().next_token, text, model, n_top=SHOWN, sampling=chosen)
    if found := ask("odds", question, call):
        quiet(t("next_kept", n=found["n_kept"]))
        odds(found)
        _append(text, [option_of(row) for row in found["top"]])
        quiet(t("next_help"))


def _look() -> None:
    st.session_state["odds_on"] = True


def _append(text: str, options: Sequence[Option]) -> None:
    """Buttons that put one of the likeliest behind the text, to look at what comes after that."""
    st.html(f'<div class="mf-label">{escape(t("next_append"))}</div>')
    with st.container(horizontal=True, gap="small", key="appends"):
        for one in options[:APPENDED]:
            if one.text:
                label = f"{plain(legible(one.data))} {percent(one.probability)}"
                st.button(label, key=f"append_{one.id}", on_click=_take, args=(text + one.text,))


def _take(text: str) -> None:
    st.session_state["odds_text"] = text
