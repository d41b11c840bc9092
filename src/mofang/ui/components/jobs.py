"""Jobs of the gateway (pulls, ingests) with live progress and a stop button."""

from collections.abc import Sequence
from functools import partial
from html import escape
from typing import Any

import streamlit as st

from mofang.ui import figures
from mofang.ui.components.base import attempt, fragment, quiet, show_fault
from mofang.ui.session import client, language, t, t_or

Job = dict[str, Any]


def running(kinds: Sequence[str]) -> list[Job]:
    return [job for job in client().jobs() if job["kind"] in kinds and job["status"] == "running"]


@fragment(run_every=1.0)
def live(kinds: tuple[str, ...], known: tuple[str, ...]) -> None:
    """The running jobs of these kinds; `known` are those that the page was drawn with: when one ends or another
    begins, the whole page is drawn again."""
    jobs = running(kinds)
    if {job["id"] for job in jobs} != set(known):
        st.rerun()
    for job in jobs:
        card(job)


def card(job: Job) -> None:
    fraction, line = figures.progress(language(), job.get("progress"))
    with st.container(border=True, key=f"job_{job['id']}"):
        with st.container(horizontal=True, vertical_alignment="center", key=f"job_head_{job['id']}"):
            what = t_or(f"job_{job['kind']}", t("job_other"))
            st.html(f'<div class="mf-job"><b>{escape(what)}</b> {escape(str(job.get("title") or ""))}</div>')
            st.button(
                t("stop"),
                key=f"job_stop_{job['id']}",
                icon=":material/stop:",
                on_click=attempt,
                args=(partial(client().stop_job, job["id"]),),
            )
        st.progress(fraction)
        quiet(line)


def last_failure(kind: str) -> None:
    """The newest job of this kind, when it ended in an error: what was wrong and what to do."""
    jobs = [job for job in client().jobs() if job["kind"] == kind]
    newest = max(jobs, key=lambda job: job["created_at"], default=None)
    if newest and newest["status"] == "error" and newest["id"] not in st.session_state.get("seen_jobs", ()):
        show_fault(newest.get("error"))
        st.button(t("dismiss"), key=f"job_seen_{newest['id']}", on_click=_seen, args=(newest["id"],))


def _seen(job_id: str) -> None:
    st.session_state["seen_jobs"] = (*st.session_state.get("seen_jobs", ()), job_id)
