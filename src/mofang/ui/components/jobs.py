"""Jobs of the gateway (pulls, ingests) with live progress and a stop button."""

from collections.abc import Callable, Sequence
from functools import partial
from html import escape
from typing import Any, Final

import streamlit as st

from mofang.ui import figures
from mofang.ui.components.base import attempt, fragment, quiet, show_fault
from mofang.ui.session import client, language, t, t_or

Job = dict[str, Any]


OPEN: Final = ("running", "paused")
"""What has not ended."""


def under_way(kinds: Sequence[str]) -> list[Job]:
    """Those that run, and those that are paused."""
    return [job for job in client().jobs() if job["kind"] in kinds and job["status"] in OPEN]


@fragment(run_every=1.0)
def live(kinds: tuple[str, ...], known: tuple[str, ...]) -> None:
    """The jobs of these kinds that have not ended; `known` are those that the page was drawn with: when one ends or another
    begins, the whole page is drawn again."""
    jobs = under_way(kinds)
    if {job["id"] for job in jobs} != set(known):
        st.rerun()
    for job in jobs:
        card(job)


def card(job: Job) -> None:
    is_paused = job["status"] == "paused"
    progress = job.get("progress") or {}
    fraction, line = figures.progress(language(), {**progress, **STILL} if is_paused and progress else progress)
    with st.container(border=True, key=f"job_{job['id']}"):
        with st.container(horizontal=True, vertical_alignment="center", key=f"job_head_{job['id']}"):
            what = t("job_paused") if is_paused else t_or(f"job_{job['kind']}", t("job_other"))
            st.html(f'<div class="mf-job"><b>{escape(what)}</b> {escape(str(job.get("title") or ""))}</div>')
            (_paused if is_paused else _running)(job)
        st.progress(fraction)
        quiet("" if is_paused and not progress else line)


STILL: Final = {"rate": 0, "seconds_left": 0}
"""Of a job that is paused: how fast it was says nothing any more."""


def _running(job: Job) -> None:
    own = job["id"]
    if job.get("pausable"):
        _button("pause", own, "pause", partial(client().pause_job, own))
    _button("stop", own, "stop", partial(client().stop_job, own))


def _paused(job: Job) -> None:
    own = job["id"]
    _button("run_resume", own, "play_arrow", partial(client().resume_job, own), type="primary")
    with st.popover(t("job_drop"), icon=":material/delete:", key=f"job_drop_{own}"):
        st.write(t("job_drop_text"))
        _button("delete_sure", own, "delete", partial(client().drop_job, own), type="primary")


def _button(word: str, own: str, icon: str, call: Callable[[], Any], **looks: Any) -> None:
    st.button(t(word), key=f"job_{word}_{own}", icon=f":material/{icon}:", on_click=attempt, args=(call,), **looks)


def last_failure(kind: str) -> None:
    """The newest job of this kind, when it ended in an error: what was wrong and what to do."""
    jobs = [job for job in client().jobs() if job["kind"] == kind]
    newest = max(jobs, key=lambda job: job["created_at"], default=None)
    if newest and newest["status"] == "error" and newest["id"] not in st.session_state.get("seen_jobs", ()):
        show_fault(newest.get("error"))
        st.button(t("dismiss"), key=f"job_seen_{newest['id']}", on_click=_seen, args=(newest["id"],))


def _seen(job_id: str) -> None:
    st.session_state["seen_jobs"] = (*st.session_state.get("seen_jobs", ()), job_id)
