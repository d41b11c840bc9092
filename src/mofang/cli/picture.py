"""An evaluation as a picture: SVG, bars of each measure side by side by leg. Text only, no library, no script."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from mofang.strings import say

WIDTH, HEIGHT = 880, 420
LEFT, RIGHT, TOP, BOTTOM = 48, 16, 76, 78
"""Room around the bars, in px, as all lengths here."""
COLOURS = {"bm25": "#8a9bb0", "dense": "#5aa0a8", "fused": "#2f5fd0", "reranked": "#b4652a"}
FONT = "system-ui, 'Noto Sans CJK SC', 'PingFang SC', 'Microsoft YaHei', sans-serif"


def evaluation_svg(result: Mapping[str, Any]) -> str:
    """`result`: that of POST /v1/knowledge/{name}/evaluate."""
    legs: Mapping[str, Mapping[str, float]] = result["measures"]
    measures = list(next(iter(legs.values()), {}))
    width, height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
    parts = [*_grid(width, height)]
    group = width / max(1, len(measures))
    bar = group * 0.8 / max(1, len(legs))
    for at, measure in enumerate(measures):
        start = LEFT + at * group + group * 0.1
        for place, leg in enumerate(legs):
            value = legs[leg][measure]
            tall = max(0.0, min(1.0, value)) * height
            x, y = start + place * bar, TOP + height - tall
            parts.append(
                f'<rect x="{x:.1f}" y="{y:.1f}" width="{bar * 0.92:.1f}" height="{tall:.1f}" fill="{COLOURS[leg]}" rx="1.5">'
                f"<title>{escape(leg)} {escape(measure)}: {value:.4f}</title></rect>"
            )
            parts.append(_text(x + bar * 0.46, y - 4, f"{value:.2f}".removeprefix("0"), 9.5, "middle", "#555"))
        parts.append(_text(start + group * 0.4, TOP + height + 18, measure, 12, "middle", "#222"))
    title = say("cli.picture_title", name=result["knowledge"], n=result["n_judged"])
    head = [_text(LEFT, 26, title, 16, "start", "#111", "600"), *_legend(list(legs))]
    foot = [
        _text(LEFT, HEIGHT - 34 + 16 * line, sentence, 11.5, "start", "#555")
        for line, sentence in enumerate(_foot(result))
    ]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        f'role="img" aria-label="{escape(title)}" font-family="{escape(FONT)}">\n'
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>\n' + "\n".join([*parts, *head, *foot]) + "\n</svg>\n"
    )


def _grid(width: float, height: float) -> Sequence[str]:
    lines = []
    for tenth in range(0, 11, 2):
        y = TOP + height - height * tenth / 10
        lines.append(f'<line x1="{LEFT}" x2="{LEFT + width}" y1="{y:.1f}" y2="{y:.1f}" stroke="#e4e4e4"/>')
        lines.append(_text(LEFT - 6, y + 4, f"{tenth / 10:.1f}", 11, "end", "#777"))
    return lines


def _legend(legs: Sequence[str]) -> list[str]:
    parts = []
    for place, leg in enumerate(legs):
        x = LEFT + 120 * place
        parts.append(f'<rect x="{x}" y="42" width="12" height="12" rx="2" fill="{COLOURS[leg]}"/>')
        parts.append(_text(x + 17, 52, say(f"cli.leg_{leg}"), 12, "start", "#333"))
    return parts


def _foot(result: Mapping[str, Any]) -> list[str]:
    latency = result["latency_ms"]
    lines = []
    if latency.get("n"):
        lines.append(say("cli.eval_latency", p50=latency["p50"], p99=latency["p99"], n=latency["n"]))
    if answers := result.get("answers"):
        lines.append(" · ".join(f"{name} {value}" for name, value in answer_figures(answers)))
    return lines


def answer_figures(answers: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(what, value) of how answers cite and refuse, those that could be measured."""
    refusal = answers.get("refusal") or {}
    figures = {
        "citation_precision": answers.get("citation_precision"),
        "citation_recall": answers.get("citation_recall"),
        "refusal_f1": refusal.get("f1"),
    }
    return [(say(f"cli.eval_{name}"), f"{value:.3f}") for name, value in figures.items() if value is not None]


def _text(x: float, y: float, text: str, size: float, anchor: str, colour: str, weight: str = "400") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" fill="{colour}" '
        f'font-weight="{weight}">{escape(text)}</text>'
    )
