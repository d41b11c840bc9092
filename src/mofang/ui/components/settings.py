"""How a conversation is answered: model, knowledge bases, tools, persona, system prompt, sampling. Kept with it.

Before a conversation exists, the choices are a draft in this visitor's session; the first question turns them into the
conversation's own.
"""

from functools import partial
from typing import Any, Final

import streamlit as st

from mofang.errors import MofangError
from mofang.ui.components import personas, tools
from mofang.ui.components.base import attempt, flash, plain, quiet
from mofang.ui.session import client, t

DEFAULT: Final = {
    "temperature": 0.7,
    "top_p": 0.9,
    "top_k": 40,
    "min_p": 0.05,
    "repeat_penalty": 1.05,
    "max_tokens": 2048,
}
"""What a conversation begins with: the gateway's preset "balanced"."""
OWN_FIELDS: Final = ("max_tokens", "seed")
"""Of the sampling, what no preset decides."""
RANGES: Final[dict[str, tuple[float, float, float]]] = {
    "temperature": (0.0, 2.0, 0.05),
    "top_p": (0.0, 1.0, 0.01),
    "top_k": (0, 200, 1),
    "min_p": (0.0, 0.5, 0.01),
    "repeat_penalty": (1.0, 2.0, 0.01),
}

Conversation = dict[str, Any]
BLANK: Final[Conversation] = {
    "system": "",
    "prefix": "",
    "greeting": "",
    "persona": None,
    "knowledge": [],
    "tools": [],
    "beside": "",
}
"""What of a draft does not outlive it."""


def draft() -> Conversation:
    """The conversation that does not exist yet."""
    fresh = {"id": None, "model": "auto", "sampling": dict(DEFAULT), "messages": [], **BLANK}
    shape: Conversation = st.session_state.setdefault("draft", fresh)
    return shape


def begin_anew() -> None:
    """The draft has become a conversation: the next one keeps its model and sampling, not its prompt and documents."""
    draft().update(BLANK)
    _renew("new")


def take_persona(persona: dict[str, Any] | None) -> None:
    """The draft is spoken by this persona from now on; None: by nobody in particular."""
    chosen = persona or {}
    fields = {"persona": chosen.get("id"), "system": chosen.get("system", ""), "greeting": chosen.get("greeting", "")}
    if chosen.get("sampling"):
        fields["sampling"] = {**DEFAULT, **chosen["sampling"]}
    if chosen.get("model", "auto") != "auto":
        fields["model"] = chosen["model"]
    draft().update(fields)
    _renew("new")


def _round(own: str) -> int:
    """A closed popover does not build its widgets in the browser, so a value set through the session would be missed:
    every widget gets its value as an argument, and what changes values makes new widgets, the round in their keys."""
    return int(st.session_state.setdefault(f"settings_round_{own}", 0))


def _renew(own: str) -> None:
    st.session_state[f"settings_round_{own}"] = _round(own) + 1


def sampling_of(conversation: Conversation) -> dict[str, Any]:
    return {**DEFAULT, **(conversation.get("sampling") or {})}


def preset_of(sampling: dict[str, Any], presets: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The preset that this sampling is; None when somebody chose their own."""
    chosen = {field: value for field, value in sampling.items() if field not in OWN_FIELDS}
    for preset in presets:
        wanted = {**{field: value for field, value in DEFAULT.items() if field not in OWN_FIELDS}, **preset["sampling"]}
        wanted = {field: value for field, value in wanted.items() if field not in OWN_FIELDS}
        if wanted.keys() == chosen.keys() and all(_same(chosen[field], value) for field, value in wanted.items()):
            return preset
    return None


def _same(one: Any, other: Any) -> bool:
    numbers = isinstance(one, int | float) and isinstance(other, int | float)
    return abs(one - other) < 1e-9 if numbers else bool(one == other)


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
    """One row above the conversation: model, knowledge, tools, settings."""
    own = conversation["id"] or "new"
    with st.container(horizontal=True, vertical_alignment="center", gap="small", key="chat_bar"):
        _model(conversation, models, own)
        if conversation["id"] is None:
            personas.choose(draft().get("persona"), take_persona)
        if bases:
            _knowledge(conversation, bases, own)
        tools.choose(conversation.get("tools") or [], own, lambda names: change(conversation, tools=names))
        with (
            st.popover(t("settings"), icon=":material/tune:", key=f"settings_{own}"),
            st.container(key="settings_body"),
        ):
            _beside(conversation, models, own)
            _system(conversation, own)
            _prefix(conversation, own)
            _sampling(conversation, own)


def _model(conversation: Conversation, models: list[dict[str, Any]], own: str) -> None:
    loaded = {model["id"] for model in models if model.get("loaded")}
    names = ["auto", *(model["id"] for model in models)]
    current = conversation.get("model") or "auto"
    if current not in names:
        names.append(current)
    key = _key("model", own)

    labels = {name: f"{name} · {t('loaded')}" if name in loaded else name for name in names} | {"auto": t("model_auto")}
    st.selectbox(
        t("model"),
        names,
        index=names.index(current),
        format_func=labels.__getitem__,
        key=key,
        label_visibility="collapsed",
        on_change=lambda: change(conversation, model=st.session_state[key]),
        width=230,
    )


def _beside(conversation: Conversation, models: list[dict[str, Any]], own: str) -> None:
    """The second model, which answers every question beside the first."""
    current = conversation.get("beside") or ""
    names = ["", *(model["id"] for model in models)]
    if current not in names:
        names.append(current)
    key = _key("beside", own)
    labels = {name: name or t("beside_nobody") for name in names}
    st.selectbox(
        t("beside"),
        names,
        index=names.index(current),
        format_func=labels.__getitem__,
        key=key,
        on_change=lambda: change(conversation, beside=st.session_state[key]),
        help=t("beside_help"),
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


def _key(name: str, own: str) -> str:
    turn = _round(own)
    return f"{name}_{own}_{turn}" if turn else f"{name}_{own}"


def _prefix(conversation: Conversation, own: str) -> None:
    key = _key("prefix", own)
    st.text_input(
        t("prefix"),
        value=conversation.get("prefix") or "",
        placeholder=t("prefix_placeholder"),
        key=key,
        on_change=lambda: change(conversation, prefix=st.session_state[key]),
        help=t("prefix_help"),
    )


def _system(conversation: Conversation, own: str) -> None:
    key = _key("system", own)
    st.text_area(
        t("system_prompt"),
        value=conversation.get("system") or "",
        placeholder=t("system_placeholder"),
        key=key,
        height=96,
        on_change=lambda: change(conversation, system=st.session_state[key]),
    )


def _sampling(conversation: Conversation, own: str) -> None:
    values = sampling_of(conversation)
    presets = client().presets()
    by_id = {preset["id"]: preset for preset in presets}
    preset = preset_of(values, presets)
    current = preset["id"] if preset else None
    turn = _round(own)
    pills = f"preset_{own}_{turn}_{current}"
    key = {field: f"{field}_{own}_{turn}" for field in (*RANGES, "max_tokens", "seed")}

    def store(**fields: Any) -> None:
        merged = {**values, **fields}
        change(conversation, sampling={name: value for name, value in merged.items() if value is not None})

    def take_preset() -> None:
        if chosen := st.session_state[pills]:
            _renew(own)
            kept = {field: values[field] for field in OWN_FIELDS if values.get(field) is not None}
            change(conversation, sampling={**kept, **by_id[chosen]["sampling"]})

    def take() -> None:
        store(**{field: st.session_state[name] for field, name in key.items()})

    st.pills(
        t("presets"),
        list(by_id),
        default=current,
        format_func={name: plain(one["name"]) for name, one in by_id.items()}.__getitem__,
        key=pills,
        on_change=take_preset,
    )
    _keep_preset(preset, values, own)
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


def _keep_preset(preset: dict[str, Any] | None, values: dict[str, Any], own: str) -> None:
    """What nobody has named yet gets a name; what somebody named can be put away."""
    if preset and preset["builtin"]:
        return
    if preset:
        st.button(
            t("preset_delete", name=plain(preset["name"])),
            key=f"preset_delete_{own}",
            icon=":material/delete:",
            type="tertiary",
            on_click=attempt,
            args=(partial(client().delete_preset, preset["id"]),),
        )
        return
    key = f"preset_name_{own}"

    def keep() -> None:
        if name := st.session_state[key].strip():
            chosen = {field: value for field, value in values.items() if field not in OWN_FIELDS}
            attempt(partial(client().create_preset, name, chosen))
            st.session_state[key] = ""

    st.text_input(t("preset_keep"), placeholder=t("preset_keep_placeholder"), key=key, max_chars=100, on_change=keep)
