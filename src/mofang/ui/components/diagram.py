"""A Mermaid diagram of an answer: drawn by Streamlit's own Mermaid, with its source below it.

Streamlit draws strictly (no scripts, no links, an image in the end) and asks for nothing outside; one that does not
parse shows the parser's message and, by style.css, its source.
"""

import re
from html import escape
from typing import Final

import streamlit as st

from mofang.ui.session import t

_NAMED: Final = re.compile(r"^\s*acc(?:Title|Descr)\b", re.M)
"""The diagram says itself what it shows."""


def show(source: str, key: str) -> None:
    code = escape(source)
    with st.container(key=f"diagram_{key}"):
        st.mermaid_chart(source, alt=None if _NAMED.search(source) else t("diagram"))
        st.html(
            f'<details class="mf-diagram"><summary>{escape(t("diagram_source"))}</summary>'
            f'<pre tabindex="0">{code}</pre></details><pre class="mf-broken" tabindex="0">{code}</pre>'
        )
