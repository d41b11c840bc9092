"""Tokens on a page: coloured by how expected they were or by turns, as text or as buttons, and as tables with bars."""

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from html import escape
from pathlib import Path
from typing import Any, Final

import streamlit as st

from mofang.ui.session import t
from mofang.ui.tokens import STEPS, Option, Token, legible, percent, shade

TURNS: Final = 5
"""Colours that neighbours take in turn."""
NAMED: Final = 5
"""Alternatives that a token's title names."""

Row = Mapping[str, Any]


def title(token: Token) -> str:
    """What a pointer that rests on it is told: the token, its id and probability, and what else was likely."""
    told = t(
        "token_title", text=legible(token.data), id="?" if token.id is None else token.id, p=percent(token.probability)
    )
    others = [f"{legible(one.data)} {percent(one.probability)}" for one in token.options[:NAMED]]
    return f"{told}\n{t('token_others', others=' · '.join(others))}" if others else told


def unmarked(lead: str, text: str) -> None:
    """What was written, where its engine tells no probabilities."""
    st.html(f'<div class="mf-strip"><span class="mf-lead">{escape(lead)}</span>{escape(text)}</div>')


def flow(lead: str, tokens: Sequence[Token], *, is_running: bool = False) -> None:
    """A text with its tokens coloured by their probability; what it goes on from stands before it."""
    spans = "".join(
        f'<span class="mf-token s{shade(one.probability)}" style="--p:{one.probability:.4f}" title="{escape(title(one))}">'
        f"{escape(legible(one.data))}</span>{'<br>' * one.data.count(10)}"
        for one in tokens
    )
    cursor = '<span class="mf-cursor"></span>' if is_running else ""
    st.html(f'<div class="mf-strip"><span class="mf-lead">{escape(lead)}</span>{spans}{cursor}</div>')


def strip(lead: str, tokens: Sequence[Token], chosen: int | None, take: Callable[[int], None], *, key: str) -> None:
    """The same as buttons, reached by arrow keys; `take` is called with the number of the one that was chosen."""
    shown = [
        {
            "text": legible(one.data),
            "p": round(one.probability, 4),
            "shade": shade(one.probability),
            "title": title(one),
            "breaks": one.data.count(10),
        }
        for one in tokens
    ]

    def chose() -> None:
        number = (st.session_state.get(key) or {}).get("chosen")
        if number is not None:
            take(int(number))

    data = {"lead": lead, "tokens": shown, "chosen": chosen, "label": t("strip_label")}
    _strip()(key=key, data=data, on_chosen_change=chose)


@cache
def _strip() -> Any:
    script = (Path(__file__).parent.parent / "static" / "strip.js").read_text(encoding="utf-8")
    # Not isolated: its colours are those of static/style.css.
    html = '<div class="mf-strip" role="group"></div>'
    return st.components.v2.component("mofang_strip", html=html, js=script, isolate_styles=False)


def legend() -> None:
    """The five shades, said in numbers."""
    edges = [0.0, *STEPS, 1.0]
    parts = [
        f'<span class="mf-token s{step}" style="--p:{(edges[step] + edges[step + 1]) / 2:.2f}">'
        f"{edges[step]:.0%}–{edges[step + 1]:.0%}</span>"
        for step in range(len(edges) - 1)
    ]
    st.html(f'<div class="mf-legend">{escape(t("legend"))} {"".join(parts)}</div>')


def cut(pieces: Sequence[Row]) -> None:
    """A text in its tokens, neighbours in different colours. `pieces` are those of /v1/tokenize."""
    spans = []
    for number, piece in enumerate(pieces):
        data = bytes(piece["bytes"])
        about = escape(t("token_plain", text=legible(data), id=piece["id"], n=len(data)))
        shown = f'<span class="mf-piece t{number % TURNS}" title="{about}">{escape(legible(data))}</span>'
        spans.append(shown + "<br>" * data.count(10))
    st.html(f'<div class="mf-strip">{"".join(spans)}</div>')


def bar(value: float, label: str, *, tone: str = "") -> str:
    """HTML of a bar from 0 to 1 with its number beside it."""
    width = f"{100 * min(1.0, max(0.0, value)):.2f}%"
    return f'<span class="mf-bar {tone}"><i style="width:{width}"></i><b>{escape(label)}</b></span>'


def chip(option: Option) -> str:
    return f'<code class="mf-chip">{escape(legible(option.data))}</code>'


def table(head: Sequence[str], rows: Sequence[Sequence[str]], caption: str) -> None:
    """Cells are HTML. `caption` says what it is to those who do not see it."""
    top = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    label = escape(caption)
    st.html(
        f'<div class="mf-odds" tabindex="0" role="group" aria-label="{label}"><table><caption>{label}</caption>'
        f"<thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>"
    )
