"""对话: a conversation with a model. The answer lives in the gateway; this page shows it, and may come and go.

A run of the page takes a few small requests and never waits for a token: a running answer is shown by a fragment that
looks at its Watch several times a second, so clicks are answered at once and a reload re-attaches.
"""

from collections.abc import Iterable, Sequence
from functools import partial
from html import escape
from typing import Any, Final

import streamlit as st

from mofang.client import ApiError
from mofang.errors import MofangError
from mofang.ui import figures
from mofang.ui.components import attachments, beside, diagram, document, jobs, settings, tools
from mofang.ui.components.base import attempt, flash, fragment, mark, plain, quiet, show_fault, show_flash
from mofang.ui.prose import anchor_of, pieces, sources_html, to_markdown
from mofang.ui.session import client, conversation_id, language, link_params, open_conversation, t, watches
from mofang.ui.tree import Message, Turn, choices_to, title_of, words_of
from mofang.ui.watch import Answer

TICK_S: Final = 0.2
LOG_WAIT_S: Final = 0.5
DOCS: Final = ("handbook", "mofang", "模坊")
"""A knowledge base whose name or title has one of these holds our own documentation."""

Conversation = dict[str, Any]


def page() -> None:
    models = [model for model in client().models() if model.get("kind") == "chat" and model.get("runnable", True)]
    bases = client().knowledge()
    conversation = _conversation()
    _show_wanted(conversation)
    turns, pair = beside.shown(conversation, _chosen(conversation))
    running = conversation.get("running_generation_id")
    settings.bar(conversation, models, bases)
    if not models and not turns:
        _first_run()
    elif not turns and not running and conversation.get("greeting"):
        with st.container(key="answer_greeting"):
            _content(conversation["greeting"], [], "greeting")
    elif not turns and not running:
        _invite(conversation, bases)
    for turn in turns[:-1] if pair else turns:
        _turn(conversation, turn, is_last=turn is turns[-1], running=running)
    if pair:
        beside.columns(conversation, pair, _chosen(conversation), partial(_one_of_two, running=running))
    drawn = [turn.message for turn in turns] + pair
    if running and not any(message.get("generation_id") == running for message in drawn):
        with st.chat_message("assistant", avatar=":material/deployed_code:"):
            _live(running)
    show_flash()
    waits = "" if running else tools.below(conversation, turns, partial(_regenerate, conversation))
    _unanswered(conversation, turns, running)
    _input(conversation, turns, closed=waits if models else t("ask_later"), running=running)


def _conversation() -> Conversation:
    """The one that the URL names, or the draft of a new one."""
    name = conversation_id()
    if name is None:
        return settings.draft()
    try:
        return client().conversation(name)
    except ApiError as error:
        if error.status != 404:
            raise
        open_conversation(None)
        flash(error)
        return settings.draft()


def _show_wanted(conversation: Conversation) -> None:
    """A message that was found in the sidebar is on the path that is shown."""
    if wanted := st.session_state.pop("show_message", None):
        _chosen(conversation).update(choices_to(conversation["messages"], wanted))


def _chosen(conversation: Conversation) -> dict[str, str]:
    """Which version this visitor looks at, by the parent's message id."""
    chosen: dict[str, str] = st.session_state.setdefault(f"versions_{conversation['id']}", {})
    return chosen


# ---- asking ----


def _input(conversation: Conversation, turns: list[Turn], *, closed: str, running: str | None) -> None:
    """`closed`: why nothing can be asked; "": it can."""
    # Streamlit pins a chat input to the page's lower edge; the stop button is laid over its send button (style.css).
    if running:
        with st.bottom, st.container(key="stop_bar"):
            st.button(
                t("stop_answer"),
                key="stop",
                icon=":material/stop_circle:",
                on_click=attempt,
                args=(partial(beside.stop, conversation, running),),
                shortcut="Esc",
            )
    placeholder = t("answering") if running else closed or t("ask")
    disabled = bool(running or closed)
    if said := st.chat_input(placeholder, key="question", disabled=disabled, accept_file="multiple"):
        _ask(conversation, turns, said.text, said.files)
        st.rerun()


def _ask(conversation: Conversation, turns: list[Turn], question: str, files: Sequence[Any] = ()) -> None:
    """Store the question and start its answer. What fails is shown on the next run, with nothing of ours lost."""
    refs, faults = attachments.send(files)
    if not faults:
        try:
            _begin(conversation, turns, question, refs)
        except MofangError as error:
            faults.append(error)
    st.session_state.pop("unsent", None)
    if faults:
        flash(*faults)
        if question.strip() or refs:
            st.session_state["unsent"] = question, refs


def _begin(conversation: Conversation, turns: list[Turn], question: str, refs: list[attachments.Ref]) -> None:
    if conversation["id"] is None:
        names = ("system", "model", "knowledge", "sampling", "prefix", "greeting", "tools", "beside")
        kept = {name: conversation[name] for name in names if conversation[name]}
        conversation = client().create_conversation(title=title_of(question) or attachments.title_of(refs), **kept)
        open_conversation(conversation["id"])
        settings.begin_anew()
    body = _request(conversation, parent_id=turns[-1].message["id"] if turns else None)
    content = attachments.content(question, refs)
    beside.ask(conversation, {**body, "messages": [{"role": "user", "content": content}]})


def _unanswered(conversation: Conversation, turns: list[Turn], running: str | None) -> None:
    """A question that the gateway did not take, or took and did not answer: shown, and one click from its answer."""
    if running:
        return
    last = turns[-1].message if turns else None
    if last and last["role"] == "user":
        st.session_state.pop("unsent", None)
        question = {"parent_id": last["id"]}
        st.button(
            t("answer_it"),
            key="answer_it",
            icon=":material/refresh:",
            on_click=_regenerate,
            args=(conversation, question),
        )
    elif unsent := st.session_state.get("unsent"):
        attachments.unsent(*unsent)
        st.button(
            t("send_again"),
            key="send_again",
            icon=":material/refresh:",
            on_click=_ask,
            args=(conversation, turns, *unsent),
        )


def _regenerate(conversation: Conversation, message: Message, *, prefix: str | None = None) -> None:
    """Another answer beside this one; with `prefix`, its text, one that goes on where this one was cut off."""
    body = {**_request(conversation, parent_id=message["parent_id"]), "messages": []}
    try:
        beside.ask(conversation, body if prefix is None else {**body, "prefix": prefix})
    except MofangError as error:
        flash(error)
    else:
        _chosen(conversation).pop(message["parent_id"], None)


# ---- changing what was said ----


def _edit(message: Message | None) -> None:
    st.session_state["editing"] = message["id"] if message else None


def _editor(conversation: Conversation, message: Message) -> None:
    """A turn or an answer as a field; what is saved stands beside it as another version."""
    own, is_turn = message["id"], message["role"] == "user"
    with st.container(key=f"editor_{own}"), st.form(f"edit_form_{own}", border=False):
        text = st.text_area(
            t("edit_turn" if is_turn else "edit_answer"),
            words_of(message),
            key=f"edit_text_{own}",
            height="content",
            label_visibility="collapsed",
        )
        refs = attachments.kept(message)
        with st.container(horizontal=True, horizontal_alignment="right"):
            left = st.form_submit_button(t("cancel"), key=f"edit_cancel_{own}")
            saved = st.form_submit_button(
                t("save_and_ask" if is_turn else "save"), type="primary", key=f"edit_save_{own}"
            )
        quiet(t("edit_turn_help" if is_turn else "edit_answer_help"))
    if saved and text.strip() and (text, refs) != (words_of(message), attachments.refs_of(message)):
        _save(conversation, message, text, refs)
    if left or saved:
        _edit(None)
        st.rerun()


def _save(conversation: Conversation, message: Message, text: str, refs: list[attachments.Ref]) -> None:
    parent = message.get("parent_id")
    try:
        if message["role"] == "user":
            body = _request(conversation, parent_id=parent or "root")
            content = attachments.content(text, refs)
            beside.ask(conversation, {**body, "messages": [{"role": "user", "content": content}]})
        else:
            client().add_message(conversation["id"], text, edits=message["id"])
    except MofangError as error:
        flash(error)
    else:
        _chosen(conversation).pop(parent or "", None)


def _request(conversation: Conversation, parent_id: str | None) -> dict[str, Any]:
    body: dict[str, Any] = {
        **settings.sampling_of(conversation),
        "conversation_id": conversation["id"],
        "model": conversation.get("model") or "auto",
    }
    optional = {
        "parent_id": parent_id,
        "system": conversation.get("system"),
        "knowledge": conversation.get("knowledge"),
    }
    return body | {name: value for name, value in optional.items() if value}


# ---- what was said ----


def _turn(conversation: Conversation, turn: Turn, *, is_last: bool, running: str | None) -> None:
    message = turn.message
    if st.session_state.get("editing") == message["id"] and not running:
        _editor(conversation, message)
        return
    if message["role"] == "user":
        with st.container(key=f"user_{message['id']}"):
            attachments.question(conversation, message)
            _under_turn(conversation, turn, is_free=running is None)
        return
    if message["role"] == "tool":
        tools.result(conversation, message)
        return
    with st.container(key=f"answer_{message['id']}"):
        if running and message.get("generation_id") == running:
            _live(running)
            return
        _said(message)
        _under(conversation, turn, is_last=is_last, is_free=running is None)


def _one_of_two(conversation: Conversation, message: Message, *, running: str | None) -> None:
    """An answer beside another's; `running` is one of those under way, perhaps the other."""
    under_way = message["generation_id"] if beside.is_running(message) else running
    _turn(conversation, Turn(message, 0, (message["id"],)), is_last=False, running=under_way)


def _said(message: Message) -> None:
    _reasoning(message.get("reasoning"), message["id"])
    sources = message.get("sources") or []
    _content(words_of(message), sources, message["id"])
    if message["status"] == "error":
        answer = (
            watches().of(client(), message["generation_id"]).settle(LOG_WAIT_S)
            if message.get("generation_id")
            else None
        )
        show_fault(answer.error if answer else None)
        attachments.way_out(answer.error if answer else None, message["id"])
    elif message["status"] == "stopped":
        quiet(t("was_stopped"))
    elif message.get("finish_reason") == "length":
        quiet(t("was_cut"))
    if sources:
        st.html(_sources(sources, message["id"]))
        _originals(sources, message["id"])


def _content(text: str, sources: Iterable[dict[str, Any]], message_id: str, *, draws: bool = True) -> None:
    """`draws`: diagrams are drawn; else, while they are being written, they are code."""
    numbers = {int(source["number"]) for source in sources}
    for place, (piece, is_diagram) in enumerate(pieces(text) if draws else [(text, False)]):
        if is_diagram:
            diagram.show(piece, f"{message_id}_{place}")
        elif piece.strip():
            st.markdown(to_markdown(piece, numbers, f"#{anchor_of(message_id, '')}"[1:]), anchors=False)


def _reasoning(text: str | None, message_id: str) -> None:
    if text:
        with st.expander(t("reasoning"), icon=":material/psychology:", key=f"reasoning_{message_id}"):
            st.markdown(to_markdown(text), anchors=False)


def _sources(sources: list[dict[str, Any]], message_id: str) -> str:
    words = {
        "title": t("sources"),
        "title_uncited": t("sources_uncited"),
        "not_cited": t("not_cited"),
        "gone": t("source_gone"),
    }
    wanted = [source for source in sources if source.get("cited")] or sources
    contexts = {
        int(source["number"]): _context(
            client(), source["knowledge"], source["document_id"], source["start"], source["end"]
        )
        for source in wanted
    }
    return sources_html(sources, contexts, message_id, words, language())


def _originals(sources: list[dict[str, Any]], message_id: str) -> None:
    """The way from each source that counts to the document itself, at its span."""
    with st.container(horizontal=True, vertical_alignment="center", gap="small", key=f"originals_{message_id}"):
        st.html(f'<span class="mf-quiet">{escape(t("open_document"))}</span>', width="content")
        for source in [source for source in sources if source.get("cited")] or sources:
            st.page_link(
                st.session_state["pages"]["knowledge"],
                label=str(source["number"]),
                help=plain(str(source.get("title") or "")),
                query_params=link_params(**document.params(source)),
            )


@st.cache_data(max_entries=4096, show_spinner=False)
def _context(_client: Any, knowledge: str, document: str, start: int, end: int) -> dict[str, Any]:
    """The span with what surrounds it; {} when the document is no longer there."""
    try:
        shape: dict[str, Any] = _client.document_text(knowledge, document, start, end)
    except ApiError as error:
        if error.status == 404:
            return {}
        raise
    return shape


def _under_turn(conversation: Conversation, turn: Turn, *, is_free: bool) -> None:
    """The row below a question: versions and the way to change it."""
    own = turn.message["id"]
    if not is_free and len(turn.versions) < 2:
        return
    with st.container(
        horizontal=True,
        vertical_alignment="center",
        horizontal_alignment="right",
        gap="small",
        key=f"under_turn_{own}",
    ):
        _versions(conversation, turn)
        if is_free:
            _edit_button(turn.message)


def _edit_button(message: Message) -> None:
    is_turn = message["role"] == "user"
    st.button(
        t("edit_turn" if is_turn else "edit_answer"),
        key=f"edit_{message['id']}",
        icon=":material/edit:",
        type="tertiary",
        on_click=_edit,
        args=(message,),
    )


def _versions(conversation: Conversation, turn: Turn) -> None:
    """The way from this version to the one before and after it."""
    if len(turn.versions) < 2:
        return
    own, chosen, parent = turn.message["id"], _chosen(conversation), turn.message.get("parent_id") or ""
    with st.container(horizontal=True, vertical_alignment="center", gap=None, width="content", key=f"versions_{own}"):
        for step, icon, word in ((-1, "chevron_left", "previous"), (1, "chevron_right", "next")):
            if step == 1:
                st.html(f'<span class="mf-quiet">{turn.version + 1}/{len(turn.versions)}</span>', width="content")
            at = turn.version + step
            st.button(
                t(f"{word}_version"),
                key=f"{word}_{own}",
                icon=f":material/{icon}:",
                type="tertiary",
                disabled=not 0 <= at < len(turn.versions),
                on_click=chosen.__setitem__,
                args=(parent, turn.versions[max(0, min(at, len(turn.versions) - 1))]),
            )


def _under(conversation: Conversation, turn: Turn, *, is_last: bool, is_free: bool) -> None:
    """The row below an answer: versions, on, again, edit, copy, and the figures."""
    message = turn.message
    own, text = message["id"], words_of(message)
    was_cut = message["status"] in ("stopped", "error") or message.get("finish_reason") == "length"
    with st.container(horizontal=True, vertical_alignment="center", gap="small", key=f"under_{own}"):
        _versions(conversation, turn)
        if is_free and was_cut and text and message.get("parent_id"):
            st.button(
                t("continue_answer"),
                key=f"continue_{own}",
                icon=":material/resume:",
                type="tertiary",
                on_click=_regenerate,
                args=({**conversation, "beside": ""}, message),
                kwargs={"prefix": text},
            )
        if is_free and message.get("parent_id"):
            st.button(
                t("again"),
                key=f"again_{own}",
                icon=":material/refresh:",
                type="tertiary",
                on_click=_regenerate,
                args=(conversation, message),
                shortcut="Ctrl+Shift+Enter" if is_last else None,
            )
        if is_free and text:
            _edit_button(message)
        if text:
            st.html(
                f'<button type="button" class="mf-copy">{escape(t("copy"))}</button>'
                f'<span class="mf-raw">{escape(text)}</span>',
                width="content",
            )
        line = t("edited") if message.get("edits") is not None else figures.speed_line(language(), message)
        st.html(f'<span class="mf-quiet">{escape(line)}</span>{_gauge(message)}', width="content")


def _gauge(message: Message) -> str:
    """How full the model's context is after this answer, as HTML; "" where it is not told."""
    if (found := figures.context(message)) is None:
        return ""
    used, n_ctx = found
    share = min(1.0, used / n_ctx)
    label = t("context_used", used=f"{used:,}", n_ctx=f"{n_ctx:,}", share=f"{100 * share:.0f}")
    tone = " full" if share > 0.85 else ""
    return (
        f'<span class="mf-context" title="{escape(label)}"><span class="mf-gauge{tone}" aria-hidden="true">'
        f'<i style="width:{100 * share:.1f}%"></i></span><span class="mf-quiet">{escape(label)}</span></span>'
    )


# ---- the answer under way ----


@fragment(run_every=TICK_S)
def _live(generation: str) -> None:
    answer = watches().of(client(), generation).answer()
    _reasoning(answer.reasoning, generation)
    _content(answer.content, answer.sources, generation, draws=False)
    _state(answer)
    for notice in answer.notices:
        quiet(str(notice.get("message") or ""))
    if answer.is_final and client().generation(generation)["status"] not in ("queued", "running"):
        st.rerun()


def _state(answer: Answer) -> None:
    """What is happening, in one quiet line, while there is no text or the connection is lost."""
    line = ""
    if answer.is_lost:
        line = t("reconnecting")
    elif answer.status == "queued":
        line = t("queued")
    elif answer.status == "loading":
        fraction, detail = figures.progress(language(), answer.loading.get("progress"))
        line = t("loading_model", model=answer.loading.get("model") or "", detail=detail if fraction else "")
    elif answer.status == "prompt":
        done, total = answer.prompt
        line = t("reading", done=done, total=total) if total else t("thinking")
    elif not answer.content:
        line = t("thinking")
    elif answer.status == "running":
        st.html('<span class="mf-cursor" aria-hidden="true"></span>')
    if line:
        found = t("found_sources", n=len(answer.sources)) if answer.sources else ""
        st.html(
            f'<div class="mf-state"><i></i>{escape(" · ".join(part for part in (found, line.strip(" ·")) if part))}</div>'
        )


# ---- before the first question ----


def _first_run() -> None:
    """No chat model yet: the pulls under way, or the way to the models page."""
    pulls = jobs.under_way(("pull",))
    st.html(
        f'<div class="mf-hero">{mark()}<h2>{escape(t("preparing_title" if pulls else "no_model_title"))}</h2>'
        f"<p>{escape(t('preparing_text' if pulls else 'no_model_text'))}</p></div>"
    )
    if not pulls:
        jobs.last_failure("pull")
        with st.container(horizontal=True, horizontal_alignment="center"):
            if st.button(t("go_models"), key="go_models", type="primary", icon=":material/deployed_code:"):
                st.switch_page(st.session_state["pages"]["models"], query_params=link_params())
    jobs.live(("pull",), tuple(job["id"] for job in pulls))


def _invite(conversation: Conversation, bases: list[dict[str, Any]]) -> None:
    """The empty page: a greeting and three questions to begin with."""
    st.html(f'<div class="mf-hero">{mark()}<h2>{escape(t("hello"))}</h2><p>{escape(t("hello_text"))}</p></div>')
    docs = next((base["name"] for base in bases if any(word in _names(base) for word in DOCS)), None)
    examples = [("example_explain", None), ("example_code", None)]
    examples.append(("example_docs", docs) if docs else ("example_write", None))
    with st.container(horizontal=True, key="examples"):
        for key, base in examples:
            if st.button(t(key), key=key, icon=":material/menu_book:" if base else None, width="stretch"):
                if base:
                    settings.change(conversation, knowledge=[base])
                    conversation = {**conversation, "knowledge": [base]}
                _ask(conversation, [], t(key))
                st.rerun()


def _names(base: dict[str, Any]) -> str:
    return f"{base['name']} {base.get('title') or ''}".lower()
