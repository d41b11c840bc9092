"""Small things that every page uses: fragments that cannot break a page, errors as people read them, a confirm."""

import base64
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import cache, wraps
from html import escape
from pathlib import Path
from string import punctuation
from typing import Any, Final, ParamSpec

import streamlit as st

from mofang.client import ApiError
from mofang.errors import MofangError, Unreachable
from mofang.ui.session import client, gateway_url, language, t

P = ParamSpec("P")
_LOG = logging.getLogger("mofang.ui")


def guarded(function: Callable[P, None]) -> Callable[P, None]:
    """What goes wrong in `function` is shown in its place, in the reader's language; never a traceback on a page."""

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            function(*args, **kwargs)
        except Unreachable:
            waiting()
        except MofangError as error:
            if isinstance(error, ApiError) and error.status == 401:
                ask_key()
            else:
                show_error(error)
        except Exception as error:  # the page's outermost edge: logged with its trace, told in one sentence
            _LOG.exception("a page failed")
            fault(t("page_failed", why=type(error).__name__), t("page_failed_hint"))

    return run


def fragment(*, run_every: float | None = None) -> Callable[[Callable[P, None]], Callable[P, None]]:
    """A part of the page that runs again on its own, every `run_every` seconds; guarded."""

    def decorate(function: Callable[P, None]) -> Callable[P, None]:
        part: Callable[P, None] = st.fragment(guarded(function), run_every=run_every)
        return part

    return decorate


def show_error(error: MofangError) -> None:
    lang = language()
    fault(error.message(lang), error.hint(lang))


def show_fault(shape: Mapping[str, Any] | None) -> None:
    """An error as the API tells it: {"message", "hint"}."""
    shape = shape or {}
    fault(str(shape.get("message") or t("unknown_error")), str(shape.get("hint") or ""))


def fault(message: str, hint: str = "") -> None:
    """What was wrong, and what to do next."""
    more = f'<div class="mf-hint">{escape(hint)}</div>' if hint else ""
    st.html(f'<div class="mf-fault" role="alert"><div>{escape(message)}</div>{more}</div>')


def quiet(text: str) -> None:
    """A line of small grey text."""
    st.html(f'<div class="mf-quiet">{escape(text)}</div>')


def plain(text: str) -> str:
    """Text as a label that Streamlit reads as Markdown: every sign of it stays a sign."""
    return "".join(f"\\{letter}" if letter in punctuation else letter for letter in text)


def badges(*labels: tuple[str, str]) -> str:
    """HTML of small labels: (text, one of "", "good", "warn")."""
    return "".join(f'<span class="mf-badge {tone}">{escape(text)}</span>' for text, tone in labels if text)


CHART: Final[Mapping[str, Any]] = {
    "padding": {"left": 4, "right": 8, "top": 4, "bottom": 4},
    "config": {
        # Vega describes its axes in English to who cannot see them; `alt` says what a chart shows in the page's language.
        "axis": {"aria": False},
        "legend": {"aria": False, "orient": "top", "offset": 8, "padding": 0},
    },
}
"""What every chart has."""


def chart(points: Sequence[Mapping[str, Any]] | Mapping[str, Sequence[Any]], spec: Mapping[str, Any], alt: str) -> None:
    """Vega-Lite's `spec` drawn of `points`; `alt` in words for who cannot see it."""
    st.vega_lite_chart(points, {**CHART, **spec}, width="stretch", alt=alt)


def stats(*cells: tuple[str, str]) -> None:
    """Figures side by side, each under its name; those without a value are left out."""
    shown = "".join(f"<div><span>{escape(name)}</span><b>{escape(value)}</b></div>" for name, value in cells if value)
    st.html(f'<div class="mf-stats">{shown}</div>')


def facts(*rows: tuple[str, str]) -> None:
    """Terms and what they are, one below the other; those without a value are left out."""
    shown = "".join(f"<dt>{escape(term)}</dt><dd>{escape(value)}</dd>" for term, value in rows if value)
    st.html(f'<dl class="mf-facts">{shown}</dl>')


def flash(*errors: MofangError) -> None:
    """Keep the errors of a callback for the run that follows it."""
    lang = language()
    hints = dict.fromkeys(error.hint(lang) for error in errors)
    shape = {"message": "\n".join(error.message(lang) for error in errors), "hint": "\n".join(hints)}
    st.session_state["flash"] = shape


def tell(text: str) -> None:
    """Keep something that went well for the run that follows."""
    st.session_state["said"] = text


def attempt(call: Callable[[], Any]) -> None:
    """For a button: what goes wrong is shown on the next run of the page."""
    try:
        call()
    except MofangError as error:
        flash(error)


def show_flash() -> None:
    if shape := st.session_state.pop("flash", None):
        show_fault(shape)
    if text := st.session_state.pop("said", None):
        quiet(text)


def waiting() -> None:
    """The gateway does not answer: say so calmly, and go on by itself as soon as it does."""
    st.html(
        f'<div class="mf-waiting"><div class="mf-pulse">{mark()}</div><h3>{escape(t("waiting_title"))}</h3>'
        f'<p class="mf-quiet">{escape(t("waiting_text", url=gateway_url()))}</p></div>'
    )
    _await_gateway()


def _try_again() -> None:
    try:
        client().models()
    except Unreachable:
        return
    except MofangError:
        pass  # it answers: whatever is wrong now is shown by the page itself
    st.rerun()


def _await_gateway() -> None:
    st.fragment(_try_again, run_every=1.5)()


def ask_key() -> None:
    """The gateway wants a key: ask for it, keep it for this visit only."""
    with st.container(key="ask_key"):
        st.html(f'<div class="mf-waiting">{mark()}<h3>{escape(t("key_title"))}</h3></div>')
        if st.session_state.get("api_key"):
            fault(t("key_wrong"), t("key_wrong_hint"))
        with st.form("key_form", border=False):
            key = st.text_input(t("key_label"), type="password", key="key_input", autocomplete="off")
            if st.form_submit_button(t("key_submit"), type="primary", width="stretch") and key:
                st.session_state["api_key"] = key
                st.rerun()
        quiet(t("key_note"))


@cache
def mark() -> str:
    """The product's mark: a cube that is a workshop, its gate lit. An image, because Streamlit strips inline SVG."""
    data = base64.b64encode((Path(__file__).parent.parent / "static" / "mark.svg").read_bytes()).decode()
    return f'<img class="mf-mark" alt="" src="data:image/svg+xml;base64,{data}">'
