"""知识库: bases of documents; files in, their state, documents out, and a box that shows what a search finds and why."""

import unicodedata
from collections import Counter
from collections.abc import Sequence
from functools import partial
from html import escape
from pathlib import PurePosixPath
from typing import Any, Final

import streamlit as st

from mofang.errors import MofangError
from mofang.ui import figures
from mofang.ui.components import document, evaluation, jobs, questions
from mofang.ui.components.base import attempt, badges, fault, flash, quiet, show_error, show_fault, show_flash
from mofang.ui.components.search import search
from mofang.ui.session import client, t, t_or

TYPES = [
    *("pdf", "docx", "docm", "xlsx", "xlsm", "pptx", "epub", "txt", "text", "md", "markdown", "html", "htm"),
    *("csv", "tsv", "jsonl", "zip"),
]
"""What the gateway reads: a test compares."""
ARCHIVE: Final = "zip"
SHOWN: Final = 50
"""Documents, and files of a report, that are listed at a time: a list of thousands would hold up every click."""
TONES: Final = {"added": "good", "replaced": "good", "failed": "bad"}
"""A file's state after an ingest → the colour of its label."""

Base = dict[str, Any]


def page() -> None:
    st.html(f'<div class="mf-head"><h2>{escape(t("page_knowledge"))}</h2><p>{escape(t("knowledge_text"))}</p></div>')
    show_flash()
    document.show()
    bases = client().knowledge()
    with st.container(horizontal=True, vertical_alignment="center", key="base_bar"):
        base = _choose(bases)
        with st.popover(t("create_base"), icon=":material/add:", key="create_base"):
            _create()
    if base is None:
        st.html(f'<div class="mf-hero"><h3>{escape(t("no_base_title"))}</h3><p>{escape(t("no_base_text"))}</p></div>')
        return
    _facts(base)
    with st.container(key="under_way"):  # a place of its own: the tabs below stay, and with them the one that is open
        _under_way(base["name"])
    documents, test, measured = st.tabs(
        [t("documents_n", n=base.get("n_documents") or 0), t("search_test"), t("evaluation")]
    )
    writable = base.get("writable", True)
    with documents:
        if writable:
            _upload(base["name"])
        else:
            quiet(t("base_read_only"))
        _documents(base["name"], writable)
    with test:
        search(base["name"], [kind for kind in TYPES if kind != ARCHIVE])
    with measured:
        evaluation.ask(base["name"], writable)


def _choose(bases: list[Base]) -> Base | None:
    if not bases:
        return None
    names = {base["name"]: base for base in bases}
    wanted = st.query_params.get("kb")
    chosen = st.selectbox(
        t("base"),
        list(names),
        index=list(names).index(wanted) if wanted in names else 0,
        format_func=lambda name: names[name].get("title") or name,
        key="base",
        label_visibility="collapsed",
        width=300,
    )
    st.query_params["kb"] = chosen
    return names[chosen]


def _create() -> None:
    with st.form("create_base_form", border=False, clear_on_submit=False):
        name = st.text_input(t("base_name"), max_chars=128, key="base_name", help=t("base_name_help"))
        title = st.text_input(t("base_title"), max_chars=200, key="base_title")
        if st.form_submit_button(t("create"), type="primary") and name.strip():
            try:
                client().create_knowledge(name.strip(), **({"title": title.strip()} if title.strip() else {}))
            except MofangError as error:
                show_error(error)
            else:
                st.query_params["kb"] = name.strip()
                st.session_state.pop("base", None)
                st.rerun()


def _facts(base: Base) -> None:
    name = base["name"]
    with st.container(horizontal=True, vertical_alignment="center", key="base_facts"):
        facts = [
            t("base_chunks", n=base.get("n_chunks") or 0),
            t("base_embedder", name=base["embedding_model"]) if base.get("embedding_model") else "",
            t("base_store", name=t_or(f"store_{base['store']}", base["store"])) if base.get("store") else "",
            figures.size(base.get("size_bytes") or 0),
            t("base_since", when=figures.moment(base.get("created_at"))),
        ]
        st.html(f'<div class="mf-figures">{"".join(f"<span>{escape(text)}</span>" for text in facts if text)}</div>')
        if base.get("writable", True):
            with st.popover(t("rebuild"), icon=":material/database_upload:", key="rebuild_base"):
                st.write(t("rebuild_text"))
                st.button(t("rebuild_start"), key="rebuild_start", type="primary", on_click=_rebuild, args=(name,))
            with st.popover(t("delete"), icon=":material/delete:", key="delete_base"):
                st.write(t("delete_base_text"))
                st.button(t("delete_sure"), key="delete_base_sure", type="primary", on_click=_remove, args=(name,))


def _rebuild(name: str) -> None:
    try:
        st.session_state[f"rebuild_{name}"] = client().rebuild_knowledge(name)["id"]
    except MofangError as error:
        flash(error)


def _remove(name: str) -> None:
    try:
        client().remove_knowledge(name)
    except MofangError as error:
        flash(error)
    else:
        st.query_params.pop("kb", None)
        st.session_state.pop("base", None)


# ---- jobs ----


def _under_way(name: str) -> None:
    """The jobs that run, and what the last ones of this base and this visitor came to, until they are put away."""
    running = jobs.under_way(tuple(REPORTS))
    jobs.live(tuple(REPORTS), tuple(job["id"] for job in running))
    for kind, report in REPORTS.items():
        ours = st.session_state.get(f"{kind}_{name}")
        if not ours or ours in {job["id"] for job in running}:
            continue
        try:
            job = client().job(ours)
        except MofangError as error:
            show_error(error)
            job = {"status": "gone"}
        with st.container(key=f"report_{kind}"):
            if job["status"] == "error":
                show_fault(job.get("error"))
            elif job["status"] == "stopped":
                quiet(t("job_was_stopped"))
            if result := job.get("result"):
                report(result)
            with st.container(horizontal=True, vertical_alignment="center", key=f"after_{kind}"):
                sent = st.session_state.get(f"sent_{kind}_{name}", ())
                if again := to_retry(sent, job):
                    label = t("retry_n", n=len(again))
                    st.button(label, key=f"retry_{ours}", icon=":material/refresh:", on_click=_send, args=(name, again))
                st.button(t("dismiss"), key=f"dismiss_{ours}", type="tertiary", on_click=_put_away, args=(name, kind))


def _put_away(name: str, kind: str) -> None:
    for key in (f"{kind}_{name}", f"sent_{kind}_{name}"):
        st.session_state.pop(key, None)


def _rebuilt(result: dict[str, Any]) -> None:
    st.html(
        f'<div class="mf-file">{badges((t("rebuilt"), "good"))}'
        f"<span>{escape(t('chunks_n', n=result['n_chunks']))}</span></div>"
    )


def _ingested(result: dict[str, Any]) -> None:
    """What became of each file: what failed with the reason and the way out first, then the others."""
    files = result["files"]
    counts = Counter(file["status"] for file in files)
    if len(files) > 1:
        told = [(f"{t(f'state_{state}')} {n}", TONES.get(state, "")) for state, n in counts.items()]
        st.html(f'<div class="mf-legs">{badges(*told)}</div>')
    failed = [file for file in files if file["status"] == "failed"]
    for file in failed[:SHOWN]:
        why = file.get("error") or t("unknown_error")
        fault(why if file["name"] in why else t("file_failed", name=file["name"], why=why), file.get("hint") or "")
    others = [file for file in files if file["status"] != "failed"]
    if others:
        st.html("".join(_line(file) for file in others[:SHOWN]))
    if left := len(failed[SHOWN:]) + len(others[SHOWN:]):
        quiet(t("files_more", n=left))


def _line(file: dict[str, Any]) -> str:
    chunks = t("chunks_n", n=file["n_chunks"]) if file.get("n_chunks") else ""
    notes = "".join(f'<div class="mf-hint">{escape(note)}</div>' for note in file.get("notes") or ())
    state = badges((t(f"state_{file['status']}"), TONES.get(file["status"], "")))
    return (
        f'<div class="mf-file">{state}<span>{escape(file["name"])}</span>'
        f'<span class="mf-quiet">{escape(chunks)}</span></div>{notes}'
    )


def to_retry(sent: Sequence[Any], job: dict[str, Any]) -> Sequence[Any]:
    """The files of an upload that may go in when sent once more: the failed ones, and archives where a file of theirs
    failed (what went in already is passed over); all of them where the job itself came to nothing."""
    if not sent or job["status"] != "done":
        return sent
    failed = {file["name"] for file in job["result"]["files"] if file["status"] == "failed"}
    names = {unicodedata.normalize("NFC", file.name): file for file in sent}
    inside = bool(failed - names.keys())
    return [file for own, file in names.items() if own in failed or (inside and own.lower().endswith(f".{ARCHIVE}"))]


REPORTS: Final = {
    "ingest": _ingested,
    "rebuild": _rebuilt,
    "evaluate": evaluation.result,
    "questions": questions.report,
}
"""A kind of job → what shows its result."""


# ---- documents ----


def _upload(name: str) -> None:
    generation = st.session_state.setdefault("upload_round", 0)
    files = st.file_uploader(
        t("upload_label"),
        type=TYPES,
        accept_multiple_files=True,
        key=f"files_{name}_{generation}",
    )
    if files and st.button(t("upload_n", n=len(files)), key="upload", type="primary", icon=":material/upload:"):
        _send(name, files)
        st.rerun()


def _send(name: str, files: Sequence[Any]) -> None:
    """The uploaded files are kept in this visit until the report is put away: some may have to be sent again."""
    for file in files:
        file.seek(0)
    try:
        job = client().add_documents(name, [(file.name, file) for file in files])
    except MofangError as error:
        flash(error)
        return
    st.session_state[f"ingest_{name}"] = job["id"]
    st.session_state[f"sent_ingest_{name}"] = list(files)
    st.session_state["upload_round"] += 1


def _documents(name: str, writable: bool) -> None:
    documents = client().documents(name)
    if not documents:
        quiet(t("no_documents"))
    if len(documents) > SHOWN:
        wanted = st.text_input(t("find_document"), key=f"find_{name}", icon=":material/search:").strip().casefold()
        documents = [one for one in documents if wanted in one["name"].casefold()]
        if len(documents) > SHOWN or not documents:
            quiet(t("documents_shown", shown=min(SHOWN, len(documents)), n=len(documents)))
    for one in documents[:SHOWN]:
        own = one["id"]
        with st.container(border=True, horizontal=True, vertical_alignment="center", key=f"doc_{own}"):
            facts = [
                t("pages_n", n=one["n_pages"]) if one.get("n_pages") else "",
                t("chars_n", n=f"{one.get('n_chars') or 0:,}"),
                t("chunks_n", n=one.get("n_chunks") or 0),
                figures.size(one.get("size_bytes") or 0),
                figures.moment(one.get("added_at")),
            ]
            notes = "".join(f'<div class="mf-hint">{escape(note)}</div>' for note in one.get("notes") or ())
            title = one.get("title") or ""
            said = title in ("", one["name"], PurePosixPath(one["name"]).stem)
            more = "" if said else f'<span class="mf-quiet">{escape(title)}</span>'
            st.html(
                f'<div class="mf-card"><b>{escape(one["name"])}</b>{more}</div>'
                f'<div class="mf-figures">{"".join(f"<span>{escape(text)}</span>" for text in facts if text)}</div>{notes}'
            )
            st.button(
                t("open_document"),
                key=f"doc_view_{own}",
                icon=":material/find_in_page:",
                help=t("open_document"),
                on_click=document.open_now,
                args=({"knowledge": name, "document_id": own, "start": 0, "end": 0},),
            )
            if not writable:
                continue
            with st.popover(t("delete"), icon=":material/delete:", key=f"doc_delete_{own}"):
                st.write(t("delete_document_text"))
                st.button(
                    t("delete_sure"),
                    key=f"doc_sure_{own}",
                    type="primary",
                    on_click=attempt,
                    args=(partial(client().remove_document, name, own),),
                )
