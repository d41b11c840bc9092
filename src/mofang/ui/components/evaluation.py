"""A base measured on questions: a set is sent; what came of it is a picture, a table, and the questions that were missed."""

from collections.abc import Mapping, Sequence
from html import escape
from io import BytesIO
from typing import Any, Final

import streamlit as st

from mofang.errors import MofangError
from mofang.ui.components import questions
from mofang.ui.components.base import chart, flash, quiet, stats
from mofang.ui.session import client as gateway
from mofang.ui.session import t, t_or

EXAMPLE: Final = """\
{"question": "年假有几天？", "document": "员工手册.pdf", "spans": ["每年有十五天带薪年假"]}
{"question": "公司有游泳池吗？", "unanswerable": true}"""
SERVED: Final = 8
"""Passages that an answer is given: a document that comes later is as good as not found."""
MISSED: Final = 50
"""Questions listed of those that were missed."""


def ask(name: str, writable: bool) -> None:
    """Draft and check a set, or bring one, and start; the job is shown where the base's jobs are."""
    quiet(t("evaluate_text"))
    questions.show(name, writable, _start_drafted)
    st.html(f'<h4 class="mf-group">{escape(t("evaluate_own"))}</h4>')
    with st.expander(t("evaluate_form"), icon=":material/help:", key="evaluate_form"):
        st.code(EXAMPLE, language="json", wrap_lines=True)
        quiet(t("evaluate_form_more"))
    turn = st.session_state.setdefault("evaluate_round", 0)
    files = st.file_uploader(
        t("evaluate_upload"), type=["jsonl", "tsv"], accept_multiple_files=True, key=f"evaluate_files_{name}_{turn}"
    )
    answers = st.toggle(t("evaluate_answers"), key="evaluate_answers", help=t("evaluate_answers_help"))
    st.button(
        t("evaluate_start"), key="evaluate_start", type="primary", icon=":material/monitoring:", disabled=not files,
        on_click=_start, args=(name, [(placed(file.name), file) for file in files], answers),
    )  # fmt: skip


def _start_drafted(name: str, drafted: bytes) -> None:
    _start(name, [(f"{name}.jsonl", BytesIO(drafted))], bool(st.session_state.get("evaluate_answers")))


def _start(name: str, files: Sequence[tuple[str, Any]], answers: bool) -> None:
    try:
        job = gateway().evaluate_knowledge(name, files, answers=answers)
    except MofangError as error:
        flash(error)
        return
    st.session_state[f"evaluate_{name}"] = job["id"]
    st.session_state["evaluate_round"] += 1


def placed(name: str) -> str:
    """Where a file of a BEIR set belongs: a browser sends names alone."""
    return f"qrels/{name}" if name.endswith(".tsv") else name


def result(found: Mapping[str, Any]) -> None:
    """A finished evaluation."""
    for notice in found.get("notices") or ():
        quiet(str(notice))
    measures: Mapping[str, Mapping[str, float]] = found["measures"]
    latency = found.get("latency_ms") or {}
    told = [
        t("evaluate_n", n=found["n_questions"]),
        t("evaluate_latency", p50=f"{latency['p50']:.0f}", p99=f"{latency['p99']:.0f}") if latency else "",
    ]
    st.html(f'<div class="mf-figures">{"".join(f"<span>{escape(text)}</span>" for text in told if text)}</div>')
    if measures:
        legs = {leg: t_or(f"evaluate_leg_{leg}", leg) for leg in measures}
        bars = [
            {"measure": measure, "leg": legs[leg], "value": round(value, 4)}
            for leg, row in measures.items()
            for measure, value in row.items()
        ]
        chart(bars, _spec(list(legs.values())), t("evaluate_alt"))
        names = list(next(iter(measures.values())))
        rows = [
            {t("evaluate_measure"): name, **{legs[leg]: round(row[name], 3) for leg, row in measures.items()}}
            for name in names
        ]
        st.dataframe(rows, hide_index=True, width="stretch")
    if answered := found.get("answers"):
        _answers(answered)
    _missed(found["questions"])


def _answers(answered: Mapping[str, Any]) -> None:
    refusal = (answered.get("refusal") or {}).get("f1")
    cells = [
        (t("evaluate_precision"), answered.get("citation_precision")),
        (t("evaluate_recall"), answered.get("citation_recall")),
        (t("evaluate_refusal"), refusal),
    ]
    stats(*((name, f"{value:.3f}" if value is not None else "") for name, value in cells))


def _missed(questions: Sequence[Mapping[str, Any]]) -> None:
    """Those whose document is not among what an answer would be given: where to look first."""
    missed = [one for one in questions if one.get("ranks") and not _served(one["ranks"])]
    if not missed:
        quiet(t("evaluate_none_missed"))
        return
    with st.expander(t("evaluate_missed", n=len(missed)), icon=":material/search_off:", key="evaluate_missed"):
        quiet(t("evaluate_missed_text", n=SERVED))
        rows = [
            {
                t("evaluate_question"): one["question"],
                **{t_or(f"evaluate_leg_{leg}", leg): rank or "–" for leg, rank in one["ranks"].items()},
            }
            for one in missed[:MISSED]
        ]
        st.dataframe(rows, hide_index=True, width="stretch")


def _served(ranks: Mapping[str, int | None]) -> bool:
    """Whether the ranking that is served (the last leg of the evaluation) has it early enough."""
    rank = list(ranks.values())[-1]
    return rank is not None and rank <= SERVED


def _spec(legs: Sequence[str]) -> dict[str, Any]:
    value = {"field": "value", "type": "quantitative", "title": None}
    return {
        "height": 220,
        "mark": {"type": "bar", "cornerRadiusEnd": 2},
        "encoding": {
            "x": {"field": "measure", "type": "nominal", "title": None, "sort": None, "axis": {"labelAngle": 0}},
            "xOffset": {"field": "leg", "sort": list(legs)},
            "y": {**value, "scale": {"domain": [0, 1]}, "axis": {"tickCount": 5}},
            "color": {
                "field": "leg", "type": "nominal", "scale": {"domain": list(legs)},
                "legend": {"title": None},
            },
            "tooltip": [{"field": "leg", "type": "nominal", "title": t("evaluate_leg")},
                        {"field": "measure", "type": "nominal", "title": t("evaluate_measure")},
                        {**value, "format": ".3f", "title": t("evaluate_value")}],
        },
    }  # fmt: skip
