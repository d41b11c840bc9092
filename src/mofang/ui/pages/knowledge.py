"""知识库: bases of documents; files in, their state, documents out, and a box that shows what a search finds and why."""

from functools import partial
from html import escape
from typing import Any

import streamlit as st

from mofang.errors import MofangError
from mofang.ui import figures
from mofang.ui.components import jobs
from mofang.ui.components.base import badges, fault, flash, fragment, quiet, show_error, show_fault, show_flash
from mofang.ui.prose import place
from mofang.ui.session import client, language, t

TYPES = [
    *("pdf", "docx", "docm", "xlsx", "xlsm", "pptx", "epub", "txt", "text", "md", "markdown", "html", "htm"),
    *("csv", "tsv", "jsonl", "zip"),
]
"""What the gateway reads: a test compares."""
K = 8
ORDERS = ("fused", "bm25", "dense")
"""What the search test is ordered by: the search itself, or one of its legs alone."""

Base = dict[str, Any]


def page() -> None:
    st.html(f'<div class="mf-head"><h2>{escape(t("page_knowledge"))}</h2><p>{escape(t("knowledge_text"))}</p></div>')
    show_flash()
    bases = client().knowledge()
    with st.container(horizontal=True, vertical_alignment="center", key="base_bar"):
        base = _choose(bases)
        with st.popover(t("create_base"), icon=":material/add:", key="create_base"):
            _create()
    if base is None:
        st.html(f'<div class="mf-hero"><h3>{escape(t("no_base_title"))}</h3><p>{escape(t("no_base_text"))}</p></div>')
        return
    _facts(base)
    documents, search = st.tabs([t("documents_n", n=base.get("n_documents") or 0), t("search_test")])
    writable = base.get("writable", True)
    with documents:
        if writable:
            _upload(base["name"])
        else:
            quiet(t("base_read_only"))
        _documents(base["name"], writable)
    with search:
        _search(base["name"])


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
            figures.size(base.get("size_bytes") or 0),
            t("base_since", when=figures.moment(base.get("created_at"))),
        ]
        st.html(f'<div class="mf-figures">{"".join(f"<span>{escape(text)}</span>" for text in facts if text)}</div>')
        if base.get("writable", True):
            with st.popover(t("delete"), icon=":material/delete:", key="delete_base"):
                st.write(t("delete_base_text"))
                st.button(t("delete_sure"), key="delete_base_sure", type="primary", on_click=_remove, args=(name,))


def _remove(name: str) -> None:
    try:
        client().remove_knowledge(name)
    except MofangError as error:
        flash(error)
    else:
        st.query_params.pop("kb", None)
        st.session_state.pop("base", None)


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
        try:
            job = client().add_documents(name, [(file.name, file) for file in files])
        except MofangError as error:
            show_error(error)
            return
        st.session_state[f"ingest_{name}"] = job["id"]
        st.session_state["upload_round"] = generation + 1
        st.rerun()
    running = jobs.running(("ingest",))
    jobs.live(("ingest",), tuple(job["id"] for job in running))
    if (ours := st.session_state.get(f"ingest_{name}")) and ours not in {job["id"] for job in running}:
        _report(name, ours)


def _report(name: str, job_id: str) -> None:
    """What the last upload did, file by file, until it is put away."""
    try:
        job = client().job(job_id)
    except MofangError as error:
        show_error(error)
        st.session_state.pop(f"ingest_{name}", None)
        return
    if job["status"] == "error":
        show_fault(job.get("error"))
    for file in (job.get("result") or {}).get("files", []):
        if file["status"] == "failed":
            fault(
                t("file_failed", name=file["name"], why=file.get("error") or t("unknown_error")), file.get("hint") or ""
            )
        else:
            state = badges((t(f"file_{file['status']}"), "good"))
            chunks = t("chunks_n", n=file["n_chunks"]) if file.get("n_chunks") else ""
            st.html(
                f'<div class="mf-file">{state}<span>{escape(file["name"])}</span>'
                f'<span class="mf-quiet">{escape(chunks)}</span></div>'
            )
            for note in file.get("notes") or ():
                quiet(note)
    st.button(
        t("dismiss"),
        key=f"report_{job_id}",
        type="tertiary",
        on_click=st.session_state.pop,
        args=(f"ingest_{name}", None),
    )


def _documents(name: str, writable: bool) -> None:
    documents = client().documents(name)
    if not documents:
        quiet(t("no_documents"))
    for document in documents:
        own = document["id"]
        with st.container(border=True, horizontal=True, vertical_alignment="center", key=f"doc_{own}"):
            facts = [
                t("pages_n", n=document["n_pages"]) if document.get("n_pages") else "",
                t("chars_n", n=f"{document.get('n_chars') or 0:,}"),
                t("chunks_n", n=document.get("n_chunks") or 0),
                figures.size(document.get("size_bytes") or 0),
                figures.moment(document.get("added_at")),
            ]
            notes = "".join(f'<div class="mf-hint">{escape(note)}</div>' for note in document.get("notes") or ())
            title = document.get("title") or ""
            more = f'<span class="mf-quiet">{escape(title)}</span>' if title and title != document["name"] else ""
            st.html(
                f'<div class="mf-card"><b>{escape(document["name"])}</b>{more}</div>'
                f'<div class="mf-figures">{"".join(f"<span>{escape(text)}</span>" for text in facts if text)}</div>{notes}'
            )
            if not writable:
                continue
            with st.popover(t("delete"), icon=":material/delete:", key=f"doc_delete_{own}"):
                st.write(t("delete_document_text"))
                st.button(
                    t("delete_sure"),
                    key=f"doc_sure_{own}",
                    type="primary",
                    on_click=_try,
                    args=(partial(client().remove_document, name, own),),
                )


def _try(call: partial[None]) -> None:
    try:
        call()
    except MofangError as error:
        flash(error)


# ---- search ----


def _found(name: str, query: str, order: str) -> list[dict[str, Any]]:
    """The K best of the search itself, or of one of its legs: the leg's own ranking, as evaluations judge it."""
    if order == ORDERS[0]:
        return client().search([name], query, K)
    found = [hit for hit in client().search([name], query, None) if hit.get(f"{order}_rank")]
    return sorted(found, key=lambda hit: int(hit[f"{order}_rank"]))[:K]


@fragment()
def _search(name: str) -> None:
    query = st.text_input(t("search_label"), placeholder=t("search_placeholder"), key=f"query_{name}", max_chars=4096)
    quiet(t("search_help"))
    if not query.strip():
        return
    order = st.segmented_control(
        t("search_order"), ORDERS, default=ORDERS[0], format_func=lambda one: t(f"order_{one}"), key=f"order_{name}"
    )
    hits = _found(name, query.strip(), order or ORDERS[0])
    if not hits:
        quiet(t("nothing_found"))
    for rank, hit in enumerate(hits, 1):
        legs = badges(
            (
                t("leg_words", n=hit["bm25_rank"]) if hit.get("bm25_rank") else t("leg_words_none"),
                "good" if hit.get("bm25_rank") else "",
            ),
            (
                t("leg_meaning", n=hit["dense_rank"]) if hit.get("dense_rank") else t("leg_meaning_none"),
                "good" if hit.get("dense_rank") else "",
            ),
            (t("cosine", n=f"{hit['cosine']:.3f}") if hit.get("cosine") is not None else "", ""),
            (t("fused", n=f"{hit['score']:.4f}"), ""),
        )
        st.html(
            f'<div class="mf-hit"><div class="mf-card"><span class="mf-n">{rank}</span><b>{escape(hit["title"])}</b>'
            f'<span class="mf-quiet">{escape(place(hit, language()))}</span></div>'
            f'<div class="mf-legs">{legs}</div><div class="mf-passage">{escape(hit["text"].strip())}</div></div>'
        )
