"""A question to the gateway that may take its time (a model may have to be loaded), asked in a thread: the page stays
awake, and looks again until the answer is there. The same question is not asked twice."""

from collections.abc import Callable, Hashable
from html import escape
from typing import Any, Final, TypeVar

import streamlit as st

from mofang.ui.components.base import fault, fragment, quiet, show_error
from mofang.ui.session import link_params, t
from mofang.ui.watch import Task

SOON_S: Final = 0.25
"""An answer within it needs no second look; a click never waits longer."""
LOOK_S: Final = 0.4

T = TypeVar("T")


def ask(slot: str, question: Hashable, call: Callable[[], T]) -> T | None:
    """The answer of `call` to `question`; None while it is not there, which is shown, and so is what went wrong.

    `slot` is the place on the page: it has one question at a time.
    """
    slots: dict[str, tuple[Hashable, Task]] = st.session_state.setdefault("asked", {})
    if slot not in slots or slots[slot][0] != question:
        slots[slot] = question, Task(call)
        slots[slot][1].settle(SOON_S)
    task = slots[slot][1]
    if task.is_running:
        _look(slot)
        return None
    if task.error is None and task.result is not None:
        answer: T = task.result
        return answer
    if task.error:
        show_error(task.error)
    else:
        fault(t("unknown_error"))
    st.button(t("again_ask"), key=f"again_{slot}", icon=":material/refresh:", on_click=slots.pop, args=(slot,))
    return None


@fragment(run_every=LOOK_S)
def _look(slot: str) -> None:
    _, task = st.session_state["asked"].get(slot, (None, None))
    if task is None or not task.is_running:
        st.rerun()
    st.html(f'<div class="mf-state" role="status"><i></i>{escape(t("asking"))}</div>')


def keep(key: str, default: Any) -> str:
    """The key of a widget whose value outlives a walk to another page. `default` before the first, and again where
    nobody changed it: an example follows the language."""
    kept: dict[str, tuple[Any, Any]] = st.session_state.setdefault("kept", {})
    held, was = kept.get(key, (default, default))
    value = st.session_state.get(key, held)
    if value == was:
        value = default
    kept[key] = value, default
    if key not in st.session_state or st.session_state[key] != value:
        st.session_state[key] = value
    return key


def model_of(
    models: list[dict[str, Any]], kinds: tuple[str, ...], key: str, *, label: str = "", place: int = 0
) -> str | None:
    """The model to ask, of these kinds: those in memory first. None where there is none: it is said how to get one."""
    usable = [one for one in models if one["kind"] in kinds and one.get("runnable", True)]
    usable.sort(key=lambda one: not one.get("loaded"))
    names = [one["id"] for one in usable]
    if not names:
        no_model(kinds, key)
        return None
    loaded = {one["id"] for one in usable if one.get("loaded")}
    labels = {name: f"{name} · {t('loaded')}" if name in loaded else name for name in names}
    held = st.session_state.get(key) or st.session_state.get("kept", {}).get(key, (None,))[0]
    if held not in names:
        st.session_state.get("kept", {}).pop(key, None)
        held = st.session_state[key] = names[min(place, len(names) - 1)]
    chosen = st.selectbox(label or t("model"), names, key=keep(key, held), format_func=labels.__getitem__)
    return str(chosen)


def no_model(kinds: tuple[str, ...], key: str) -> None:
    quiet(t("lens_no_embedder" if kinds == EMBEDDERS else "lens_no_model"))
    if st.button(t("go_models"), key=f"go_{key}", icon=":material/deployed_code:"):
        st.switch_page(st.session_state["pages"]["models"], query_params=link_params())


WRITERS: Final = ("chat", "base")
EMBEDDERS: Final = ("embedding",)
