"""Every visit and click: page frame, sidebar, and the page that the URL names. (script/workbench.py calls it.)"""

from functools import partial
from importlib import import_module

import streamlit as st

from mofang.client import ApiError
from mofang.errors import Unreachable
from mofang.ui.components.base import guarded
from mofang.ui.components.sidebar import sidebar
from mofang.ui.places import PLACES
from mofang.ui.session import client, t
from mofang.ui.style import css


def main() -> None:
    st.set_page_config(page_title=t("app_title"), layout="centered", initial_sidebar_state="auto")
    st.html(f"<style>{css()}</style>")
    pages = {
        name: st.Page(
            import_module(place.module).page, title=t(f"page_{name}"), url_path=place.path, default=not place.path
        )
        for name, place in PLACES.items()
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
