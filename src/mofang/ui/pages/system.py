"""系统: the machine and what it does now and did this hour, keys for others, logs, and what is missing."""

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from html import escape
from typing import Any, Final

import streamlit as st

from mofang.errors import MofangError
from mofang.ui import figures
from mofang.ui.components.base import (
    attempt,
    badges,
    chart,
    facts,
    fragment,
    plain,
    quiet,
    show_error,
    show_flash,
    stats,
)
from mofang.ui.session import client, language, t, t_or

TICK_S: Final = 3.0
LINES: Final = (100, 500, 2000)
TONES: Final = {"ok": "good", "note": "warn", "missing": "bad", "active": "good", "expired": "warn", "revoked": ""}
EXPIRES: Final = {"never": None, "day": 86_400, "month": 30 * 86_400, "year": 365 * 86_400}
"""How long a key may live, in seconds."""


def page() -> None:
    st.html(f'<div class="mf-head"><h2>{escape(t("page_system"))}</h2><p>{escape(t("system_text"))}</p></div>')
    show_flash()
    now, keys, logs, doctor = st.tabs([t("system_now"), t("system_keys"), t("system_logs"), t("system_doctor")])
    with now:
        _now()
    with keys:
        _keys()
    with logs:
        _logs()
    with doctor:
        _doctor()


# ---- now, and the last hour ----


@fragment(run_every=TICK_S)
def _now() -> None:
    system = client().system()
    machine, memory = system["machine"], system["memory"]
    cells = [
        (t("system_answering"), str(system["running"]["generations"])),
        (t("system_waiting"), str(sum(system["waiting"].values()))),
        (t("system_jobs"), str(system["running"]["jobs"])),
        (t("system_memory_free"), figures.size(memory["available"])),
        (t("system_disk_free"), figures.size(system["disk_free_bytes"])),
    ]
    stats(*cells)
    history = client().history()
    _chart(history, {"completion_tokens_per_s": t("system_written"), "prompt_tokens_per_s": t("system_read")},
           t("tokens_per_s"), t("system_tokens_alt"))  # fmt: skip
    _loaded(system["engines"], memory["total"])
    known = [
        (t("system_machine"), f"{machine['system']} {machine['machine']}"),
        (t("engine_cores"), str(machine.get("cores") or "")),
        (t("system_memory"), figures.size(memory["total"])),
        *((name, version) for name, version in system["versions"].items()),
    ]
    with st.expander(t("system_versions"), icon=":material/info:", key="system_versions"):
        facts(*known)
    with st.expander(t("system_settings"), icon=":material/settings:", key="system_settings"):
        rows = "".join(
            f"<dt><code>MOFANG_{escape(name.upper())}</code></dt><dd>{escape(_shown(value))}</dd>"
            for name, value in system["settings"].items()
        )
        st.html(f'<dl class="mf-facts">{rows}</dl>')


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _loaded(engines: Sequence[Mapping[str, Any]], total: int) -> None:
    """Models in memory, each with its share of it, what it is doing, and the way out."""
    if not engines:
        quiet(t("system_nothing_loaded"))
    for engine in engines:
        name = str(engine["model"])
        with st.container(border=True, horizontal=True, vertical_alignment="center", key=f"loaded_{name}"):
            held = engine["memory_bytes"]
            labels = badges(
                (t_or(f"kind_{engine['kind']}", engine["kind"]), ""),
                (figures.size(held) if held else "", ""),
                (t("system_pinned") if engine.get("pinned") else "", ""),
                (
                    t("system_at_work", n=engine["running"], slots=engine["n_slots"]) if engine.get("running") else "",
                    "live",
                ),
            )
            parts = [
                str(engine.get("provider") or engine["engine"]),
                t("figure_context", n=f"{engine['n_ctx']:,}") if engine.get("n_ctx") else "",
                t("system_share", share=f"{held / total:.0%}") if held and total else "",
                t("system_leaves", time=figures.duration(language(), engine["unloads_in_s"]))
                if engine.get("unloads_in_s")
                else "",
                *engine.get("notices", ()),
            ]
            st.html(
                f'<div class="mf-card"><b>{escape(name)}</b>{labels}</div>'
                f'<div class="mf-figures">{"".join(f"<span>{escape(part)}</span>" for part in parts if part)}</div>'
            )
            st.button(
                t("unload"), key=f"system_unload_{name}", icon=":material/eject:", on_click=attempt,
                args=(partial(client().unload_model, name),),
            )  # fmt: skip


def _chart(rows: Sequence[Mapping[str, Any]], series: Mapping[str, str], title: str, alt: str) -> None:
    """The last hour as lines; nothing before there are two points."""
    if len(rows) < 2:
        quiet(t("system_history_soon"))
        return
    points = [
        {"at": int(row["at"] * 1000), "value": round(row[name], 2), "series": label}
        for row in rows
        for name, label in series.items()
    ]
    value = {"field": "value", "type": "quantitative", "title": title}
    at = {"field": "at", "type": "temporal", "title": None}
    spec = {
        "height": 180,
        "mark": {"type": "line", "strokeWidth": 2, "interpolate": "monotone"},
        "encoding": {
            "x": {**at, "axis": {"format": "%H:%M", "grid": False, "tickCount": 6}},
            "y": {**value, "axis": {"tickCount": 4}},
            "color": {
                "field": "series",
                "type": "nominal",
                "scale": {"domain": list(series.values())},
                "legend": {"title": None, "symbolOpacity": 1},
            },
            "tooltip": [{"field": "series", "type": "nominal", "title": t("curve_series")}, {**at, "format": "%H:%M:%S",
                        "title": t("system_time")}, {**value, "format": ".1f"}],
        },
    }  # fmt: skip
    chart(points, spec, alt)


# ---- keys ----


@fragment()
def _keys() -> None:
    show_flash()
    quiet(t("keys_text"))
    if secret := st.session_state.get("key_made"):
        with st.container(border=True, key="key_made_box"):
            st.html(f'<div class="mf-card"><b>{escape(t("key_made"))}</b></div>')
            st.code(secret, language=None)
            st.button(t("dismiss"), key="key_seen", on_click=st.session_state.pop, args=("key_made",))
    with st.form("new_key", border=True):
        name = st.text_input(t("key_name"), key="key_name", max_chars=100, placeholder=t("key_name_placeholder"))
        left, right = st.columns(2)
        per_minute = left.number_input(
            t("key_per_minute"), 1, 1_000_000, None, key="key_per_minute", placeholder=t("key_unlimited")
        )
        tokens = right.number_input(
            t("key_tokens"), 1, 1_000_000_000, None, key="key_tokens", placeholder=t("key_unlimited")
        )
        models = left.multiselect(
            t("key_models"), [model["id"] for model in client().models()], key="key_models",
            placeholder=t("key_every_model"), select_all=False,
        )  # fmt: skip
        expires = right.selectbox(
            t("key_expires"), list(EXPIRES), format_func=lambda name: t(f"key_expires_{name}"), key="key_expires"
        )
        if st.form_submit_button(t("key_make"), type="primary", icon=":material/key:"):
            _make(name.strip(), requests_per_minute=per_minute, tokens_per_minute=tokens, models=models,
                  expires_in_s=EXPIRES[expires])  # fmt: skip
    try:
        known = client().keys()
    except MofangError as error:
        show_error(error)
        return
    if not known:
        quiet(t("keys_none"))
    for key in known:
        _key(key)


def _make(name: str, **fields: Any) -> None:
    if not name:
        quiet(t("key_needs_name"))
        return
    try:
        made = client().create_key(name, **{field: value for field, value in fields.items() if value})
    except MofangError as error:
        show_error(error)
    else:
        st.session_state["key_made"] = made["key"]
        st.rerun()


def _key(key: Mapping[str, Any]) -> None:
    own = key["id"]
    with st.container(border=True, horizontal=True, vertical_alignment="center", key=f"key_{own}"):
        limits = [
            t("key_at_most_requests", n=key["requests_per_minute"]) if key.get("requests_per_minute") else "",
            t("key_at_most_tokens", n=f"{key['tokens_per_minute']:,}") if key.get("tokens_per_minute") else "",
            t("comma").join(key.get("models") or ()),
            t("key_used", time=figures.moment(key["last_used_at"])) if key.get("last_used_at") else t("key_unused"),
            t("key_until", time=figures.moment(key["expires_at"])) if key.get("expires_at") else "",
        ]
        state = str(key["state"])
        st.html(
            f'<div class="mf-card"><b>{escape(str(key["name"]))}</b>'
            f"{badges((t_or(f'key_{state}', state), TONES.get(state, '')))}</div>"
            f'<div class="mf-figures">{"".join(f"<span>{escape(text)}</span>" for text in limits if text)}</div>'
        )
        if state == "active":
            with st.popover(t("key_revoke"), icon=":material/block:", key=f"revoke_{own}"):
                st.write(t("key_revoke_text", name=plain(str(key["name"]))))
                st.button(
                    t("key_revoke_sure"),
                    key=f"revoke_sure_{own}",
                    type="primary",
                    on_click=attempt,
                    args=(partial(client().revoke_key, own),),
                )


# ---- logs ----


@fragment()
def _logs() -> None:
    try:
        known = {one["name"]: one for one in client().logs()}
    except MofangError as error:
        show_error(error)
        return
    if not known:
        quiet(t("logs_none"))
        return
    with st.container(horizontal=True, vertical_alignment="bottom", key="logs_row"):
        name = st.selectbox(
            t("log_name"), list(known), format_func=lambda name: _log_label(known[name]), key="log_name"
        )
        lines = st.selectbox(t("log_lines"), LINES, key="log_lines", width=120)
        st.button(t("log_again"), key="log_again", icon=":material/refresh:")
    text = client().log(name, lines)
    st.code(text or t("run_log_empty"), language=None, wrap_lines=True, height=520)


def _log_label(one: Mapping[str, Any]) -> str:
    moment = figures.moment(datetime.fromtimestamp(one["at"], UTC).isoformat())
    return f"{one['name']} · {figures.size(one['size_bytes'])} · {moment}"


# ---- what is missing ----


@fragment()
def _doctor() -> None:
    quiet(t("doctor_text"))
    if st.button(t("doctor_run"), key="doctor_run", icon=":material/stethoscope:"):
        with st.spinner(t("doctor_looking")):
            try:
                st.session_state["doctor"] = client().doctor()
            except MofangError as error:
                show_error(error)
                return
    rows = []
    for one in st.session_state.get("doctor", ()):
        cure = f"<br><code>{escape(one['cure'])}</code>" if one["cure"] else ""
        state = badges((t(f"doctor_{one['status']}"), TONES.get(one["status"], "")))
        rows.append(f"<dt>{escape(one['name'])} {state}</dt><dd>{escape(one['found'])}{cure}</dd>")
    if rows:
        st.html(f'<dl class="mf-facts">{"".join(rows)}</dl>')
