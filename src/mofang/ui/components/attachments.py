"""Files that go with a question: sent to the gateway, named beside the question with their tokens, kept when it is edited.

Streamlit tells of files only when the question is sent; how many tokens they are, the answer's model says.
"""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any, Final

import streamlit as st

from mofang.errors import MofangError
from mofang.ui.components.base import fragment, plain
from mofang.ui.session import client, link_params, t, watches
from mofang.ui.tree import Message, words_of

LOOK_S: Final = 0.5
UNSENT_S: Final = 86_400
"""How long the gateway keeps a file whose question never came."""
Ref = dict[str, str]
"""{"file_id", "filename"}: a file as turns refer to it."""
Counted = Mapping[str, Any]
"""{"file_id", "filename", "tokens", "notes"}: a file as an answer's model read it."""


def send(files: Iterable[Any]) -> tuple[list[Ref], list[MofangError]]:
    """What the gateway took and can read, and why not the others; one that is a Ref already is passed on."""
    refs: list[Ref] = []
    faults: list[MofangError] = []
    for file in files:
        try:
            refs.append(file if isinstance(file, dict) else _send(file))
        except MofangError as error:
            faults.append(error)
    return refs, faults


def _send(file: Any) -> Ref:
    with st.spinner(t("attached_reading", name=plain(file.name))):
        kept = client().add_file(file.name, file.getvalue(), expires_in_s=UNSENT_S)
        try:
            client().file_reading(kept["id"])
        except MofangError:
            client().delete_file(kept["id"])
            raise
    return {"file_id": kept["id"], "filename": kept["filename"]}


def content(text: str, refs: Sequence[Ref]) -> str | list[dict[str, Any]]:
    """A turn's content: the files first, then what is asked about them."""
    if not refs:
        return text
    words = [{"type": "text", "text": text}] if text.strip() else []
    return [*({"type": "file", "file": ref} for ref in refs), *words]


def title_of(refs: Sequence[Ref]) -> str:
    return refs[0]["filename"] if refs else ""


def refs_of(message: Mapping[str, Any]) -> list[Ref]:
    parts = message.get("content")
    listed = parts if isinstance(parts, list) else []
    return [part["file"] for part in listed if part.get("type") == "file"]


# ---- shown ----


def question(conversation: Mapping[str, Any], message: Message) -> None:
    """What was asked, below the files that it is about."""
    if refs := refs_of(message):
        running = _answering(conversation, message["id"])
        known = counted(file for one in conversation["messages"] for file in one.get("files") or ())
        if running and any(ref["file_id"] not in known for ref in refs):
            _counting(refs, running)
        else:
            chips(refs, known)
    if text := words_of(message):
        st.html(f'<div class="mf-user">{escape(text)}</div>')


def unsent(text: str, refs: Sequence[Ref]) -> None:
    """A question that the gateway did not take."""
    if refs:
        chips(refs, {})
    if text:
        st.html(f'<div class="mf-user">{escape(text)}</div>')


def chips(refs: Sequence[Ref], known: Mapping[str, Counted]) -> None:
    """The names, with tokens where they are counted; below them what a person should know of how they were read."""
    told = [(_name(ref), known.get(ref["file_id"]) or {}) for ref in refs]
    shown = "".join(f'<span class="mf-attached">{escape(_label(name, found))}</span>' for name, found in told)
    notes = [f"{name}: {note}" for name, found in told for note in found.get("notes") or ()]
    below = "".join(f'<div class="mf-quiet">{escape(note)}</div>' for note in notes)
    st.html(f'<div class="mf-files" role="group" aria-label="{escape(t("attached"))}">{shown}{below}</div>')


def _name(ref: Ref) -> str:
    return str(ref.get("filename") or ref["file_id"])


def _label(name: str, found: Counted) -> str:
    tokens = found.get("tokens")
    return name if tokens is None else t("attached_tokens", name=name, n=f"{tokens:,}")


def counted(files: Iterable[Counted]) -> dict[str, Counted]:
    """By id; of those that several answers counted, as the latest did."""
    return {str(file["file_id"]): file for file in files}


def _answering(conversation: Mapping[str, Any], turn: str) -> str | None:
    """The generation under way that answers a turn."""
    for message in conversation["messages"]:
        if message.get("parent_id") == turn and message["status"] in ("queued", "running"):
            return str(message["generation_id"])
    return None


@fragment(run_every=LOOK_S)
def _counting(refs: Sequence[Ref], running: str) -> None:
    chips(refs, counted(watches().of(client(), running).answer().files))


# ---- changed ----


def kept(message: Message) -> list[Ref]:
    """In a question's editor: which of its files stay."""
    refs = refs_of(message)
    if not refs or message["role"] != "user":
        return refs
    names = {ref["file_id"]: plain(_name(ref)) for ref in refs}
    chosen = st.pills(
        t("attached_keep"),
        list(names),
        selection_mode="multi",
        default=list(names),
        format_func=names.__getitem__,
        key=f"attached_keep_{message['id']}",
    )
    return [ref for ref in refs if ref["file_id"] in (chosen or ())]


def way_out(fault: Mapping[str, Any] | None, key: str) -> None:
    """Where files are too long for a conversation: the place that takes them."""
    if (fault or {}).get("code") != "files_too_long":
        return
    if st.button(t("go_knowledge"), key=f"go_knowledge_{key}", icon=":material/menu_book:"):
        st.switch_page(st.session_state["pages"]["knowledge"], query_params=link_params())
