"""The search test: what a search finds, by each leg and by both, and why each passage stands where it does."""

import re
import time
from collections.abc import Sequence
from html import escape
from typing import Any, Final

import streamlit as st

from mofang.text.words import marks
from mofang.ui.components import document
from mofang.ui.components.base import badges, fragment, quiet
from mofang.ui.prose import marked, place
from mofang.ui.session import client, language, t

K: Final = 8
ORDERS: Final = ("fused", "bm25", "dense")
"""What the hits are ordered by: the search itself, or one of its legs alone."""

Hit = dict[str, Any]


@fragment()
def search(name: str, types: Sequence[str]) -> None:
    """`types`: the suffixes that a search can be limited to."""
    query = st.text_input(t("search_label"), placeholder=t("search_placeholder"), key=f"query_{name}", max_chars=4096)
    quiet(t("search_help"))
    within = _within(name, types)
    if not query.strip():
        return
    order = st.segmented_control(
        t("search_order"),
        ORDERS,
        default=ORDERS[0],
        format_func=lambda one: t(f"order_{one}"),
        key=f"order_{name}",
        required=True,
    )
    notices: list[str] = []
    began = time.perf_counter()
    hits = _found(name, query.strip(), order or ORDERS[0], within, notices)
    quiet(t("search_took", n=len(hits), ms=f"{(time.perf_counter() - began) * 1000:.0f}"))
    for notice in notices:
        quiet(notice)
    if not hits:
        quiet(t("nothing_found"))
    for rank, hit in enumerate(hits, 1):
        _show(rank, hit, query)


def _within(name: str, types: Sequence[str]) -> dict[str, list[str]]:
    """The filter of a search; empty where nothing was said."""
    with st.expander(t("search_within"), icon=":material/filter_list:", key=f"within_{name}"):
        names = st.text_input(
            t("within_names"),
            placeholder=t("within_names_placeholder"),
            key=f"names_{name}",
            help=t("within_names_help"),
        )
        chosen = st.multiselect(t("within_types"), types, key=f"types_{name}", placeholder=t("within_types_all"))
    said = [one.strip() for one in re.split("[,，、;；]", names)]
    found = {"names": [one for one in said if one.strip(". ")], "types": chosen}
    return {field: values for field, values in found.items() if values}


def _found(name: str, query: str, order: str, within: dict[str, list[str]], notices: list[str]) -> list[Hit]:
    """The K best of the search itself, or of one of its legs: the leg's own ranking, as evaluations judge it, without a
    reranker. Each knows its place in the fusion, unless a reranker chose the K: what was fused before them is not among
    them."""
    limits: dict[str, Any] = {"filter": within} if within else {}
    k: int | None = K
    if order != ORDERS[0]:
        k, limits["rerank"] = None, ""
    hits = client().search([name], query, k, notices=notices, **limits)
    if not any(_reranked(hit) for hit in hits):
        for rank, hit in enumerate(hits, 1):
            hit["fused_rank"] = rank
    if k:
        return hits
    return sorted((hit for hit in hits if hit.get(f"{order}_rank")), key=lambda hit: int(hit[f"{order}_rank"]))[:K]


def _reranked(hit: Hit) -> bool:
    return hit.get("rerank_score") is not None


def _show(rank: int, hit: Hit, query: str) -> None:
    text = hit["text"].strip()
    lead = f'<div class="mf-quiet">{escape(hit["lead"])}</div>' if hit.get("lead") else ""
    with st.container(key=f"hit_{rank}"):
        st.html(
            f'<div class="mf-hit"><div class="mf-card"><span class="mf-n">{rank}</span><span><b>{escape(hit["title"])}</b> '
            f'<span class="mf-quiet">{escape(place(hit, language()))}</span></span></div>'
            f'<div class="mf-legs">{_why(hit)}</div>{lead}'
            f'<div class="mf-passage">{marked(text, marks(text, query))}</div></div>'
        )
        if st.button(t("open_document"), key=f"view_hit_{rank}", icon=":material/find_in_page:", type="tertiary"):
            document.open_now(hit)
            st.rerun()


def _why(hit: Hit) -> str:
    """HTML of what each leg, and both together, say of it."""
    said = []
    for leg, rank in (("words", hit.get("bm25_rank")), ("meaning", hit.get("dense_rank"))):
        said.append((t(f"leg_{leg}", n=rank), "good") if rank else (t(f"leg_{leg}_none"), ""))
    if hit.get("cosine") is not None:
        said.append((t("cosine", n=f"{hit['cosine']:.3f}"), ""))
    score, rank = f"{hit['score']:.4f}", hit.get("fused_rank")
    said.append((t("fused", rank=rank, n=score) if rank else t("fused_score", n=score), ""))
    if _reranked(hit):
        said.append((t("reranked", n=f"{hit['rerank_score']:.3f}"), "good"))
    return badges(*said)
