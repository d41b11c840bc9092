"""Questions about a base: drafted by a model, then checked one by one with the passage that each rests on.

Everything said here is kept by the gateway as it is said: a reload, or another tab, shows the same.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from html import escape
from typing import Any, Final

import streamlit as st

from mofang.errors import MofangError
from mofang.ui.components import document
from mofang.ui.components.base import attempt, flash, fragment, quiet, show_flash
from mofang.ui.components.working import model_of
from mofang.ui.session import client, t, t_or

STATES: Final = ("open", "accepted", "dropped")
WORDS: Final = ("question", "answer")
"""What of one may be edited."""
WRITERS: Final = ("chat",)
USUAL: Final = 20
"""Questions that are drafted at a time."""
MOST: Final = 1_000
"""What the gateway takes."""
KEYS: Final = {"accepted": "Alt+Y", "dropped": "Alt+X", "open": "Alt+O"}
"""What decides a question from the keyboard; "Alt+P" and "Alt+N" go through them."""
ICONS: Final = {"accepted": "check", "dropped": "delete", "open": "undo"}

Row = dict[str, Any]


@fragment()
def show(name: str, writable: bool, evaluate: Callable[[str, bytes], None]) -> None:
    """Draft, check, and `evaluate` (the base's name and the accepted ones, as a set) on what was accepted."""
    show_flash()
    rows = client().questions(name)
    if writable:
        _draft(name, rows)
    if not rows:
        return
    counts = Counter(row["state"] for row in rows)
    state = _chosen(name, counts)
    _check(name, [row for row in rows if row["state"] == state], writable)
    _whole(name, counts["accepted"], writable, evaluate)


def report(result: Mapping[str, Any]) -> None:
    """What a draft came to."""
    quiet(t("questions_kept", n=result["kept"]))
    why = [f"{t_or(f'questions_why_{one}', one)} {n}" for one, n in result["dropped"].items()]
    if why:
        quiet(t("questions_left_out", why=" · ".join(why)))


# ---- drafting ----


def _draft(name: str, rows: Sequence[Row]) -> None:
    quiet(t("questions_text"))
    with st.container(key="questions_fields"):
        model = model_of(client().models(), WRITERS, "questions_model")
        n = st.number_input(t("questions_n"), 1, MOST, USUAL, key="questions_n")
    if model is None:
        return
    start = st.button(
        t("questions_more" if rows else "questions_start"),
        key="questions_start",
        type="secondary" if rows else "primary",
        icon=":material/quiz:",
    )
    if start:
        try:
            st.session_state[f"questions_{name}"] = client().draft_questions(name, int(n), model)["id"]
        except MofangError as error:
            flash(error)
        st.rerun()


# ---- checking ----


def _chosen(name: str, counts: Mapping[str, int]) -> str:
    """Which of them are looked at."""
    labels = {state: t(f"questions_{state}", n=counts.get(state, 0)) for state in STATES}
    chosen = st.segmented_control(
        t("questions_which"),
        STATES,
        default=STATES[0],
        required=True,
        format_func=labels.__getitem__,
        key=f"questions_state_{name}",
        label_visibility="collapsed",
    )
    return str(chosen or STATES[0])


def _check(name: str, rows: Sequence[Row], writable: bool) -> None:
    """One question at a time; one that is decided makes room for the next. Whatever is pressed keeps the words as they
    stand: a form tells them also where the keyboard pressed it amid a word."""
    if not rows:
        quiet(t("questions_none"))
        return
    key = f"questions_place_{name}"
    place = min(int(st.session_state.get(key, 0)), len(rows) - 1)
    row = rows[place]
    fields = {field: f"question_{field}_{name}_{row['id']}" for field in WORDS}
    with st.form("question", enter_to_submit=False):
        keep = partial(_keep, name, row, fields) if writable else _look
        _steps(key, place, len(rows), keep)
        for field, widget in fields.items():
            st.text_area(t(f"questions_{field}"), row[field], key=widget, height=80, disabled=not writable)
        _passage(row)
        with st.container(horizontal=True, vertical_alignment="center", key="question_actions"):
            for state in (one for one in KEYS if writable and one != row["state"]):
                st.form_submit_button(
                    t(f"questions_to_{state}"),
                    key=f"question_{state}",
                    type="primary" if state == "accepted" else "secondary",
                    icon=f":material/{ICONS[state]}:",
                    shortcut=KEYS[state],
                    on_click=keep,
                    kwargs={"state": state},
                )
            opens = row["document_id"] is not None and st.form_submit_button(
                t("open_document"), key="question_view", icon=":material/find_in_page:", type="tertiary", on_click=keep
            )
    if opens:
        ((start, end),) = row["spans"]
        document.open_now({"knowledge": name, "document_id": row["document_id"], "start": start, "end": end})
        st.rerun()


def _steps(key: str, place: int, n: int, keep: Callable[..., None]) -> None:
    def go(to: int) -> None:
        keep()
        st.session_state[key] = to

    with st.container(horizontal=True, vertical_alignment="center", key="question_steps"):
        for name, shortcut, icon, to in (
            ("back", "Alt+P", "chevron_left", place - 1),
            ("on", "Alt+N", "chevron_right", place + 1),
        ):
            st.form_submit_button(
                t(f"step_{name}"),
                key=f"question_{name}",
                icon=f":material/{icon}:",
                type="tertiary",
                shortcut=shortcut,
                disabled=not 0 <= to < n,
                on_click=go,
                args=(to,),
            )
        st.html(f'<span class="mf-quiet">{escape(t("questions_of", place=place + 1, n=n))}</span>', width="content")


def _passage(row: Row) -> None:
    """What the question rests on, as it read when it was drafted."""
    gone = "" if row["document_id"] else f'<div class="mf-quiet">{escape(t("questions_gone"))}</div>'
    st.html(
        f'<div class="mf-hit"><div class="mf-card"><b>{escape(row["document"])}</b></div>'
        f'<div class="mf-passage" tabindex="0" role="group" aria-label="{escape(t("questions_passage"))}">'
        f"{escape(row['passage'])}</div>{gone}</div>"
    )


def _keep(name: str, row: Row, fields: Mapping[str, str], state: str = "") -> None:
    """What stands in these fields' widgets, where that is news, and what was decided."""
    said = {field: st.session_state[widget].strip() for field, widget in fields.items()}
    news = {field: words for field, words in said.items() if words != row[field]}
    if changes := {**news, **({"state": state} if state else {})}:
        attempt(partial(client().change_question, name, row["id"], **changes))


def _look() -> None:
    """Who may only read keeps nothing."""


# ---- all of them ----


def _whole(name: str, n_accepted: int, writable: bool, evaluate: Callable[[str, bytes], None]) -> None:
    with st.container(horizontal=True, vertical_alignment="center", key="questions_whole"):
        if n_accepted:
            whole = client().question_set(name)
            label = t("questions_evaluate", n=n_accepted)
            if st.button(label, key="questions_evaluate", type="primary", icon=":material/monitoring:"):
                evaluate(name, whole)
                st.rerun()
            st.download_button(
                t("questions_download"), whole, f"{name}.jsonl", "application/jsonl",
                key="questions_download", icon=":material/download:", on_click="ignore",
            )  # fmt: skip
        if writable:
            with st.popover(t("delete"), icon=":material/delete:", key="questions_delete"):
                st.write(t("questions_delete_text"))
                st.button(
                    t("delete_sure"), key="questions_delete_sure", type="primary",
                    on_click=attempt, args=(partial(client().forget_questions, name),),
                )  # fmt: skip
