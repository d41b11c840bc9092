"""Tools in a conversation: chosen above it, asked about before each call, their results folded below the answer.

What a model wants to call is shown with its arguments, and nothing happens before a person decides. The gateway makes the
call and goes on with the answer by itself; this page shows it, and may come and go.
"""

import json
from collections.abc import Callable, Sequence
from functools import partial
from html import escape
from typing import Any, Final

import streamlit as st

from mofang.client import ApiError
from mofang.errors import MofangError
from mofang.ui.components import working
from mofang.ui.components.base import attempt, facts, flash, fragment, plain, quiet, show_fault
from mofang.ui.session import client, language, t
from mofang.ui.tree import Message, Turn, words_of
from mofang.ui.watch import Task

LOOK_S: Final = 0.4
WAIT_S: Final = 0.25
"""A result within it needs no second look; a click never waits longer."""
LOOKS: Final = 4
"""After the last result; then somebody has to ask for the answer that did not begin."""
SHOWN_CHARS: Final = 160
"""Of a tool's description, in the list."""
ICONS: Final = {
    "done": "check",
    "failed": "error",
    "refused": "block",
    "running": "hourglass",
    "stopped": "stop_circle",
}

Conversation = dict[str, Any]
Call = dict[str, Any]


# ---- choosing ----


def choose(current: Sequence[str], own: str, take: Callable[[list[str]], None]) -> None:
    """The choice above a conversation; `take` is told of it. Servers are asked when it is opened, not before."""
    key, held = f"tools_pop_{own}", f"tools_shown_{own}"
    if not st.session_state.get(key):  # an open one that gets another label would be another one, closed
        st.session_state[held] = len(current)
    n = st.session_state.setdefault(held, len(current))
    part = st.popover(
        t("tools_chosen", n=n) if n else t("tools"),
        icon=":material/build:",
        key=key,
        type="primary" if n else "secondary",
        on_change="rerun",
    )
    if part.open:
        with part, st.container(key="tools_body"):
            _choices(current, own, take)


def _choices(current: Sequence[str], own: str, take: Callable[[list[str]], None]) -> None:
    turn = st.session_state.setdefault("tools_round", 0)
    ask = partial(client().tools, again=turn > 0)
    if (listing := working.ask("tools", (own, turn, language()), ask)) is None:
        return
    ours = {"name": "", "title": t("tools_own"), "fault": None}
    for server in (ours, *({"title": one["name"] or "mcp.json", **one} for one in listing["servers"])):
        st.html(f'<div class="mf-group">{escape(server["title"])}</div>')
        if server["fault"]:
            show_fault(server["fault"])
        for tool in listing["data"] if server["fault"] is None else ():
            if tool["server"] == server["name"]:
                _choice(tool, current, own, take)
    known = {tool["name"] for tool in listing["data"]}
    for name in [name for name in current if name not in known]:
        _choice({"name": name, "title": name, "description": t("tool_gone")}, current, own, take)
    quiet(t("tools_help"))
    st.button(
        t("tools_again"),
        key="tools_again",
        icon=":material/refresh:",
        type="tertiary",
        on_click=st.session_state.__setitem__,
        args=("tools_round", turn + 1),
    )


def _choice(tool: dict[str, Any], current: Sequence[str], own: str, take: Callable[[list[str]], None]) -> None:
    key = f"tool_{own}_{tool['name']}"

    def toggle() -> None:
        kept = [name for name in current if name != tool["name"]]
        take([*kept, tool["name"]] if st.session_state[key] else kept)

    with st.container(gap=None, key=f"tool_row_{own}_{tool['name']}"):
        st.checkbox(plain(tool["title"]), tool["name"] in current, key=key, on_change=toggle)
        text = " ".join(tool["description"].split())
        quiet(text if len(text) <= SHOWN_CHARS else text[: SHOWN_CHARS - 1] + "…")


# ---- asking ----


def below(conversation: Conversation, turns: Sequence[Turn], answer: Callable[[Message], None]) -> str:
    """What the last answer's calls wait for: a decision, a result, or the answer after them, which `answer` begins. It
    is said in words where nothing can be asked before; "": it can."""
    asking, results = _standing(turns)
    if asking is None:
        return ""
    waiting = asking["tool_calls"][len(results) :]
    if waiting:
        if _is_trusted(conversation, waiting[0]) and _decide(conversation, asking, waiting[0], "run"):
            st.rerun()
        for place, call in enumerate(waiting):
            _card(conversation, asking, call, is_next=place == 0)
    last = results[-1] if results else None
    if under_way := [result for result in results if result["status"] == "running"]:
        st.button(
            t("tool_stop"),
            key="tool_stop",
            icon=":material/stop_circle:",
            on_click=attempt,
            args=(partial(client().stop_call, conversation["id"], under_way[0]["id"]),),
            shortcut="Esc",
        )
        _follow(conversation["id"], _mark(conversation), None)
        return t("tool_running")
    if waiting or last is None:
        return t("tool_decide_first")
    if last.get("outcome") != "stopped" and st.session_state.get(f"tool_looks_{last['id']}", 0) < LOOKS:
        _follow(conversation["id"], _mark(conversation), last["id"])
        return t("answering")
    question = {"parent_id": last["id"]}
    st.button(t("tools_go_on"), key="tools_go_on", icon=":material/resume:", on_click=answer, args=(question,))
    return ""


def _standing(turns: Sequence[Turn]) -> tuple[Message | None, list[Message]]:
    """The answer at the end of the path that asks for calls, and the results so far."""
    messages = [turn.message for turn in turns]
    results: list[Message] = []
    while messages and messages[-1]["role"] == "tool":
        results.insert(0, messages.pop())
    last = messages[-1] if messages else None
    return (last, results) if last and last.get("tool_calls") and last["status"] == "done" else (None, [])


def _card(conversation: Conversation, asking: Message, call: Call, *, is_next: bool) -> None:
    """What is about to be called, and with what. Calls are decided in their order."""
    own, title = f"{asking['id']}_{call['id']}", _title(conversation, call)
    with st.container(border=True, key=f"call_{own}"):
        st.html(
            f'<div class="mf-card"><b>{escape(title)}</b><span class="mf-quiet">{escape(t("tool_wants"))}</span></div>'
        )
        _arguments(call)
        if not is_next:
            quiet(t("tool_later"))
            return
        trust = f"tool_trust_{own}"
        st.checkbox(t("tool_trust", title=plain(title)), key=trust)
        with st.container(horizontal=True):
            for decision, kind in (("run", "primary"), ("refuse", "secondary")):
                st.button(
                    t(f"tool_decide_{decision}"),
                    key=f"{decision}_{own}",
                    type=kind,
                    on_click=_decided,
                    args=(conversation, asking, call, decision, trust),
                )


def _decided(conversation: Conversation, asking: Message, call: Call, decision: str, trust: str) -> None:
    if decision == "run" and st.session_state.get(trust):
        _trusted(conversation).add(call["function"]["name"])
    _decide(conversation, asking, call, decision)


def _decide(conversation: Conversation, asking: Message, call: Call, decision: str) -> bool:
    """Whether the gateway took it. A call that another tab decided about is no fault: its result is on the next run."""
    try:
        client().decide_call(conversation["id"], asking["id"], call["id"], decision, go_on=True, wait_s=WAIT_S)
    except MofangError as error:
        if isinstance(error, ApiError) and error.code == "call_decided":
            return True
        _trusted(conversation).discard(call["function"]["name"])
        flash(error)
        return False
    return True


def _trusted(conversation: Conversation) -> set[str]:
    """The tools that need no question in this conversation, for this visitor."""
    names: set[str] = st.session_state.setdefault(f"tools_trusted_{conversation['id']}", set())
    return names


def _is_trusted(conversation: Conversation, call: Call) -> bool:
    return call["function"]["name"] in _trusted(conversation)


# ---- results ----


def result(conversation: Conversation, message: Message) -> None:
    """What came of a call, folded."""
    call = _call_of(conversation, message)
    outcome = "running" if message["status"] == "running" else str(message.get("outcome") or "done")
    parts = [_title(conversation, call), t(f"tool_outcome_{outcome}")]
    if outcome in ("done", "failed", "stopped") and message.get("seconds") is not None:
        parts.append(t("seconds", n=f"{message['seconds']:.1f}"))
    with st.expander(plain(" · ".join(parts)), icon=f":material/{ICONS[outcome]}:", key=f"tool_result_{message['id']}"):
        quiet(call["function"]["name"])
        _arguments(call)
        if text := words_of(message):
            st.html(f'<div class="mf-result">{escape(text)}</div>')


def _call_of(conversation: Conversation, message: Message) -> Call:
    """The call that a result is for; its name alone where the answer that asked for it is not there."""
    by_id = {one["id"]: one for one in conversation["messages"]}
    at: Message | None = message
    while at and at["role"] == "tool":
        at = by_id.get(str(at.get("parent_id")))
    nameless = {"id": "", "function": {"name": str(message.get("name") or "-"), "arguments": ""}}
    calls = (at or {}).get("tool_calls") or ()
    return next((call for call in calls if call["id"] == message.get("tool_call_id")), nameless)


def _arguments(call: Call) -> None:
    """One below the other; as they were written where they are no object."""
    written = call["function"]["arguments"]
    try:
        decoded = json.loads(written or "{}")
    except ValueError:
        decoded = None
    if not isinstance(decoded, dict):
        st.html(f'<div class="mf-result">{escape(written)}</div>')
    elif decoded:
        facts(*[(str(name), _shown(value)) for name, value in decoded.items()])
    else:
        quiet(t("tool_no_arguments"))


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _title(conversation: Conversation, call: Call) -> str:
    """A tool's title, with its server's name; where it is not known, the name."""
    key = f"tools_known_{conversation['id']}_{language()}"
    if key not in st.session_state:
        st.session_state[key] = Task(client().tools)
        st.session_state[key].settle(WAIT_S)
    name = call["function"]["name"]
    for tool in (st.session_state[key].result or {"data": ()})["data"]:
        if tool["name"] == name:
            return " · ".join(part for part in (tool["server"], tool["title"]) if part)
    return str(name)


# ---- looking ----


def _mark(conversation: Conversation) -> tuple[int, int, str | None]:
    """What changes when a call is decided, a result is there, an answer begins."""
    messages = conversation["messages"]
    running = sum(message["status"] == "running" for message in messages)
    return len(messages), running, conversation.get("running_generation_id")


@fragment(run_every=LOOK_S)
def _follow(conversation_id: str, seen: tuple[int, int, str | None], last: str | None) -> None:
    """Until something changes; `last`: the result that an answer should follow by now."""
    if _mark(client().conversation(conversation_id)) != seen:
        st.rerun()
    if last is not None:
        looks = st.session_state[f"tool_looks_{last}"] = st.session_state.get(f"tool_looks_{last}", 0) + 1
        if looks >= LOOKS:
            st.rerun()
    st.html(
        f'<div class="mf-state" role="status"><i></i>{escape(t("tool_running" if last is None else "thinking"))}</div>'
    )
