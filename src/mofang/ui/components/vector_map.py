"""Lines of text as points on a map of their embeddings, and how alike each two are.

Drawn with HTML and style.css's colours: Streamlit strips inline SVG, and a picture would not follow the theme.
"""

from collections.abc import Sequence
from functools import partial
from html import escape
from typing import Any, Final

import streamlit as st

from mofang.ui.components.base import fragment, quiet
from mofang.ui.components.tokens import bar
from mofang.ui.components.working import EMBEDDERS, ask, keep, model_of
from mofang.ui.projection import cosines, flat, pairs
from mofang.ui.session import client, t

MOST: Final = 60
"""Lines that are embedded."""
TABLE: Final = 16
"""Lines up to which every pair has a place in the table."""
PAIRS: Final = 5
LABEL: Final = 16
"""Characters of a line beside its point."""


@fragment()
def vector_map(models: list[dict[str, Any]]) -> None:
    text = st.text_area(t("map_lines"), key=keep("map_text", t("map_example")), height=210, help=t("map_lines_help"))
    model = model_of(models, EMBEDDERS, "map_model")
    if model is None:
        return
    st.button(t("map_draw"), key="map_draw", type="primary", icon=":material/scatter_plot:", on_click=_draw)
    lines = tuple(dict.fromkeys(line.strip() for line in text.splitlines() if line.strip()))
    if not st.session_state.get("map_on"):
        return
    if len(lines) < 2:
        quiet(t("map_few"))
        return
    if len(lines) > MOST:
        quiet(t("map_many", n=MOST, left=len(lines) - MOST))
        lines = lines[:MOST]
    vectors = ask("map", (model, lines), partial(client().embeddings, lines, model))
    if vectors:
        _show(lines, vectors)


def _draw() -> None:
    st.session_state["map_on"] = True


def _show(lines: Sequence[str], vectors: Sequence[Sequence[float]]) -> None:
    found, likeness = flat(vectors), cosines(vectors)
    st.html(figure(lines, found.points))
    quiet(t("map_kept", kept=f"{found.kept:.0%}", n=len(vectors[0])))
    st.html(f'<h4 class="mf-part">{escape(t("map_pairs"))}</h4>{_pairs(lines, likeness)}')
    if len(lines) <= TABLE:
        st.html(f'<h4 class="mf-part">{escape(t("map_table"))}</h4>{_table(lines, likeness)}')
    else:
        st.html(f'<ol class="mf-lines">{"".join(f"<li>{escape(line)}</li>" for line in lines)}</ol>')


def figure(lines: Sequence[str], points: Sequence[tuple[float, float]]) -> str:
    """HTML of the map: a numbered point a line, its beginning beside it, all of it when pointed at."""
    dots = []
    for number, (line, (x, y)) in enumerate(zip(lines, points, strict=True), 1):
        side = " left" if x > 0.6 else ""
        label = line if len(line) <= LABEL else line[: LABEL - 1] + "…"
        dots.append(
            f'<div class="mf-dot{side}" style="left:{4 + 92 * x:.2f}%;top:{5 + 90 * (1 - y):.2f}%" title="{escape(line)}">'
            f"<i>{number}</i><span>{escape(label)}</span></div>"
        )
    return f'<div class="mf-map" role="img" aria-label="{escape(t("map_label"))}">{"".join(dots)}</div>'


def _pairs(lines: Sequence[str], likeness: Sequence[Sequence[float]]) -> str:
    rows = [
        f"<li>{bar(max(0.0, value), f'{value:.3f}')}<span><i>{one + 1}</i>{escape(lines[one])}</span>"
        f"<span><i>{other + 1}</i>{escape(lines[other])}</span></li>"
        for one, other, value in pairs(likeness)[:PAIRS]
    ]
    return f'<ol class="mf-pairs">{"".join(rows)}</ol>'


def _table(lines: Sequence[str], likeness: Sequence[Sequence[float]]) -> str:
    """Every two; the deeper the colour, the more alike, from the least alike of all."""
    others = [value for one, row in enumerate(likeness) for other, value in enumerate(row) if one != other]
    low, high = min(others), max(others)
    head = "".join(f'<th scope="col" title="{escape(line)}">{number}</th>' for number, line in enumerate(lines, 1))
    body = []
    for one, (line, row) in enumerate(zip(lines, likeness, strict=True)):
        cells = [
            f'<td style="--p:{(value - low) / max(high - low, 1e-9):.2f}">{value:.2f}</td>'
            if one != other
            else "<td>·</td>"
            for other, value in enumerate(row)
        ]
        body.append(f'<tr><th scope="row"><i>{one + 1}</i>{escape(line)}</th>{"".join(cells)}</tr>')
    label = escape(t("map_table"))
    return (
        f'<div class="mf-odds mf-likeness" tabindex="0" role="group" aria-label="{label}"><table>'
        f"<thead><tr><td></td>{head}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
    )
