"""量化与评测: a model made smaller or put into another form, and compared with what it should say the same as.

The forms are made from the exporters' schemas, the work is done by runs: a new exporter is here without a line of its own.
"""

from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any, Final

import streamlit as st

from mofang.client import ApiError
from mofang.ui import figures, sums
from mofang.ui.components import checks, extension, runs
from mofang.ui.components.base import fragment, quiet, show_fault, show_flash, stats
from mofang.ui.components.form import form
from mofang.ui.components.runs import Run
from mofang.ui.session import client, language, link_params, t, t_or

TICK_S: Final = 1.0
FIRST: Final = "gguf"
"""What most come for."""
READ: Final[Mapping[str, Sequence[str]]] = {
    "import": ("gguf", "hf"),
    "check": ("gguf", "gptq", "hf"),
    "gguf": ("hf", "gptq"),
}
"""What form a model must have; a Hugging Face folder where nothing is said."""
RUNS_TOO: Final = ("gguf", "gptq", "merge", "check")
"""What takes a training for the model that it led to."""
PLACED: Final = ("model", "reference")
"""Fields that this page asks for in its own way; those of a chooser (CHOOSERS) are, too."""
MAIN: Final = (
    "name", "bits", "group_size", "tokenizer", "adapters", "weights", "init", "calibration", "n_tokens", "answers", "speed",
)  # fmt: skip
"""Fields that are seen at once; every other one of the schema is under "more"."""
KEPT: Final = ("", "f16", "q8_0")
"""What may become of the matrices that GPTQ left alone."""
BITS: Final = (2.5, 8.5, 4.8)
"""Lowest, highest and usual bits of a weight."""


def page() -> None:
    show_flash()
    if run := runs.looked_at():
        extension.PAGES.get(run["kind"], _run)(run)
        return
    st.html(f'<div class="mf-head"><h2>{escape(t("page_quantize"))}</h2><p>{escape(t("quantize_text"))}</p></div>')
    known = client().runs(training=False)
    if not known:
        _new()
        return
    new, listed = st.tabs([t("quantize_new"), t("exports_n", n=len(known))])
    with new:
        _new()
    with listed:
        runs.listed(known, training=False)


# ---- a new one ----


@fragment()
def _new() -> None:
    schemas = {kind: one["schema"] for kind, one in client().recipes().items() if one["exports"]}
    kinds = sorted(schemas, key=lambda kind: kind != FIRST)
    kind = str(
        st.segmented_control(
            t("quantize_kind"),
            kinds,
            default=kinds[0],
            required=True,
            format_func={kind: t_or(f"export_{kind}", kind) for kind in kinds}.__getitem__,
            key="quantize_kind",
            label_visibility="collapsed",
        )
    )
    if told := t_or(f"export_{kind}_text", ""):
        quiet(told)
    schema = schemas[kind]
    model = _model(kind)
    if model is None:
        return
    recipe: dict[str, Any] = {"model": model["id"]}
    chooser, fields = CHOOSERS.get(kind, (None, ()))
    if chooser:
        recipe |= chooser(model)
    if "reference" in schema["properties"]:
        recipe |= _reference(model)
    placed = {*PLACED, *fields}
    with st.container(key="quantize_main"):
        recipe |= form(schema, [name for name in MAIN if name in schema["properties"] and name not in placed],
                       key=f"quantize_{kind}")  # fmt: skip
    with st.expander(t("train_more"), icon=":material/tune:", key="quantize_more_fields"):
        others = [name for name in schema["properties"] if name not in placed and name not in MAIN]
        with st.container(key="quantize_more"):
            recipe |= form(schema, others, key=f"quantize_{kind}")
    start = st.button(t("run_start"), key="quantize_start", type="primary", icon=":material/play_arrow:")
    if start and runs.start(kind, recipe):
        st.rerun()


def _model(kind: str) -> Mapping[str, Any] | None:
    """The model to begin with, as the gateway tells it; of a training its id and title. None: there is none yet."""
    forms = READ.get(kind, ("hf",))
    offered: dict[str, Mapping[str, Any]] = {
        model["id"]: model
        for model in client().models()
        if model.get("kind") in ("chat", "base") and model.get("format") in forms and kind != "merge"
    }
    if kind in RUNS_TOO:
        offered |= {run["id"]: run for run in client().runs(training=True) if run["status"] == "done"}
    if not offered:
        quiet(t_or(f"quantize_none_{kind}", t("quantize_none")))
        if st.button(t("go_models"), key="go_models", icon=":material/deployed_code:"):
            st.switch_page(st.session_state["pages"]["models"], query_params=link_params())
        return None
    names = {own: _named(one) for own, one in offered.items()}
    wanted = st.session_state.pop("quantize_wanted", None)
    return offered[
        st.selectbox(
            t("quantize_model"),
            list(offered),
            index=list(offered).index(wanted) if wanted in offered else 0,
            format_func=lambda own: names.get(own, own),
            key=f"quantize_model_{kind}",
        )
    ]


def _named(one: Mapping[str, Any]) -> str:
    """A model by its name, with its size; a training by its title."""
    if "title" in one:
        return t("quantize_of_run", title=one["title"], id=one["id"])
    size = figures.size(one["size_bytes"]) if one.get("size_bytes") else ""
    return " · ".join(part for part in (one["id"], size) if part)


def _reference(model: Mapping[str, Any]) -> dict[str, Any]:
    """What to compare with; nothing said is the model's own source."""
    names = ["", *(one["id"] for one in client().models() if one.get("kind") in ("chat", "base"))]
    chosen = st.selectbox(
        t("quantize_reference"),
        [name for name in names if name != model["id"]],
        format_func=lambda name: name or t("quantize_source"),
        key="quantize_reference",
    )
    return {"reference": chosen} if chosen else {}


# ---- how large a GGUF is to be ----


def _gguf(model: Mapping[str, Any]) -> dict[str, Any]:
    """By size, by type, or the fastest that is close enough; of a GPTQ model what becomes of the rest."""
    if model.get("format") == "gptq":
        kind = st.selectbox(
            t("quantize_rest"), KEPT, format_func=lambda kind: kind or t("quantize_kept"), key="quantize_kept"
        )
        quiet(t("quantize_kept_text"))
        return {"type": kind} if kind else {}
    way = st.segmented_control(
        t("quantize_way"),
        list(WAYS),
        default=next(iter(WAYS)),
        required=True,
        format_func=lambda way: t(f"quantize_by_{way}"),
        key="quantize_way",
    )
    return WAYS[str(way)](_parameters(model))


def _parameters(model: Mapping[str, Any]) -> int:
    """0 where nobody knows yet."""
    if "title" in model:
        return 0
    try:
        return int(client().model(model["id"]).get("parameters") or 0)
    except ApiError:
        return 0


def _about(n_bytes: int) -> str:
    return t("quantize_about", size=figures.size(n_bytes)) if n_bytes else ""


def _by_size(parameters: int) -> dict[str, Any]:
    low, high, usual = BITS
    bits = st.slider(t("quantize_bits"), low, high, usual, 0.1, format="%.1f", key="quantize_bits")
    quiet(" · ".join(part for part in (_about(round(parameters * bits / 8)), t("quantize_by_size_text")) if part))
    return {"bits": round(bits, 1)}


def _by_type(parameters: int) -> dict[str, Any]:
    names = {
        kind: " · ".join(part for part in (kind, _about(sums.size_in(kind, parameters))) if part) for kind in sums.BITS
    }
    kinds = list(sums.BITS)
    kind = st.selectbox(
        t("quantize_type"), kinds, index=kinds.index("q4_k_m"), format_func=names.__getitem__, key="quantize_type"
    )
    quiet(t("quantize_by_type_text"))
    return {"type": kind}


def _by_speed(parameters: int) -> dict[str, Any]:
    bound = st.number_input(
        t("quantize_max_kl"), 0.001, 1.0, 0.05, 0.01, format="%g", key="quantize_max_kl", help=t("quantize_max_kl_help")
    )
    quiet(t("quantize_by_speed_text"))
    return {"type": "auto", "max_kl": bound}


WAYS: Final[Mapping[str, Callable[[int], dict[str, Any]]]] = {"size": _by_size, "type": _by_type, "speed": _by_speed}
CHOOSERS: Final[Mapping[str, tuple[Callable[[Mapping[str, Any]], dict[str, Any]], Sequence[str]]]] = {
    "gguf": (_gguf, ("type", "bits", "size", "max_kl"))
}
"""Exporters with more to choose than a form shows well: what asks for it, and the fields that it decides."""


# ---- one of them ----


def _run(run: Run) -> None:
    runs.way_back(t("all_exports"))
    runs.head(run, t_or(f"export_{run['kind']}", run["kind"]))
    made = str(run.get("model") or "") if run["kind"] != "check" and run["status"] == "done" else ""
    with st.container(horizontal=True, vertical_alignment="center", key="run_actions"):
        if made:
            _with(made)
        runs.handles(run, run["id"] if run["status"] == "running" else None, deletes=t("export_delete_text"))
    with st.container(key="run_faults"):
        if run["status"] == "failed":
            show_fault(run.get("error"))
    (_live if run["status"] == "running" else _still)(run["id"], run["status"])


def _with(made: str) -> None:
    """What one does next with a model that came of it."""
    model = next((model for model in client().models() if model["id"] == made), None)
    if model is None:
        return
    if model.get("kind") == "chat" and model.get("runnable", True):
        runs.chat_button(made)
    start = st.button(t("quantize_check"), key="quantize_check", icon=":material/compare_arrows:")
    if start and runs.start("check", {"model": made}):
        st.rerun()


def _watch(run_id: str, known: str) -> None:
    """Progress and what came of it; when the status is no longer `known`, the whole page is drawn again."""
    run = client().run(run_id)
    if run["status"] != known:
        st.rerun()
    with st.container(key="run_progress"):
        if run["status"] == "running":
            runs.progress(run)
    stats(*_figures(run))
    for note in run["notes"]:
        quiet(note)
    if run["kind"] == "check" and run["status"] in ("done", "failed"):
        checks.report(run_id)
    runs.papers(run)


_still: Final = fragment()(_watch)
_live: Final = fragment(run_every=TICK_S)(_watch)


def _figures(run: Run) -> list[tuple[str, str]]:
    result = run.get("result") or {}
    error, kl, bits = (result.get(name) for name in ("mean_relative_error", "predicted_kl", "bits_per_weight"))
    found = [
        (t("figure_made"), str(run.get("model") or "")),
        (t("figure_bytes"), figures.size(result["size_bytes"]) if result.get("size_bytes") else ""),
        (t("figure_bits"), f"{bits:.2f}" if bits else ""),
        (t("figure_kl"), f"{kl:.4f}" if kl else ""),
        (t("figure_error"), f"{error:.2%}" if error else ""),
        (t("figure_peak"), figures.size(result["peak_memory_bytes"]) if result.get("peak_memory_bytes") else ""),
    ]
    if run["started_at"]:
        seconds = figures.seconds_between(run["started_at"], run["ended_at"])
        found.append((t("run_took"), figures.duration(language(), seconds)))
    return found
