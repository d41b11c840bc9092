"""Trainings side by side: their losses in one picture, what came of each, and what was asked of one and not of the others."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

import streamlit as st

from mofang.ui import figures
from mofang.ui.components.base import chart, fragment, quiet
from mofang.ui.components.runs import Run
from mofang.ui.curve import Curve
from mofang.ui.session import client, language, t

MEASURES: Final = ("eval_loss", "loss")
MOST: Final = 6
"""Lines that an eye can tell apart."""
NAMING: Final = ("name",)
"""Fields that differ without making a difference."""


@fragment()
def show(known: Sequence[Run]) -> None:
    titles = _titles(known)
    chosen = st.multiselect(
        t("compare_runs"),
        list(titles),
        default=list(titles)[:2],
        format_func=titles.__getitem__,
        max_selections=MOST,
        key="compare_runs",
        select_all=False,
    )
    measure = str(
        st.segmented_control(
            t("compare_measure"),
            MEASURES,
            default=MEASURES[0],
            required=True,
            format_func=lambda name: t(f"curve_{name}"),
            key="compare_measure",
            label_visibility="collapsed",
        )
    )
    if not chosen:
        quiet(t("compare_none"))
        return
    runs = [client().run(own) for own in chosen]
    curves = [Curve().grown(client().run_metrics(own)) for own in chosen]
    points = [
        {"step": step, "loss": value, "series": titles[run["id"]]}
        for run, curve in zip(runs, curves, strict=True)
        for step, value in curve.points(measure)
    ]
    if points:
        chart(points, _spec([titles[own] for own in chosen]), t("compare_alt"))
    else:
        quiet(t("compare_no_points"))
    rows = [*_outcomes(runs, curves), *_fields(runs)]
    columns = [titles[own] for own in chosen]
    st.dataframe(
        [{t("compare_what"): name, **dict(zip(columns, values, strict=True))} for name, values in rows],
        hide_index=True,
        width="stretch",
    )


def _titles(known: Sequence[Run]) -> dict[str, str]:
    """A run's id → what it is called here: its title, with its moment where two have the same."""
    titles = [str(run["title"]) for run in known]
    return {
        run["id"]: title
        if titles.count(title) == 1
        else f"{title} · {figures.moment(run['created_at'])} · {run['id'][-6:]}"
        for run, title in zip(known, titles, strict=True)
    }


def _outcomes(runs: Sequence[Run], curves: Sequence[Curve]) -> list[tuple[str, list[str]]]:
    """What came of each: last losses, speed, time."""
    shown = [(t(f"curve_{name}"), [_last(curve.of(name)) for curve in curves]) for name in ("loss", "eval_loss")]
    shown.append((t("tokens_per_s"), [f"{curve.tokens_per_s:,.0f}" if curve.tokens_per_s else "" for curve in curves]))
    times = [figures.seconds_between(run["started_at"], run["ended_at"]) if run["started_at"] else 0 for run in runs]
    shown.append((t("run_took"), [figures.duration(language(), time) if time else "" for time in times]))
    return [(name, values) for name, values in shown if any(values)]


def _last(values: Sequence[tuple[int, float]]) -> str:
    return f"{values[-1][1]:.4f}" if values else ""


def _fields(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """Recipe fields that are not the same in all, by their short names."""
    recipes = [run["recipe"] for run in runs]
    labels: dict[str, str] = {}
    told = client().recipes()
    for kind in dict.fromkeys(str(run["kind"]) for run in runs):
        labels |= {name: str(shape["title"]) for name, shape in told[kind]["schema"]["properties"].items()}
    method = [(t("train_method"), [str(run["kind"]) for run in runs])] if len({run["kind"] for run in runs}) > 1 else []
    return method + [(labels.get(name, name), [_said(one.get(name)) for one in recipes]) for name in differing(recipes)]


def differing(recipes: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names of fields that do not have the same value everywhere, in the order in which they are met."""
    names = dict.fromkeys(name for one in recipes for name in one if name not in NAMING)
    return [name for name in names if len({json.dumps(one.get(name), sort_keys=True) for one in recipes}) > 1]


def _said(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return "" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _spec(series: Sequence[str]) -> dict[str, Any]:
    step = {"field": "step", "type": "quantitative", "title": t("curve_step")}
    loss = {"field": "loss", "type": "quantitative", "title": t("curve_value")}
    return {
        "height": 320,
        "mark": {"type": "line", "strokeWidth": 2, "point": {"size": 30}},
        "encoding": {
            "x": {**step, "axis": {"tickMinStep": 1, "format": "d", "grid": False}, "scale": {"nice": False}},
            "y": {**loss, "scale": {"zero": False}, "axis": {"tickCount": 5, "format": ".3~g"}},
            "color": {
                "field": "series",
                "type": "nominal",
                "scale": {"domain": list(series)},
                "legend": {"title": None, "columns": 2, "labelLimit": 240},
            },
            "tooltip": [
                {"field": "series", "type": "nominal", "title": t("curve_series")},
                step,
                {**loss, "format": ".4f"},
            ],
        },
    }
