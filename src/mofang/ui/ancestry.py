"""A model's ancestry as the gateway tells it (`lineage` of /v1/models/{name}): nested lists. Knows nothing of Streamlit."""

from collections.abc import Mapping
from html import escape
from typing import Any, Final

from mofang.strings import say

ROLES: Final = ("base", "adapter", "source", "quantized", "tokenizer", "pickled")
"""What something can be to what was made from it, and has a word."""


def tree_html(ancestor: Mapping[str, Any], lang: str) -> str:
    """The model, under it what it was made from, and so on."""
    return f'<ul class="mf-tree">{_one(ancestor, lang)}</ul>'


def _one(ancestor: Mapping[str, Any], lang: str) -> str:
    role = str(ancestor["role"])
    named = say(f"cli.role_{role}", lang=lang) if role in ROLES else role
    step, source = ancestor["step"], ancestor["source"]
    made = say("cli.lineage_made", lang=lang, step=step, run=ancestor["run"] or "?") if step else ""
    brought = say("cli.lineage_brought", lang=lang, source=source) if source and not step else ""
    facts = [named, ancestor["format"], made or brought, str(ancestor["sha256"])[:12]]
    facts.append(say("cli.lineage_told", lang=lang) if ancestor["told"] else "")
    facts.append("" if ancestor["here"] else say("cli.lineage_gone", lang=lang))
    said = "".join(f"<span>{escape(str(fact))}</span>" for fact in facts if fact)
    inner = "".join(_one(parent, lang) for parent in ancestor["parents"])
    return (
        f'<li><b>{escape(str(ancestor["name"]))}</b> <span class="mf-figures">{said}</span>'
        f"{f'<ul>{inner}</ul>' if inner else ''}</li>"
    )
