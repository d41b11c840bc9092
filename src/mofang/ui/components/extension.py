"""A tokenizer extended from one's own texts: begun, watched, its report card, and the steps to a model that uses it.

The work is a run of the recipe `extend`; what the page shows is that run's result. New rows are a run of the exporter
`resize`, found again by the tokenizer that it was told, so a reload or another tab shows the same.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from html import escape
from pathlib import PurePath
from typing import Any, Final

import streamlit as st

from mofang.strings import say
from mofang.ui.components import datasets, measuring, runs
from mofang.ui.components.base import attempt, badges, fragment, quiet, show_fault, stats
from mofang.ui.components.form import form
from mofang.ui.components.runs import Run
from mofang.ui.components.tokens import cut
from mofang.ui.session import client, language, link_params, t

KIND: Final = "extend"
TICK_S: Final = 1.0
TEXTS: Final = ("txt", "md", "jsonl")
"""What a tokenizer learns from."""
MAIN: Final = ("new_tokens", "name")
"""Fields that are seen at once; every other one of the schema is under "more"."""
PLACED: Final = ("model", "texts")
"""Fields that are asked for here in their own way."""
BASES: Final = {"kind": ("chat", "base"), "format": ("gguf", "hf")}
"""Models that can get rows for new tokens."""
PREFILLED: Final = "train_prefilled"
"""Set where the form of a training was filled in from here."""


# ---- a new one ----


@fragment()
def begin() -> None:
    """What to extend and from what; those of before below."""
    quiet(t("extend_text"))
    schema = client().recipes()[KIND]["schema"]
    models = [model["id"] for model in client().models() if all(model.get(name) in BASES[name] for name in BASES)]
    if not models:
        quiet(t("train_no_base"))
        if st.button(t("go_models"), key="extend_go_models", icon=":material/deployed_code:"):
            st.switch_page(st.session_state["pages"]["models"], query_params=link_params())
        return
    model = st.selectbox(t("extend_model"), models, key="extend_model", help=t("extend_model_help"))
    chosen, _ = datasets.choose(
        "extend", TEXTS,
        label=t("extend_texts"), placeholder=t("extend_texts_placeholder"), upload=t("extend_upload"),
    )  # fmt: skip
    path = st.text_input(t("extend_path"), key="extend_path", help=t("extend_path_help")).strip()
    with st.container(key="extend_main"):
        wished = form(schema, MAIN, key=KIND)
    with st.expander(t("train_more"), icon=":material/tune:", key="extend_more_fields"):
        wished |= form(schema, [name for name in schema["properties"] if name not in (*MAIN, *PLACED)], key=KIND)
    texts = [*chosen, *([path] if path else [])]
    start = st.button(
        t("extend_start"), key="extend_start", type="primary", icon=":material/play_arrow:", disabled=not texts
    )
    if start and runs.start(KIND, {**wished, "model": model, "texts": texts}):
        st.rerun()
    if not texts:
        quiet(t("extend_needs_texts"))
    with st.expander(t("measure_title"), icon=":material/straighten:", key="measure_fields"):
        measuring.ask(models, model, texts)
    if known := client().runs(kind=KIND):
        st.html(f'<h4 class="mf-group">{escape(t("extend_before", n=len(known)))}</h4>')
        runs.listed(known, kind=KIND)


# ---- one of them ----


def show(run: Run) -> None:
    """One extension, whatever its state."""
    runs.way_back(t("all_runs"))
    runs.head(run, t("run_base", name=run["recipe"]["model"]))
    resized = _resized(run)
    with st.container(horizontal=True, vertical_alignment="center", key="run_actions"):
        told = _next_step(run, resized)
        runs.handles(run, _running(run, resized), deletes=t("extend_delete_text"))
    if told:
        quiet(told)
    with st.container(key="run_faults"):
        for one in (run, resized):
            if one and one["status"] == "failed":
                show_fault(one.get("error"))
    statuses = _statuses(run, resized)
    (_live if "running" in statuses else _still)(run["id"], statuses)


def _watch(run_id: str, known: tuple[str, ...]) -> None:
    """Progress, then the report card; when a status is no longer `known`, the whole page is drawn again."""
    run = client().run(run_id)
    resized = _resized(run)
    if _statuses(run, resized) != known:
        st.rerun()
    with st.container(key="run_progress"):
        for one in (run, resized):
            if one and one["status"] == "running":
                runs.progress(one)
    if run["status"] == "done":
        _report(run["result"])
    for note in (*run["notes"], *(resized["notes"] if resized else ())):
        quiet(note)
    runs.papers(run)


_still: Final = fragment()(_watch)
_live: Final = fragment(run_every=TICK_S)(_watch)


def _statuses(run: Run, resized: Run | None) -> tuple[str, ...]:
    return (run["status"], resized["status"] if resized else "")


def _running(run: Run, resized: Run | None) -> str | None:
    """The one that can be stopped."""
    return next((one["id"] for one in (run, resized) if one and one["status"] == "running"), None)


# ---- the report card ----


def _report(result: Mapping[str, Any]) -> None:
    """What `mofang tokenizer extend` tells, drawn: the verdict and what it rests on, new tokens, one sentence both ways."""
    card = result.get("card")
    if card is None:
        quiet(t("extend_no_card"))
    else:
        _verdict(card)
        stats(*_figures(card, result))
        quiet(t("extend_card_note", n=f"{result['n_held_out']:,}"))
    if result["examples"]:
        chips = " ".join(f'<code class="mf-chip">{escape(text)}</code>' for text in result["examples"])
        st.html(f'<h4 class="mf-group">{escape(t("extend_examples"))}</h4>')
        st.html(f'<div class="mf-chips">{chips}</div>')
    if result["cuts"]:
        _cuts(result["cuts"])
    if result["n_short"]:
        quiet(t("extend_short", n=f"{result['n_short']:,}"))
    if result["n_dropped"]:
        quiet(t("extend_dropped", n=f"{result['n_dropped']:,}", examples=" ".join(result["dropped"])))


def _verdict(card: Mapping[str, Any]) -> None:
    """In the words of the command line."""
    values = {
        "before": card["chinese_before"] or 0.0,
        "speed_up": card["speed_up"],
        "share": card["share_of_parameters"] or 0.0,
        "n_dead": card["n_dead"],
    }
    lang = language()
    verdict = say("tokenizer.pays" if card["pays"] else "tokenizer.does_not_pay", lang=lang)
    reasons = "".join(f"<li>{escape(say(f'tokenizer.{one}', lang=lang, **values))}</li>" for one in card["reasons"])
    st.html(
        f'<div class="mf-card">{badges((verdict, "good" if card["pays"] else "warn"))}</div>'
        f'<ul class="mf-reasons">{reasons}</ul>'
    )


def _figures(card: Mapping[str, Any], result: Mapping[str, Any]) -> list[tuple[str, str]]:
    bits = card.get("bits_before")
    return [
        (t("extend_chinese"), f"{_ratio(card['chinese_before'])} → {_ratio(card['chinese_after'])}"),
        (t("extend_all"), f"{_ratio(card['all_before'])} → {_ratio(card['all_after'])}"),
        (t("extend_speed_up"), f"× {card['speed_up']:.2f}"),
        (t("extend_bits"), f"{bits:.3f}" if bits is not None else ""),
        (t("extend_added"), f"{result['n_added']:,}"),
        (t("extend_vocabulary"), f"{result['n_old']:,} → {result['n_vocab']:,}"),
        (t("extend_unused"), f"{card['n_unused']:,}"),
    ]


def _ratio(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _cuts(cuts: Mapping[str, Any]) -> None:
    st.html(f'<h4 class="mf-group">{escape(t("extend_cuts"))}</h4>')
    with st.container(key="cut_sides"):
        for side, label in (("before", t("extend_before_side")), ("after", t("extend_after_side"))):
            pieces: Sequence[Mapping[str, Any]] = cuts[side]
            with st.container(key=f"extend_cut_{side}", border=True):
                told = f"{label} · {t('cut_tokens')} {len(pieces):,}"
                st.html(f'<div class="mf-card"><b>{escape(told)}</b></div>')
                cut(pieces)


# ---- from here to a model ----


def _resized(run: Run) -> Run | None:
    """The newest run that gives the base rows for this tokenizer."""
    if run["status"] != "done":
        return None
    base, path = run["recipe"]["model"], run["result"]["path"]
    later = (one for one in client().runs(kind="resize") if one["title"] == base)
    told = (client().run(one["id"]) for one in later if one["created_at"] >= run["created_at"])
    return next((one for one in told if one["recipe"]["tokenizer"] == path), None)


def _next_step(run: Run, resized: Run | None) -> str:
    """One button: new rows for the base, then a training that teaches them. What it does, in words; "" for none."""
    if run["status"] != "done" or (resized and resized["status"] == "running"):
        return ""
    if resized and resized["status"] == "done":
        if st.button(t("extend_train"), key="extend_train", type="primary", icon=":material/school:"):
            _fill_in_training(run, resized["model"])
            st.switch_page(st.session_state["pages"]["train"], query_params=link_params())
        return t("extend_train_help")
    recipe = {name: run["recipe"][name] for name in ("model", "name") if run["recipe"][name]}
    st.button(
        t("extend_resize"),
        key="extend_resize",
        type="primary",
        icon=":material/add_row_below:",
        on_click=attempt,
        args=(partial(client().start_run, "resize", {**recipe, "tokenizer": run["result"]["path"]}),),
    )
    return t("extend_resize_help")


def _fill_in_training(run: Run, model: str) -> None:
    """Pre-training of that model on the texts that the tokens were learned from."""
    known = {file["name"] for file in client().datasets()}
    texts = [PurePath(text).name for text in run["recipe"]["texts"]]
    st.session_state.update(
        {
            PREFILLED: True,
            "train_method": "pretrain",
            "train_base_or_new": model,
            "train_data": [name for name in texts if name in known],
        }
    )


PAGES: Final[Mapping[str, Callable[[Run], None]]] = {KIND: show, measuring.KIND: measuring.show}
"""What shows a run that is about a tokenizer."""
