"""What a page knows of its visitor: language, key, conversation; and the client that speaks for them.

Language and conversation stand in the URL (?lang=en&c=…), so that a reload or a second tab finds them; the key lives
in this visitor's session only.
"""

import os
from collections.abc import Mapping
from typing import Any

import streamlit as st

from mofang.client import Client
from mofang.ui.watch import Watches
from mofang.ui.words import LANGUAGES, word, word_or


def default_language() -> str:
    """The language of a page that does not say: WORKBENCH_LANG, else Chinese."""
    asked = os.environ.get("WORKBENCH_LANG", "zh")
    return asked if asked in LANGUAGES else "zh"


def language() -> str:
    """This visitor's language: the URL's, else the session's, else the default."""
    asked = st.query_params.get("lang")
    if asked in LANGUAGES:
        st.session_state["lang"] = asked
    return str(st.session_state.get("lang") or default_language())


def set_language(lang: str) -> None:
    st.session_state["lang"] = lang
    if lang == default_language():
        st.query_params.pop("lang", None)
    else:
        st.query_params["lang"] = lang


def t(key: str, /, **values: Any) -> str:
    """The sentence `key` in this visitor's language."""
    return word(language(), key, **values)


def t_or(key: str, fallback: str) -> str:
    return word_or(language(), key, fallback)


def link_params(**more: str | None) -> dict[str, str]:
    """Query parameters that a link to another page of ours must carry."""
    params: Mapping[str, str | None] = {
        "lang": language() if language() != default_language() else None,
        "c": st.query_params.get("c"),
        **more,
    }
    return {name: value for name, value in params.items() if value}


# ---- the gateway ----


def gateway_url() -> str:
    return os.environ.get("WORKBENCH_GATEWAY", "http://127.0.0.1:8642")


def client() -> Client:
    """This visitor's client: their own key, else the one that the workbench was started with."""
    return _client(
        gateway_url(), st.session_state.get("api_key") or os.environ.get("WORKBENCH_KEY") or None, language()
    )


@st.cache_resource(max_entries=1024, show_spinner=False)  # a client that is pushed out may still be watching an answer
def _client(url: str, key: str | None, lang: str) -> Client:
    return Client(url, key, lang=lang)


@st.cache_resource(show_spinner=False)
def watches() -> Watches:
    return Watches()


# ---- the conversation ----


def conversation_id() -> str | None:
    return st.query_params.get("c") or None


def open_conversation(conversation: str | None) -> None:
    """Show this conversation, or a new one."""
    if conversation:
        st.query_params["c"] = conversation
    else:
        st.query_params.pop("c", None)
