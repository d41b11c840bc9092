"""Raw continuation: any text goes on, each token with its probability; one that is chosen shows what else could have
stood there, and the text branches to that."""

from html import escape
from typing import Any, Final

import streamlit as st

from mofang.ui.components.base import fragment, plain, quiet, show_error
from mofang.ui.components.odds import DEFAULTS as CHAIN
from mofang.ui.components.odds import sliders
from mofang.ui.components.tokens import bar, chip, flow, legend, strip, table, unmarked
from mofang.ui.components.working import SOON_S, WRITERS, keep, model_of
from mofang.ui.continuation import Continuation, Written
from mofang.ui.session import client, t, t_or
from mofang.ui.tokens import Option, joined, legible, percent

OPTIONS: Final = 10
"""Alternatives that are asked for beside each token."""
LEAD: Final = 240
"""Characters of the text before that are shown with what follows."""
LOOK_S: Final = 0.3
DEFAULTS: Final = {**CHAIN, "repeat_penalty": 1.0}
PAST: Final = 20
"""Branches that can be gone back over."""


def _state() -> dict[str, Any]:
    state: dict[str, Any] = st.session_state.setdefault("writing", {"run": None, "past": [], "at": None, "round": 0})
    return state


@fragment()
def writing(models: list[dict[str, Any]]) -> None:
    st.text_area(t("lens_text"), key=keep("writing_text", t("writing_example")), height=130)
    with st.container(key="writing_fields"):
        if model_of(models, WRITERS, "writing_model") is None:
            return
        st.number_input(t("writing_tokens"), 1, 512, step=16, key=keep("writing_tokens", 48))
    with st.expander(t("writing_sampling"), icon=":material/tune:"):
        sliders(tuple(DEFAULTS), DEFAULTS, key="writing")
        st.number_input(
            t("seed"),
            0,
            2**31 - 1,
            step=1,
            key=keep("writing_seed", None),
            placeholder=t("seed_random"),
            help=t("seed_help"),
        )
    state = _state()
    run: Continuation | None = state["run"]
    with st.container(horizontal=True, vertical_alignment="center", key="writing_bar"):
        st.button(t("write"), key="write", type="primary", icon=":material/edit_note:", on_click=_write)
        if run and not run.written().is_running and run.written().text:
            st.button(t("write_on"), key="write_on", icon=":material/last_page:", on_click=_write_on)
        if state["past"]:
            st.button(t("branch_back"), key="branch_back", icon=":material/undo:", type="tertiary", on_click=_back)
    if run is None:
        quiet(t("writing_help"))
    elif run.written().is_running:
        _live()
    else:
        _done(run, run.written())


def _body(prompt: str) -> dict[str, Any]:
    held = st.session_state
    chosen = {name: held[f"writing_{name}"] for name in DEFAULTS}
    seed = {} if held.get("writing_seed") is None else {"seed": held["writing_seed"]}
    shape = {
        "model": held["writing_model"],
        "prompt": prompt,
        "max_tokens": held["writing_tokens"],
        "logprobs": OPTIONS,
    }
    return {**shape, **chosen, **seed}


def _write() -> None:
    _begin(str(st.session_state["writing_text"]))


def _begin(prompt: str) -> None:
    """Continue `prompt`; what was there can be gone back to."""
    state = _state()
    if before := state["run"]:
        before.stop()
        state["past"] = [*state["past"], before][-PAST:]
    run = Continuation(client(), _body(prompt))
    state.update(run=run, at=None, round=state["round"] + 1)
    run.settle(SOON_S)


def _write_on() -> None:
    run: Continuation = _state()["run"]
    _branch(run.prompt + run.written().text)


def _branch(text: str) -> None:
    st.session_state["writing_text"] = text
    _begin(text)


def _back() -> None:
    state = _state()
    if state["run"]:
        state["run"].stop()
    run: Continuation = state["past"].pop()
    state.update(run=run, at=None, round=state["round"] + 1)
    st.session_state["writing_text"] = run.prompt


@fragment(run_every=LOOK_S)
def _live() -> None:
    run: Continuation | None = _state()["run"]
    if run is None or not run.written().is_running:
        st.rerun()
        return
    written = run.written()
    if written.text or written.tokens:
        flow(_lead(run.prompt), written.tokens, is_running=True)
    else:
        st.html(f'<div class="mf-state" role="status"><i></i>{escape(t("asking"))}</div>')
    st.button(t("stop"), key="writing_stop", icon=":material/stop_circle:", on_click=run.stop)


def _lead(prompt: str) -> str:
    return prompt if len(prompt) <= LEAD else "…" + prompt[-LEAD:]


def _done(run: Continuation, written: Written) -> None:
    if written.error:
        show_error(written.error)
    if not written.tokens:
        if written.text:
            unmarked(_lead(run.prompt), written.text)
            quiet(t("writing_no_odds"))
        elif not written.error:
            quiet(t("writing_empty"))
        return
    state = _state()
    legend()
    strip(_lead(run.prompt), written.tokens, state["at"], _choose, key=f"strip_{state['round']}")
    parts = [
        t("n_tokens", n=written.n_tokens or len(written.tokens)),
        t("speed", n=f"{written.per_second:.1f}") if written.per_second else "",
        t_or(f"finish_{written.finish_reason}", "") if written.finish_reason else t("finish_stopped"),
        t("writing_untold", n=written.n_untold) if written.n_untold else "",
    ]
    quiet(" · ".join(part for part in parts if part))
    if state["at"] is None or state["at"] >= len(written.tokens):
        quiet(t("strip_help"))
    else:
        _options(run, written, int(state["at"]))


def _choose(number: int) -> None:
    _state()["at"] = number


def _options(run: Continuation, written: Written, at: int) -> None:
    """What else could have stood there, and the way to each."""
    token, before = written.tokens[at], joined(written.tokens[:at])
    listed: list[Option] = list(token.options)
    if token.id not in [one.id for one in listed]:
        listed.append(Option(token.id, token.data, token.logprob))
    rows = [
        [
            chip(one)
            + (f' <span class="mf-badge good">{escape(t("option_taken"))}</span>' if one.id == token.id else ""),
            f'<span class="mf-quiet">{"–" if one.id is None else one.id}</span>',
            bar(one.probability, percent(one.probability)),
        ]
        for one in listed
    ]
    with st.container(key="options"):
        st.html(f'<h4 class="mf-part">{escape(t("options_of", n=at + 1, text=legible(token.data)))}</h4>')
        table([t("odds_token"), t("odds_id"), t("odds_before")], rows, t("options_caption"))
        st.html(f'<div class="mf-label">{escape(t("branch_to"))}</div>')
        with st.container(horizontal=True, gap="small", key="branches"):
            for number, one in enumerate(listed):
                if one.id == token.id:
                    continue
                text = one.text
                is_whole = before is not None and bool(text)
                st.button(
                    f"{plain(legible(one.data))} {percent(one.probability)}",
                    key=f"branch_{at}_{number}",
                    disabled=not is_whole,
                    help=None if is_whole else t("branch_half"),
                    on_click=_branch,
                    args=(f"{run.prompt}{before or ''}{text or ''}",),
                )
