"""模型: what this machine can run (catalogue), what it has (installed), and what comes (pulls)."""

from functools import partial
from html import escape
from typing import Any

import streamlit as st

from mofang.errors import MofangError
from mofang.ui import figures
from mofang.ui.ancestry import tree_html
from mofang.ui.components import checks, jobs
from mofang.ui.components.base import attempt, badges, facts, fragment, plain, quiet, show_error, show_flash
from mofang.ui.session import client, language, t, t_or
from mofang.ui.watch import Task

Model = dict[str, Any]


def page() -> None:
    st.html(f'<div class="mf-head"><h2>{escape(t("page_models"))}</h2><p>{escape(t("models_text"))}</p></div>')
    show_flash()
    models = client().models()
    pulls = jobs.under_way(("pull",))
    with st.container(key="pulls"):  # a place of its own: the tabs below stay, and with them the one that is open
        if not pulls:
            jobs.last_failure("pull")
        jobs.live(("pull",), tuple(job["id"] for job in pulls))
    installed, catalogue, engine = st.tabs([t("installed_n", n=len(models)), t("catalogue"), t("engine")])
    with installed:
        _installed(models)
    with catalogue:
        _catalogue({str(job.get("title")) for job in pulls if job["status"] == "running"})
    with engine:
        _engine()


# ---- installed ----


def _installed(models: list[Model]) -> None:
    if not models:
        quiet(t("none_installed"))
    for model in models:
        _model(model)


def _model(model: Model) -> None:
    name = model["id"]
    with st.container(border=True, key=f"model_{name}"):
        labels = badges(
            (t_or(f"kind_{model['kind']}", model["kind"]), ""),
            (_in_memory(model), "good"),
            (str(model.get("quantization") or ""), ""),
            (figures.size(model.get("size_bytes") or 0) if model.get("size_bytes") else "", ""),
            ("" if model.get("managed", True) else t("in_place"), ""),
        )
        st.html(f'<div class="mf-card"><b>{escape(name)}</b>{labels}</div>')
        with st.container(horizontal=True, vertical_alignment="center", key=f"actions_{name}"):
            _load_or_unload(model)
            with st.popover(t("delete"), icon=":material/delete:", key=f"delete_{name}"):
                st.write(
                    t("delete_model_text" if model.get("managed", True) else "forget_model_text", name=plain(name))
                )
                st.button(
                    t("delete_sure"),
                    key=f"delete_sure_{name}",
                    type="primary",
                    on_click=attempt,
                    args=(partial(client().remove_model, name),),
                )
        details = st.expander(t("details"), key=f"details_{name}", on_change="rerun")
        if details.open:
            with details:
                _details(name)


def _in_memory(model: Model) -> str:
    if not model.get("loaded"):
        return ""
    held = model.get("resident_bytes")
    return t("loaded_with", size=figures.size(held)) if held else t("loaded")


def _load_or_unload(model: Model) -> None:
    name = model["id"]
    tasks: dict[str, Task] = st.session_state.setdefault("tasks", {})
    task = tasks.get(name)
    if task and task.is_running:
        _loading(name)
        return
    if task:
        if task.error:
            show_error(task.error)
        del tasks[name]
    if model.get("loaded"):
        st.button(
            t("unload"),
            key=f"unload_{name}",
            icon=":material/eject:",
            on_click=attempt,
            args=(partial(client().unload_model, name),),
        )
    else:
        call = partial(client().load_model, name)
        st.button(
            t("load"),
            key=f"load_{name}",
            icon=":material/play_arrow:",
            on_click=lambda: tasks.__setitem__(name, Task(call)),
        )


@fragment(run_every=0.5)
def _loading(name: str) -> None:
    task: Task | None = st.session_state["tasks"].get(name)
    if task is None or not task.is_running:
        st.rerun()
    st.html(f'<div class="mf-state"><i></i>{escape(t("loading"))}</div>')


def _details(name: str) -> None:
    try:
        model = client().model(name)
    except MofangError as error:
        show_error(error)
        return
    lang = language()
    memory = model.get("memory") or {}
    known: list[tuple[str, str]] = [
        (t("fact_architecture"), str(model.get("architecture") or "")),
        (t("fact_parameters"), figures.count(lang, model["parameters"]) if model.get("parameters") else ""),
        (t("fact_layers"), _number(model.get("n_layers"))),
        (t("fact_context"), _number(model.get("n_ctx_train"), t("unit_tokens"))),
        (t("fact_vocabulary"), _number(model.get("n_vocab"))),
        (t("fact_width"), _number(model.get("n_embd"))),
        (t("fact_quantization"), str(model.get("quantization") or "")),
        (t("fact_tokenizer"), str(model.get("tokenizer") or "")),
        (t("fact_memory"), figures.size(memory["total"]) if memory.get("total") else ""),
        (t("fact_source"), t_or(f"source_{model.get('source')}", str(model.get("source") or ""))),
        (t("fact_path"), str(model.get("path") or "")),
        (t("fact_sha256"), str(model.get("sha256") or "")),
    ]
    facts(*known)
    if memory.get("total"):
        parts = [
            t(f"memory_{part}", size=figures.size(memory[part]))
            for part in ("weights", "kv_cache", "compute")
            if memory.get(part)
        ]
        quiet(t("memory_parts", parts=" + ".join(parts)))
    if (model.get("lineage") or {}).get("parents"):
        st.html(f'<h4 class="mf-group">{escape(t("ancestry"))}</h4>{tree_html(model["lineage"], lang)}')
    if against := ((model.get("manifest") or {}).get("checks") or {}).get("against"):
        checks.show(name, against)
    if model.get("chat_template"):
        with st.expander(t("chat_template"), key=f"template_{name}"):
            st.code(model["chat_template"], language="jinja2", wrap_lines=True)
    if model.get("manifest"):
        with st.expander(t("manifest"), key=f"manifest_{name}"):
            st.html(f'<dl class="mf-facts">{_tree(model["manifest"])}</dl>')


def _number(value: Any, unit: str = "") -> str:
    return f"{value:,} {unit}".strip() if isinstance(value, int | float) else ""


def _tree(manifest: dict[str, Any]) -> str:
    """manifest.json as it is: its field names are the file's own."""
    rows = []
    for name, value in manifest.items():
        shown = "、".join(map(str, value)) if isinstance(value, list) else str(value)
        inner = f"<dl>{_tree(value)}</dl>" if isinstance(value, dict) else escape(shown)
        rows.append(f"<dt><code>{escape(str(name))}</code></dt><dd>{inner}</dd>")
    return "".join(rows)


# ---- catalogue ----


def _catalogue(pulling: set[str]) -> None:
    entries = client().catalogue()
    entries.sort(key=lambda entry: (not entry.get("fits", True), entry.get("installed", False)))
    known = ("chat", "embedding", "reranker", "base")
    kinds = sorted(
        {entry["kind"] for entry in entries},
        key=lambda kind: (kind not in known, known.index(kind) if kind in known else 0),
    )
    labels = {kind: t_or(f"kind_{kind}", kind) for kind in kinds}
    chosen = st.pills(
        t("kind"), kinds, format_func=labels.__getitem__, key="catalogue_kind", label_visibility="collapsed"
    )
    for entry in entries:
        if chosen in (None, entry["kind"]):
            _entry(entry, is_pulling=entry["name"] in pulling)


def _entry(entry: dict[str, Any], *, is_pulling: bool) -> None:
    lang, name = language(), entry["name"]
    summary = entry.get("summary") or {}
    with st.container(border=True, key=f"entry_{name}"):
        labels = badges(
            (t_or(f"kind_{entry['kind']}", entry["kind"]), ""),
            (t("is_installed") if entry.get("installed") else "", "good"),
            ("" if entry.get("fits", True) else t("does_not_fit"), "warn"),
        )
        st.html(
            f'<div class="mf-card"><b>{escape(str(entry.get("title") or name))}</b>{labels}</div>'
            f"<p class='mf-summary'>{escape(str(summary.get(lang) or summary.get('zh') or ''))}</p>"
            f'<div class="mf-figures">{"".join(f"<span>{escape(text)}</span>" for text in _entry_figures(entry))}</div>'
        )
        if entry.get("installed"):
            return
        with st.container(horizontal=True, vertical_alignment="center", key=f"pull_row_{name}"):
            sources = [source["kind"] for source in entry.get("sources") or []]
            names = {kind: t_or(f"source_{kind}", kind) for kind in ("auto", *sources)}
            source = "auto"
            if len(sources) > 1:
                source = st.selectbox(
                    t("source"),
                    ["auto", *sources],
                    format_func=names.__getitem__,
                    key=f"source_{name}",
                    label_visibility="collapsed",
                    width=190,
                )
            st.button(
                t("pulling") if is_pulling else t("pull"),
                key=f"pull_{name}",
                icon=":material/download:",
                type="primary" if entry.get("fits", True) else "secondary",
                disabled=is_pulling,
                on_click=attempt,
                args=(partial(client().pull, name, None if source == "auto" else source),),
            )


def _entry_figures(entry: dict[str, Any]) -> list[str]:
    lang = language()
    figures_of = [
        t("figure_size", size=figures.size(entry["size_bytes"])) if entry.get("size_bytes") else "",
        t("figure_memory", size=figures.size(entry["memory_bytes"])) if entry.get("memory_bytes") else "",
        t("figure_parameters", n=figures.count(lang, entry["parameters"])) if entry.get("parameters") else "",
        t("figure_context", n=f"{entry['n_ctx_train']:,}") if entry.get("n_ctx_train") else "",
        t("figure_licence", name=entry["licence"]) if entry.get("licence") else "",
    ]
    languages = [_language(code) for code in entry.get("languages") or []]
    if languages:
        figures_of.append(t("comma").join(languages[:4]) + (t("and_more") if len(languages) > 4 else ""))
    return [text for text in figures_of if text]


def _language(code: str) -> str:
    """A language's name; the catalogue writes "+27" for 27 more."""
    return t("languages_more", n=code[1:]) if code.startswith("+") else t_or(f"language_{code}", code)


# ---- engine ----


def _engine() -> None:
    """Which llama.cpp runs here and why, and what tuning chose for each model, with the figures."""
    try:
        found = client().engine()
    except MofangError as error:
        show_error(error)
        return
    machine = found["machine"]
    known = [
        (t("engine_cpu"), f"{machine['cpu']} · {' '.join(machine['abilities'])}"),
        (t("engine_cores"), f"{machine['cores']} / {machine['threads']}"),
        (t("engine_provider"), found["provider"] or "–"),
        (t("engine_why"), found["why"]),
    ]
    facts(*known)
    for build in found["builds"]:
        state = "engine_proven" if build["proven"] else "engine_unproven"
        quiet(f"{build['backend']} · {build['compiler']} · {t(state)}{'' if build['fits'] else t('engine_elsewhere')}")
    for profile in found["profiles"]:
        _profile(profile)
    if not found["profiles"]:
        quiet(t("engine_not_tuned"))
    st.code("mofang engine build\nmofang engine tune MODEL", language="bash")


def _from_to(before: float | None, after: float | None) -> str:
    """Nothing where the change left this kind of work alone."""
    return "" if before is None or after is None or before == after else f"{before:.4g} → {after:.4g}"


def _profile(profile: dict[str, Any]) -> None:
    with st.container(border=True, key=f"profile_{profile['model']}"):
        chosen = {name: value for name, value in profile["choices"].items() if value not in ("", 0, "auto", "f16")}
        words = " · ".join(f"{name}={value}" for name, value in chosen.items()) or t("engine_defaults")
        how = t("engine_brief" if profile["brief"] else "engine_asked", seconds=f"{profile['seconds']:.0f}")
        st.html(f'<div class="mf-card"><b>{escape(profile["model"])}</b>{badges((words, "good"), (how, ""))}</div>')
        kinds = dict.fromkeys(kind for step in profile["steps"] for kind in step["challenger"])
        rows = [
            {
                t("engine_change"): " · ".join(f"{name}={value}" for name, value in step["change"].items()),
                t("engine_taken"): "✓" if step["taken"] else "",
                t("engine_gain"): f"{100 * (step['gain'] - 1):+.1f} % ± {100 * step['noise']:.1f}",
                **{t(f"engine_speed_{kind}"): _from_to(step["champion"].get(kind), step["challenger"].get(kind))
                   for kind in kinds},
            }
            for step in profile["steps"]
        ]  # fmt: skip
        if rows:
            st.dataframe(rows, hide_index=True, width="stretch")
        for note in profile["notes"]:
            quiet(note)
