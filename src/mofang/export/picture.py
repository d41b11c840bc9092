"""Models that were checked against the same one on the same texts, as a picture: size against quality, against speed.

kb eval's picture is SVG, which many programs that show a report do not.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mofang.export.paper import INK, PALE, Axis, Paper
from mofang.models.base import ModelRef

FILE = "picture.png"
WIDTH, HEIGHT = 1120, 520
"""As all lengths here in points (paper.SCALE)."""
PANELS = ((84, 560), (684, 1080))
"""Left and right border of each."""
TOP, BOTTOM = 106, 448
COLOURS = {"new": "#b4652a", "other": "#2f5fd0", "reference": "#8a9bb0"}
LEAST_KL = 1e-5
"""What the axis begins with: below is the noise of computing in another order."""


@dataclass(frozen=True, slots=True)
class Point:
    number: int
    """In the report's table; stands for a name that the picture has no letters for."""
    name: str
    size_bytes: int
    kl: float | None
    """Mean KL divergence in nats; None where tokenizers differ."""
    ratio: float
    """Of bits per byte, to the reference's."""
    speed: float | None
    """Tokens of an answer a second."""
    is_new: bool = False
    is_reference: bool = False


def points(models: Sequence[ModelRef], ref: ModelRef, found: dict[str, Any]) -> list[Point]:
    """This check's model, those that hold a check against the same reference on the same texts, and the reference; by
    size."""
    wanted = (found["reference"]["sha256"], found["texts_sha256"])
    rows = [(ref.name, ref.size_bytes, found, True)]
    rows += [
        (other.name, other.size_bytes, kept, False)
        for other in models
        for kept in (other.manifest.get("checks") or {}).get("against", ())
        if other.name != ref.name and (kept["reference"]["sha256"], kept["texts_sha256"]) == wanted
    ]
    made = [
        Point(0, name, size, kept.get("mean_kl"), kept["ratio"], _decode(kept.get("speed")), is_new=is_new)
        for name, size, kept, is_new in rows
    ]
    speeds = [_decode(kept.get("reference_speed")) for _, _, kept, _ in rows]
    reference = found["reference"]
    speed = next((one for one in speeds if one is not None), None)
    kl = 0.0 if any(one.kl is not None for one in made) else None
    made.append(Point(0, reference["name"], reference["size_bytes"], kl, 1.0, speed, is_reference=True))
    made.sort(key=lambda one: (one.size_bytes, one.name))
    return [
        Point(number, one.name, one.size_bytes, one.kl, one.ratio, one.speed, one.is_new, one.is_reference)
        for number, one in enumerate(made, 1)
    ]


def _decode(speed: dict[str, Any] | None) -> float | None:
    return (speed or {}).get("predicted_per_second")


def draw(points: Sequence[Point], path: Path, found: dict[str, Any]) -> None:
    """Write the PNG, so that it is never seen half."""
    paper = Paper(WIDTH, HEIGHT, room="export", names=[one.name for one in points])
    paper.text(PANELS[0][0], 22, paper.say("picture_title", name=found["reference"]["name"]), 20)
    paper.text(
        PANELS[0][0], 52, paper.say("picture_texts", texts=", ".join(one["text"] for one in found["texts"])), 13, PALE
    )
    sizes = Axis.linear([one.size_bytes / 1e6 for one in points])
    compared = [one for one in points if one.kl is not None]
    if len(compared) > 1:
        quality = Axis.powers([max(one.kl or 0.0, LEAST_KL) for one in compared], LEAST_KL)
        heights = [(one, max(one.kl or 0.0, LEAST_KL)) for one in compared]
        _panel(paper, PANELS[0], sizes, quality, paper.say("picture_kl"), heights)
    else:
        ratios = [(one, one.ratio) for one in points]
        _panel(paper, PANELS[0], sizes, Axis.around([y for _, y in ratios]), paper.say("picture_ratio"), ratios)
    timed = [(one, one.speed) for one in points if one.speed is not None]
    _panel(paper, PANELS[1], sizes, Axis.linear([y for _, y in timed]), paper.say("picture_speed"), timed)
    paper.save(path)


def _panel(
    paper: Paper, sides: tuple[int, int], across: Axis, up: Axis, title: str, heights: Sequence[tuple[Point, float]]
) -> None:
    """Axes with their marks, and the points."""
    left, right = sides
    paper.frame((left, TOP, right, BOTTOM), across, up, title, paper.say("picture_size"))
    if not heights:
        paper.text((left + right) / 2, (TOP + BOTTOM) / 2, paper.say("picture_none"), 13, PALE, "mm")
    spots = [
        (
            left + across.place(one.size_bytes / 1e6) * (right - left),
            BOTTOM - min(1.0, max(0.0, up.place(value))) * (BOTTOM - TOP),
            one,
        )
        for one, value in heights
    ]
    taken = [(x - 7, y - 7, x + 7, y + 7) for x, y, _ in spots]
    for x, y, one in spots:
        colour = COLOURS["new" if one.is_new else "reference" if one.is_reference else "other"]
        paper.dot(x, y, colour, hollow=one.is_reference)
    for x, y, one in spots:
        _label(paper, x, y, one, sides, taken)


def _label(
    paper: Paper, x: float, y: float, one: Point, sides: tuple[int, int], taken: list[tuple[float, float, float, float]]
) -> None:
    """The name beside its point, where nothing else stands."""
    name = one.name if paper.writes(one.name) else f"[{one.number}]"
    width = paper.width_of(name, 12)
    right = x + 10 + width <= sides[1] + 36
    left_x = x + 10 if right else x - 10 - width
    for shift in (0, -14, 14, -28, 28, -42, 42, -56, 56):
        box = (left_x, y + shift - 7, left_x + width, y + shift + 7)
        if not any(box[0] < b[2] and b[0] < box[2] and box[1] < b[3] and b[1] < box[3] for b in taken):
            break
    taken.append(box)
    paper.text(left_x, y + shift, name, 12, INK if one.is_new else PALE, "lm")
