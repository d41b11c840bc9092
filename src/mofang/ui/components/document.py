"""A document laid over the page, at a span: its text, how it was cut, and for a PDF the page itself.

The URL names it (?kb=…&doc=…&at=120-340), so a hit, a cited source and a reload all lead to the same place.
"""

from base64 import b64encode
from collections.abc import Callable
from functools import partial
from html import escape
from typing import Any, Final

import streamlit as st

from mofang.ui.components.base import guarded, quiet
from mofang.ui.prose import chunks_html, marked, place
from mofang.ui.session import client, language, t

WINDOW: Final = 4_000
"""Characters of the text that are shown at a time."""
BEFORE: Final = 200
"""Characters in front of the span, where the document opens."""
CHUNKS: Final = 1_000
"""The most that the gateway tells at once; a window has a tenth of that."""
PIXELS: Final = 1_400
"""Width of a page's picture: twice the dialog's, for sharp screens."""

Text = dict[str, Any]


def params(source: dict[str, Any]) -> dict[str, str]:
    """The query parameters that open a hit or a cited source at what it rests on."""
    start, end = (source.get("spans") or [(source["start"], source["end"])])[0]
    return {"kb": source["knowledge"], "doc": source["document_id"], "at": f"{start}-{end}"}


def open_now(source: dict[str, Any]) -> None:
    """Name it in the URL: a rerun of the page shows it."""
    st.query_params.update(params(source))


def show() -> None:
    """The document that the URL names, if it names one."""
    name, document = st.query_params.get("kb"), st.query_params.get("doc")
    if name and document:
        body = guarded(partial(_body, name, document, *_span(st.query_params.get("at") or "")))
        st.dialog(t("document"), width="medium", on_dismiss=_close)(body)()


def _close() -> None:
    # In one step: each change of the URL is one in the browser's history.
    st.query_params.from_dict({name: value for name, value in st.query_params.items() if name not in ("doc", "at")})


def _span(at: str) -> tuple[int, int]:
    """ "120-340" → (120, 340); what is no span is the document's beginning."""
    first, _, last = at.partition("-")
    return (int(first), int(last)) if first.isdecimal() and last.isdecimal() else (0, 0)


def _body(name: str, document: str, start: int, end: int) -> None:
    told = client().document_text(name, document, start, end)
    stands = place(told, language()) if end else ""
    st.html(f'<div class="mf-card"><b>{escape(told["title"])}</b><span class="mf-quiet">{escape(stands)}</span></div>')
    views: dict[str, Callable[[str, str, Text], None]] = {"text": _text, "chunks": _chunks}
    if told["title"].lower().endswith(".pdf") and told.get("n_pages"):
        views = {"page": _page, **views}
    view = st.segmented_control(
        t("view"),
        list(views),
        default=next(iter(views)),
        format_func=lambda one: t(f"view_{one}"),
        key=f"view_{document}",
        label_visibility="collapsed",
        required=True,
    )
    views[view or next(iter(views))](name, document, told)


# ---- the text ----


def _text(name: str, document: str, told: Text) -> None:
    window = _window(name, document, told)
    offset = window["start"]
    span = [(max(told["start"], offset) - offset, min(told["end"], window["end"]) - offset)]
    shown = marked(window["text"], [one for one in span if one[0] < one[1]])
    st.html(f'<div class="mf-document">{shown}</div>')


def _chunks(name: str, document: str, told: Text) -> None:
    window = _window(name, document, told)
    quiet(t("chunks_help"))
    found = client().document_chunks(name, document, start=window["start"], n=CHUNKS)
    shown = chunks_html(window["text"], window["start"], found, lambda n: t("chunk_chars", n=n))
    st.html(f'<div class="mf-document">{shown}</div>')


def _window(name: str, document: str, told: Text) -> Text:
    """The piece of the text at hand, under the buttons that lead to the next one."""
    n_chars = int(told["n_chars"])
    key = f"from_{document}_{told['start']}"
    first = min(int(st.session_state.setdefault(key, max(0, told["start"] - BEFORE))), max(0, n_chars - 1))
    last = min(n_chars, first + WINDOW)
    _steps(
        key,
        t("chars_of", first=f"{first + 1 if n_chars else 0:,}", last=f"{last:,}", n=f"{n_chars:,}"),
        max(0, first - WINDOW) if first > 0 else None,
        last if last < n_chars else None,
    )
    return client().document_text(name, document, first, last)


def _steps(key: str, where: str, before: int | None, after: int | None) -> None:
    """Where one is, between a step back and a step on."""
    with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="center", key=f"step_{key}"):
        for name, icon, to in (("back", "chevron_left", before), ("on", "chevron_right", after)):
            if name == "on":
                st.html(f'<span class="mf-quiet">{escape(where)}</span>', width="content")
            st.button(
                t(f"step_{name}"),
                key=f"step_{name}_{key}",
                icon=f":material/{icon}:",
                type="tertiary",
                disabled=to is None,
                on_click=st.session_state.__setitem__,
                args=(key, to),
            )


# ---- a PDF's page ----


def _page(name: str, document: str, told: Text) -> None:
    n_pages = int(told["n_pages"])
    key = f"page_{document}_{told['start']}"
    page = int(st.session_state.setdefault(key, told.get("page") or 1))
    _steps(
        key,
        t("page_of", page=page, n=n_pages),
        page - 1 if page > 1 else None,
        page + 1 if page < n_pages else None,
    )
    drawn = client().document_page(name, document, page, width=PIXELS, start=told["start"], end=told["end"])
    alt = t("page_alt", page=page, name=told["title"])
    st.html(f'<img class="mf-page" alt="{escape(alt)}" src="data:image/png;base64,{b64encode(drawn).decode()}">')
