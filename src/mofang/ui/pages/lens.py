"""续写与显微镜: a model seen from close by, one token at a time."""

from html import escape
from typing import Final

import streamlit as st

from mofang.ui.components.base import show_flash
from mofang.ui.components.cuts import cuts
from mofang.ui.components.near import near
from mofang.ui.components.odds import expected
from mofang.ui.components.vector_map import vector_map
from mofang.ui.components.writing import writing
from mofang.ui.session import client, t

PANELS: Final = {"writing": writing, "next": expected, "cuts": cuts, "map": vector_map, "near": near}
"""In the order of the tabs; titles are lens_<name>, what each is for lens_<name>_text."""


def page() -> None:
    st.html(f'<div class="mf-head"><h2>{escape(t("page_lens"))}</h2><p>{escape(t("lens_about"))}</p></div>')
    show_flash()
    models = client().models()
    for (name, panel), tab in zip(PANELS.items(), st.tabs([t(f"lens_{name}") for name in PANELS]), strict=True):
        with tab:
            st.html(f'<p class="mf-summary mf-quiet">{escape(t(f"lens_{name}_text"))}</p>')
            panel(models)
