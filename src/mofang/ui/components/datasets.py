"""Files of examples or text at the gateway: chosen by name, or brought there first."""

from collections.abc import Sequence

import streamlit as st

from mofang.errors import MofangError
from mofang.ui.components.base import show_fault
from mofang.ui.session import client, language


def choose(key: str, types: Sequence[str], *, label: str, placeholder: str, upload: str) -> tuple[list[str], list[str]]:
    """(those chosen, all that there are of these types), by their names. `key` is the place on the page, and begins the
    keys of its widgets; the other words are what they say."""
    suffixes = tuple(f".{kind}" for kind in types)
    names = [file["name"] for file in client().datasets() if file["name"].lower().endswith(suffixes)]
    turn = st.session_state.setdefault(f"{key}_upload_round", 0)
    if fresh := st.session_state.pop(f"{key}_fresh", None):
        kept = [name for name in st.session_state.get(f"{key}_data", ()) if name in names]
        st.session_state[f"{key}_data"] = [*kept, *(name for name in fresh if name in names and name not in kept)]
    chosen = []
    if names:
        chosen = st.multiselect(label, names, key=f"{key}_data", placeholder=placeholder, select_all=False)
    st.file_uploader(
        upload,
        type=list(types),
        accept_multiple_files=True,
        key=f"{key}_files_{turn}",
        on_change=_upload,
        args=(key, turn),
    )
    if shape := st.session_state.get(f"{key}_upload_fault"):
        show_fault(shape)
    return list(chosen), names


def uploads(key: str) -> int:
    """How many times something was brought: a file may have been replaced by one of the same name."""
    return int(st.session_state.get(f"{key}_upload_round", 0))


def _upload(key: str, turn: int) -> None:
    """Bring the files that were just chosen; a broken row is told until the next try."""
    files = st.session_state.get(f"{key}_files_{turn}") or []
    if not files:
        return
    st.session_state[f"{key}_upload_round"] = turn + 1
    try:
        kept = client().add_datasets([(file.name, file) for file in files])
    except MofangError as error:
        lang = language()
        st.session_state[f"{key}_upload_fault"] = {"message": error.message(lang), "hint": error.hint(lang)}
    else:
        st.session_state.pop(f"{key}_upload_fault", None)
        st.session_state[f"{key}_fresh"] = [file["name"] for file in kept]
