"""Every visit and click: page frame, sidebar, and the page that the URL names. (script/workbench.py calls it.)"""

from functools import partial

import streamlit as st

from mofang.client import ApiError
from mofang.errors import Unreachable
from mofang.ui.components.base import guarded
from mofang.ui.components.sidebar import sidebar
from mofang.ui.pages import chat, knowledge, models
from mofang.ui.session import client, t
from mofang.ui.style import css


def main() -> None:
    st.set_page_config(page_title=t("app_title"), layout="centered", initial_sidebar_state="auto")
    st.html(f"<style>{css()}</style>")
    pages = {
        "chat": st.Page(chat.page, title=t("page_chat"), url_path="", default=True),
        "models": st.Page(models.page, title=t("page_models"), url_path="models"),
        "knowledge": st.Page(knowledge.page, title=t("page_knowledge"), url_path="knowledge"),
    }
    st.session_state["pages"] = pages
    current = st.navigation(list(pages.values()), position="hidden")
    guarded(partial(_draw, pages, current))()


def _draw(pages: dict[str, st.Page], current: st.Page) -> None:
    try:
        conversations = client().conversations()
    except (Unreachable, ApiError):
        sidebar(pages, current, None)
        raise
    sidebar(pages, current, conversations)
    current.run()
