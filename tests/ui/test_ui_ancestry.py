"""A model's ancestry as nested lists: everything is there once, nothing of it is markup."""

from typing import Any

import fake_gateway
import pytest
from streamlit.testing.v1 import AppTest
from test_ui_app import go, text_of

from mofang.ui.ancestry import tree_html
from mofang.ui.run import SCRIPT


def ancestor(name: str, *parents: dict[str, Any], **told: Any) -> dict[str, Any]:
    usual = {
        "role": "",
        "format": "hf",
        "sha256": "1d9614638d18024d0fbb",
        "step": "",
        "run": "",
        "source": "",
        "here": True,
        "told": False,
    }
    return {**usual, **told, "name": name, "parents": list(parents)}


BASE = ancestor("底座 <b>", role="base", source="modelscope")
TREE = ancestor(
    "小坊-q8_0",
    ancestor("小坊", BASE, ancestor("适配", role="adapter", step="sft", run="甲-0301", here=False), role="source", step="merge", run="乙-0302"),
    format="gguf", step="gguf", run="丙-0303",
)  # fmt: skip


@pytest.mark.parametrize("lang", ["zh", "en"])
def test_a_tree_of_three_generations(lang: str) -> None:
    html = tree_html(TREE, lang)
    assert html.count("<li>") == html.count("</li>") == 4 and html.count("<ul") == html.count("</ul>") == 3
    assert "底座 &lt;b&gt;" in html and "<b>底座 <b>" not in html
    assert html.index("小坊-q8_0") < html.index("乙-0302") < html.index("modelscope") < html.index("甲-0301")
    assert html.count("✗") == 1 and "1d9614638d18<" in html


def test_a_made_model_shows_where_it_comes_from(gateway: str, state: fake_gateway.State) -> None:
    state.lineage = TREE
    page = AppTest.from_file(str(SCRIPT), default_timeout=20)
    page.run()
    go(page, "models")
    page.session_state["details_qwen2.5-coder-0.5b-instruct"] = True
    page.run()
    assert "来历" in text_of(page) and "甲-0301" in text_of(page)
