"""How well two tokenizers cut one's own texts, side by side: a run of the recipe `measure`, begun and shown."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import streamlit as st

from mofang.strings import say
from mofang.ui.components import runs
from mofang.ui.components.base import fragment, quiet, show_fault
from mofang.ui.components.runs import Run
from mofang.ui.session import client, language, t

KIND: Final = "measure"
TICK_S: Final = 1.0

Side = Mapping[str, Any]


def ask(models: Sequence[str], model: str, texts: Sequence[str]) -> None:
    """Choose what to measure beside `model`, on the texts that were chosen above."""
    quiet(t("measure_text"))
    others = ["", *(name for name in models if name != model)]
    against = st.selectbox(
        t("measure_against"), others, format_func=lambda name: name or t("measure_alone"), key="measure_against"
    )
    start = st.button(t("measure_start"), key="measure_start", icon=":material/straighten:", disabled=not texts)
    if start and runs.start(KIND, {"model": model, "texts": texts, **({"against": against} if against else {})}):
        st.rerun()
    if known := client().runs(kind=KIND):
        runs.listed(known, kind=KIND)


def show(run: Run) -> None:
    """One measurement, whatever its state."""
    runs.way_back(t("all_runs"))
    runs.head(run)
    with st.container(horizontal=True, vertical_alignment="center", key="run_actions"):
        runs.handles(run, run["id"] if run["status"] == "running" else None, deletes=t("measure_delete_text"))
    with st.container(key="run_faults"):
        if run["status"] == "failed":
            show_fault(run.get("error"))
    (_live if run["status"] == "running" else _still)(run["id"], run["status"])


def _watch(run_id: str, known: str) -> None:
    run = client().run(run_id)
    if run["status"] != known:
        st.rerun()
    with st.container(key="run_progress"):
        if run["status"] == "running":
            runs.progress(run)
    if run["status"] == "done":
        _table(run["result"]["sides"])
    runs.papers(run)


_still: Final = fragment()(_watch)
_live: Final = fragment(run_every=TICK_S)(_watch)


def _table(sides: Sequence[Side]) -> None:
    """A row a figure, a column a tokenizer; characters per token by script at the end."""
    lang = language()
    figures: dict[str, Callable[[Side], str]] = {
        t("measure_vocabulary"): lambda side: f"{side['n_vocab']:,}",
        t("measure_characters"): lambda side: _ratio(side["characters_per_token"]),
        t("measure_bytes"): lambda side: _ratio(side["bytes_per_token"]),
        t("measure_chinese"): lambda side: _ratio(side["chinese_per_token"]),
        t("measure_changed"): lambda side: f"{side['n_changed']:,} / {side['n_lines']:,}",
        t("measure_dead"): lambda side: f"{side['n_dead']:,}",
    }
    rows = [
        {t("measure_figure"): name, **{side["name"]: show(side) for side in sides}} for name, show in figures.items()
    ]
    for script in sides[0]["scripts"]:
        name = t("measure_script", script=say(f"cli.script_{script}", lang=lang))
        shares = {side["name"]: side["scripts"].get(script, {}) for side in sides}
        rows.append(
            {t("measure_figure"): name} | {own: _ratio(one.get("characters_per_token")) for own, one in shares.items()}
        )
    st.dataframe(rows, hide_index=True, width="stretch")


def _ratio(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"
