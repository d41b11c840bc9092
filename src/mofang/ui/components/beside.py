"""Two models answer one question beside each other, and the conversation goes on from either.

Both answers are versions under the same turn; this page only shows the last two of them together. Until somebody
chooses, the conversation's own model is the one that it goes on from.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from html import escape
from typing import Any

import streamlit as st

from mofang.errors import MofangError
from mofang.ui.components.base import attempt, badges, flash
from mofang.ui.session import client, t
from mofang.ui.tree import Message, Turn, path

Conversation = dict[str, Any]


def ask(conversation: Conversation, body: Mapping[str, Any]) -> None:
    """Start the answer, and the second model's under the same turn. Where only the second is refused, that is said."""
    begun = client().generate(body)
    if not conversation.get("beside"):
        return
    parent = begun["user_message_ids"][-1] if begun["user_message_ids"] else body["parent_id"]
    try:
        client().generate({**body, "messages": [], "parent_id": parent, "model": conversation["beside"]})
    except MofangError as error:
        flash(error)


def shown(conversation: Conversation, chosen: dict[str, str]) -> tuple[list[Turn], list[Message]]:
    """The path through the conversation, and the two answers that stand beside each other at its end, if any do."""
    turns = path(conversation["messages"], chosen)
    pair = pair_of(conversation, turns)
    if pair and pair[0]["parent_id"] not in chosen:
        chosen[pair[0]["parent_id"]] = pair[0]["id"]
        turns = path(conversation["messages"], chosen)
    return turns, pair


def pair_of(conversation: Mapping[str, Any], turns: Sequence[Turn]) -> list[Message]:
    """The newest answer of the conversation's own model to the last turn, and the newest of the second model; [] where
    one is missing, or another version is looked at."""
    second = conversation.get("beside")
    last = turns[-1].message if turns else None
    if not second or last is None or last["role"] != "assistant" or not last.get("parent_id"):
        return []
    answers = [
        message
        for message in conversation["messages"]
        if message["role"] == "assistant" and message.get("parent_id") == last["parent_id"]
    ]
    theirs = [message for message in answers if message.get("model") == second]
    own = [message for message in answers if message.get("model") != second]
    pair = [own[-1], theirs[-1]] if own and theirs else theirs[-2:]  # a model may answer beside itself
    return pair if len(pair) == 2 and any(message["id"] == last["id"] for message in pair) else []


def is_running(message: Message) -> bool:
    return message["status"] in ("queued", "running")


def stop(conversation: Conversation, running: str) -> None:
    """End every answer that this conversation is being given."""
    under_way = [str(message["generation_id"]) for message in conversation["messages"] if is_running(message)]
    for generation in dict.fromkeys([*under_way, running]):
        client().stop_generation(generation)


def columns(
    conversation: Conversation,
    pair: Sequence[Message],
    chosen: dict[str, str],
    draw: Callable[[Conversation, Message], None],
) -> None:
    """Each answer under its model's name; `draw` is given the conversation as its model would go on with it."""
    own = {**conversation, "beside": ""}
    speakers = (own, {**own, "model": conversation["beside"]})
    with st.container(key="beside"):
        for place, message, speaker in zip(st.columns(2, gap="medium"), pair, speakers, strict=True):
            with place, st.container(key=f"beside_{message['id']}"):
                _head(message, chosen)
                draw(speaker, message)


def _head(message: Message, chosen: dict[str, str]) -> None:
    """The model's name; beside it stop, or the way to go on from here."""
    own, parent = message["id"], message["parent_id"]
    name = t("model_auto") if message.get("model") in (None, "auto") else str(message["model"])
    with st.container(horizontal=True, vertical_alignment="center", gap="small", key=f"beside_head_{own}"):
        st.html(f'<h3 class="mf-speaker">{escape(name)}</h3>')
        if is_running(message):
            st.button(
                t("stop"),
                key=f"stop_{own}",
                icon=":material/stop_circle:",
                on_click=attempt,
                args=(partial(client().stop_generation, message["generation_id"]),),
            )
        elif chosen.get(parent) == own:
            st.html(badges((t("beside_chosen"), "good")), width="content")
        else:
            st.button(
                t("beside_choose"),
                key=f"choose_{own}",
                icon=":material/check:",
                on_click=chosen.__setitem__,
                args=(parent, own),
            )
