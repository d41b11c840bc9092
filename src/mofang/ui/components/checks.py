"""What a model was compared with, and what came of it: the report and picture of each check, brought when asked for."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import streamlit as st

from mofang.client import ApiError
from mofang.ui import figures, prose
from mofang.ui.components.base import quiet
from mofang.ui.session import client, t

REPORT: Final = "report.md"
_PICTURE: Final = re.compile(r"^!\[[^\]]*\]\((picture\.png)\)$", re.M)


def show(name: str, checks: Sequence[Mapping[str, Any]]) -> None:
    """`checks`: the manifest's checks.against."""
    for number, one in enumerate(checks):
        label = t("check_against", name=one["reference"]["name"], time=figures.moment(one["at"]))
        part = st.expander(f"{label} · {in_short(one)}", key=f"check_{name}_{number}", on_change="rerun")
        if part.open:
            with part:
                report(str(one["run"]))


def in_short(one: Mapping[str, Any]) -> str:
    """The figures that matter, in a line."""
    parts = [
        t("check_kl", kl=f"{one['mean_kl']:.4f}", top=f"{one['same_top']:.1%}") if "mean_kl" in one else "",
        t("check_ratio", ratio=f"{one['ratio']:.3f}"),
        "" if one.get("passed") is None else t("check_passed" if one["passed"] else "check_failed"),
    ]
    return " · ".join(part for part in parts if part)


def report(run_id: str) -> None:
    try:
        page = client().run_file(run_id, REPORT).decode()
    except ApiError as error:
        if error.status != 404:
            raise
        quiet(t("check_gone", run=run_id))
        return
    _, _, body = page.partition("\n")  # the title is the expander's
    before, *pictures = _PICTURE.split(body)
    st.markdown(prose.to_markdown(before))
    for name, after in zip(pictures[::2], pictures[1::2], strict=True):
        st.image(client().run_file(run_id, name))
        st.markdown(prose.to_markdown(after))
