"""How a conversation is answered: model, knowledge bases, system prompt, sampling. Kept with the conversation.

Before a conversation exists, the choices are a draft in this visitor's session; the first question turns them into the
conversation's own.
"""

from typing import Any, Final

import streamlit as st

from mofang.errors import MofangError
from mofang.ui.components.base import flash, plain, quiet
from mofang.ui.session import client, t

PRESETS: Final[dict[str, dict[str, float]]] = {
    "precise": {"temperature": 0.1, "top_p": 0.9, "top_k": 20, "min_p": 0.05, "repeat_penalty": 1.05},
    "balanced": {"temperature": 0.7, "top_p": 0.9, "top_k": 40, "min_p": 0.05, "repeat_penalty": 1.05},
    "creative": {"temperature": 1.1, "top_p": 0.98, "top_k": 100, "min_p": 0.02, "repeat_penalty": 1.1},
}
DEFAULT: Final = {**PRESETS["balanced"], "max_tokens": 2048}
RANGES: Final[dict[str, tuple[float, float, float]]] = {
    "temperature": (0.0, 2.0, 0.05),
    "top_p": (0.0, 1.0, 0.01),
    "top_k": (0, 200, 1),
    "min_p": (0.0, 0.5, 0.01),
    "repeat_penalty": (1.0, 2.0, 0.01),
}

Conversation = dict[str, Any]


def draft() -> Conversation:
    """The conversation that does not exist yet."""
    shape: Conversation = st.session_state.setdefault(
        "draft", {"id": None, "system": "", "model": "auto", "knowledge": [], "sampling": dict(DEFAULT), "messages": []}
    )
    return shape


def begin_anew() -> None:
    """The draft has become a conversation: the next one keeps its model and sampling, not its prompt and documents."""
    draft().update(system="", knowledge=[])


def sampling_of(conversation: Conversation) -> dict[str, Any]:
    return {**DEFAULT, **(conversation.get("sampling") or {})}


def preset_of(sampling: dict[str, Any]) -> str | None:
    """The preset whose every value this sampling has; None when somebody chose their own."""
    for name, values in PRESETS.items():
        if all(abs(sampling[field] - value) < 1e-9 for field, value in values.items()):
            return name
    return None


def change(conversation: Conversation, **fields: Any) -> None:
    """Keep a choice: with the conversation, or in the draft."""
    if conversation["id"] is None:
        draft().update(fields)
        return
    try:
        client().change_conversation(conversation["id"], **fields)
    except MofangError as error:
        flash(error)


def bar(conversation: Conversation, models: list[dict[str, Any]], bases: list[dict[str, Any]]) -> None:
    """One row above the conversation: model, knowledge, settings."""
    own = conversation["id"] or "new"
    with st.container(horizontal=True, vertical_alignment="center", gap="small", key="chat_bar"):
        _model(conversation, models, own)
        if bases:
            _knowledge(conversation, bases, own)
        with (
            st.popover(t("settings"), icon=":material/tune:", key=f"settings_{own}"),
            st.container(key="settings_body"),
        ):
            _system(conversation, own)
            _sampling(conversation, own)


def _model(conversation: Conversation, models: list[dict[str, Any]], own: str) -> None:
    loaded = {model["id"] for model in models if model.get("loaded")}
    names = ["auto", *(model["id"] for model in models)]
    current = conversation.get("model") or "auto"
    if current not in names:
        names.append(current)
    key = f"model_{own}"

    labels = {name: f"{name} · {t('loaded')}" if name in loaded else name for name in names} | {"auto": t("model_auto")}
    st.selectbox(
        t("model"),
        names,
        index=names.index(current),
        format_func=labels.__getitem__,
        key=key,
        label_visibility="collapsed",
        on_change=lambda: change(conversation, model=st.session_state[key]),
        width=260,
    )


def _knowledge(conversation: Conversation, bases: list[dict[str, Any]], own: str) -> None:
    titles = {base["name"]: str(base.get("title") or base["name"]) for base in bases}
    current = [name for name in conversation.get("knowledge") or [] if name in titles]
    key = f"knowledge_{own}"
    label = t("knowledge_off") if not current else "、".join(titles[name] for name in current)
    with (
        st.popover(
            plain(label if len(label) <= 14 else label[:13] + "…"),
            icon=":material/menu_book:",
            key=f"knowledge_pop_{own}",
            type="primary" if current else "secondary",
        ),
        st.container(key="knowledge_body"),
    ):
        st.pills(
            t("knowledge_choose"),
            list(titles),
            selection_mode="multi",
            default=current,
            format_func={name: plain(title) for name, title in titles.items()}.__getitem__,
            key=key,
            on_change=lambda: change(conversation, knowledge=list(st.session_state[key])),
        )
        quiet(t("knowledge_help"))


def _system(conversation: Conversation, own: str) -> None:
    key = f"system_{own}"
    st.text_area(
        t("system_prompt"),
        value=conversation.get("system") or "",
        placeholder=t("system_placeholder"),
        key=key,
        height=96,
        on_change=lambda: change(conversation, system=st.session_state[key]),
    )


def _sampling(conversation: Conversation, own: str) -> None:
    # A closed popover does not build its widgets in the browser, so a value set through the session would be missed:
    # every widget gets its value as an argument, and a preset makes new widgets (the round in their keys).
    values = sampling_of(conversation)
    preset = preset_of(values)
    turn = st.session_state.setdefault(f"sampling_round_{own}", 0)
    key = {field: f"{field}_{own}_{turn}" for field in (*RANGES, "max_tokens", "seed")}

    def store(**fields: Any) -> None:
        merged = {**values, **fields}
        change(conversation, sampling={name: value for name, value in merged.items() if value is not None})

    def take_preset() -> None:
        if chosen := st.session_state[f"preset_{own}_{turn}_{preset}"]:
            st.session_state[f"sampling_round_{own}"] = turn + 1
            store(**PRESETS[chosen])

    def take() -> None:
        store(**{field: st.session_state[name] for field, name in key.items()})

    st.pills(
        t("presets"),
        list(PRESETS),
        default=preset,
        format_func={name: t(f"preset_{name}") for name in PRESETS}.__getitem__,
        key=f"preset_{own}_{turn}_{preset}",
        on_change=take_preset,
    )
    for field, (low, high, step) in RANGES.items():
        kind = type(step)
        st.slider(
            t(field),
            kind(low),
            kind(high),
            kind(values[field]),
            step=step,
            key=key[field],
            on_change=take,
            help=t(f"{field}_help"),
        )
    with st.container(horizontal=True):
        st.number_input(
            t("max_tokens"),
            1,
            131072,
            int(values["max_tokens"]),
            step=256,
            key=key["max_tokens"],
            on_change=take,
            help=t("max_tokens_help"),
        )
        st.number_input(
            t("seed"),
            0,
            2**31 - 1,
            values.get("seed"),
            step=1,
            key=key["seed"],
            on_change=take,
            placeholder=t("seed_random"),
            help=t("seed_help"),
        )
