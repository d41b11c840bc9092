"""Runs of the gateway, whatever they make: listed, looked at, stopped, resumed, deleted.

A run lives in a process of its own; a page may come and go. The run that is looked at stands in the URL (?run=…).
"""

import json
from collections.abc import Mapping, Sequence
from functools import partial
from html import escape
from typing import Any, Final

import streamlit as st

from mofang.client import ApiError
from mofang.errors import MofangError
from mofang.ui import figures
from mofang.ui.components import settings
from mofang.ui.components.base import attempt, badges, flash, fragment, quiet, show_error
from mofang.ui.session import client, language, link_params, open_conversation, t, t_or
from mofang.ui.watch import Task

TONES: Final = {"running": "live", "done": "good", "stopped": "warn", "interrupted": "warn", "failed": "bad"}
STARTABLE: Final = ("created", "stopped", "failed", "interrupted")

Run = dict[str, Any]


def looked_at() -> Run | None:
    """The run that the URL names; one that is gone is said."""
    wanted = st.query_params.get("run")
    if not wanted:
        return None
    try:
        return client().run(wanted)
    except ApiError as error:
        if error.status != 404:
            raise
        look_at(None)
        show_error(error)
        return None


def look_at(run_id: str | None) -> None:
    """Look at this run, or at all of them."""
    if run_id:
        st.query_params["run"] = run_id
    else:
        st.query_params.pop("run", None)


def start(kind: str, recipe: Mapping[str, Any], launcher: Mapping[str, Any] | None = None) -> bool:
    """Start a run and look at it, once the page is drawn again; False: it was refused, and that is said."""
    try:
        with st.spinner(t("train_starting")):
            run = client().start_run(kind, recipe, launcher)
    except MofangError as error:
        show_error(error)
        return False
    look_at(run["id"])
    return True


# ---- all of them ----


def listed(known: Sequence[Run], **wanted: Any) -> None:
    """Those that `wanted` (see Client.runs) says; alive while one of `known` is running."""
    (_alive if any(run["status"] == "running" for run in known) else _still)(**wanted)


def _draw(**wanted: Any) -> None:
    for run in client().runs(**wanted):
        with st.container(border=True, horizontal=True, vertical_alignment="center", key=f"run_{run['id']}"):
            st.html(
                f'<div class="mf-card"><b>{escape(run["title"])}</b>{chip(run)}</div>'
                f'<div class="mf-figures">{"".join(f"<span>{escape(text)}</span>" for text in _in_short(run))}</div>'
            )
            if st.button(t("run_open"), key=f"see_run_{run['id']}", icon=":material/monitoring:"):
                look_at(run["id"])
                st.rerun()


_still: Final = fragment()(_draw)
_alive: Final = fragment(run_every=2.0)(_draw)


def chip(run: Run) -> str:
    return badges((t_or(f"run_{run['status']}", run["status"]), TONES.get(run["status"], "")))


def _in_short(run: Run) -> list[str]:
    result = run.get("result") or {}
    texts = [
        t_or(f"export_{run['kind']}", ""),
        figures.moment(run["created_at"]),
        told(run)[1] if run["status"] == "running" else "",
        t("run_loss", first=f"{result['first_loss']:.3f}", last=f"{result['last_loss']:.3f}")
        if "last_loss" in result
        else "",
        str(run.get("model") or ""),
        str((run.get("error") or {}).get("message") or ""),
    ]
    return [text for text in texts if text]


def told(run: Run) -> tuple[float, str]:
    """Its progress; a training's own detail (loss, speed) stands among the figures."""
    shape = run.get("progress") or {}
    return figures.progress(language(), {**shape, "detail": ""} if shape.get("unit") == "steps" else shape)


# ---- one of them ----


def way_back(label: str) -> None:
    st.button(label, key="all_runs", icon=":material/arrow_back:", type="tertiary", on_click=look_at, args=(None,))


def head(run: Run, *more: str) -> None:
    facts = [figures.moment(run["created_at"]), run["id"], *more]
    st.html(
        f'<div class="mf-head"><h2 class="mf-card">{escape(run["title"])}{chip(run)}</h2>'
        f'<div class="mf-figures">{"".join(f"<span>{escape(text)}</span>" for text in facts if text)}</div></div>'
    )


def handles(run: Run, running: str | None, *, deletes: str) -> None:
    """Stop what is `running` (an id: this run's or that of one that belongs to it), go on, delete."""
    own = run["id"]
    if running:
        _stop_button(running)
    if run["status"] in STARTABLE:
        st.button(
            t("run_resume" if run["started_at"] else "run_start"),
            key="run_resume",
            type="primary",
            icon=":material/play_arrow:",
            on_click=attempt,
            args=(partial(client().resume_run, own),),
        )
    if not running:
        with st.popover(t("delete"), icon=":material/delete:", key="run_delete"):
            st.write(deletes)
            st.button(t("delete_sure"), key="run_delete_sure", type="primary", on_click=_remove, args=(own,))


def _stop_button(run_id: str) -> None:
    """Stopping waits until the run has saved what it has, so it is done beside the page."""
    tasks: dict[str, Task] = st.session_state.setdefault("run_stops", {})
    task = tasks.get(run_id)
    if task and not task.is_running:
        del tasks[run_id]
        if task.error:
            show_error(task.error)
        task = None
    st.button(
        t("run_stopping") if task else t("stop"),
        key="run_stop",
        icon=":material/stop:",
        disabled=task is not None,
        on_click=lambda: tasks.__setitem__(run_id, Task(partial(client().stop_run, run_id))),
    )


def _remove(run_id: str) -> None:
    try:
        client().remove_run(run_id)
    except MofangError as error:
        flash(error)
    else:
        look_at(None)


def chat_button(model: str) -> None:
    """To a new conversation with what came of a run."""
    if st.button(t("run_chat"), key="run_chat", type="primary", icon=":material/chat_bubble:"):
        settings.draft()["model"] = model
        open_conversation(None)
        st.switch_page(st.session_state["pages"]["chat"], query_params=link_params(c=None))


def progress(run: Run) -> None:
    fraction, line = told(run)
    if fraction:
        st.progress(fraction)
        quiet(line)
    else:
        st.html(f'<div class="mf-state"><i></i>{escape(line)}</div>')


def papers(run: Run) -> None:
    """What it was asked, and what it wrote on the way."""
    with st.expander(t("run_recipe"), icon=":material/description:", key="run_recipe"):
        st.code(_as_yaml(run["recipe"]), language=None, wrap_lines=True)
    with st.expander(t("run_log"), icon=":material/article:", key="run_log"):
        st.code(run["log"] or t("run_log_empty"), language=None, wrap_lines=True)


def _as_yaml(recipe: Mapping[str, Any]) -> str:
    """To read, and to copy into a file for the command line: JSON values are YAML."""
    return "\n".join(f"{name}: {json.dumps(value, ensure_ascii=False)}" for name, value in recipe.items())
