"""Models that were checked against the same one on the same texts, as a picture: size against quality, against speed.

A PNG by Pillow, which the base install has; kb eval's picture is SVG, which many programs that show a report do not.
Chinese stands in it where the system has a font for it, English where not.
"""

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil, floor, log10
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from mofang.models.base import ModelRef
from mofang.strings import language, say

FILE = "picture.png"
WIDTH, HEIGHT, SCALE = 1120, 520, 2
"""In points; SCALE pixels each."""
PANELS = ((84, 560), (684, 1080))
"""Left and right border of each."""
TOP, BOTTOM = 106, 448
COLOURS = {"new": "#b4652a", "other": "#2f5fd0", "reference": "#8a9bb0"}
GRID, INK, PALE = "#e4e4e4", "#222222", "#707070"
LEAST_KL = 1e-5
"""What the axis begins with: below is the noise of computing in another order."""
FONTS = (
    "NotoSansCJK", "NotoSansSC", "NotoSerifCJK", "SourceHanSans", "wqy-", "PingFang", "Hiragino Sans GB", "msyh", "simhei",
    "simsun", "DroidSansFallback", "uming", "ukai",
)  # fmt: skip
"""How the files of fonts with Chinese are named, the best first."""
PLACES: dict[str, tuple[str, ...]] = {
    "linux": ("/usr/share/fonts", "/usr/local/share/fonts", "~/.local/share/fonts", "~/.fonts"),
    "darwin": ("/System/Library/Fonts", "/Library/Fonts", "~/Library/Fonts"),
    "win32": (r"C:\Windows\Fonts",),
}


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
    paper = _Paper(chinese_font() if language() == "zh" or any(not one.name.isascii() for one in points) else None)
    paper.text(PANELS[0][0], 22, paper.say("picture_title", name=found["reference"]["name"]), 20)
    paper.text(
        PANELS[0][0], 52, paper.say("picture_texts", texts=", ".join(one["text"] for one in found["texts"])), 13, PALE
    )
    sizes = _Axis.linear([one.size_bytes / 1e6 for one in points])
    compared = [one for one in points if one.kl is not None]
    if len(compared) > 1:
        quality = _Axis.powers([max(one.kl or 0.0, LEAST_KL) for one in compared])
        heights = [(one, max(one.kl or 0.0, LEAST_KL)) for one in compared]
        paper.panel(PANELS[0], sizes, quality, paper.say("picture_kl"), heights)
    else:
        ratios = [(one, one.ratio) for one in points]
        paper.panel(PANELS[0], sizes, _Axis.around([y for _, y in ratios]), paper.say("picture_ratio"), ratios)
    timed = [(one, one.speed) for one in points if one.speed is not None]
    paper.panel(PANELS[1], sizes, _Axis.linear([y for _, y in timed]), paper.say("picture_speed"), timed)
    aside = path.with_name(f".{path.name}.part")
    paper.image.save(aside, "PNG", optimize=True)
    aside.replace(path)


def chinese_font() -> Path | None:
    """A font file of this system that has Chinese."""
    found: list[tuple[int, bool, Path]] = []
    for place in PLACES.get(sys.platform, ()):
        for folder, _, files in os.walk(Path(place).expanduser()):
            for file in files:
                rank = next((at for at, name in enumerate(FONTS) if file.lower().startswith(name.lower())), None)
                if rank is not None and file.lower().endswith((".ttf", ".ttc", ".otf")):
                    plain = not any(weight in file.lower() for weight in ("bold", "black", "light", "thin"))
                    found.append((rank, not plain, Path(folder) / file))
    return min(found)[2] if found else None


@dataclass(frozen=True, slots=True)
class _Axis:
    """Values → 0 to 1, and the marks on it."""

    place: Callable[[float], float]
    marks: tuple[tuple[float, str], ...]

    @classmethod
    def linear(cls, values: Sequence[float]) -> "_Axis":
        """From 0 to a little beyond the largest."""
        most = max([*values, 1e-9]) * 1.12
        return cls.between(0.0, most)

    @classmethod
    def around(cls, values: Sequence[float]) -> "_Axis":
        low, high = min(values), max(values)
        room = max((high - low) * 0.15, 0.005)
        return cls.between(low - room, high + room)

    @classmethod
    def between(cls, low: float, high: float) -> "_Axis":
        step = 10 ** floor(log10((high - low) / 4))
        step *= next(times for times in (1, 2, 5, 10) if (high - low) / (step * times) <= 5)
        first = ceil(low / step)
        digits = max(0, -floor(log10(step)))
        marks = [(n * step, f"{n * step:,.{digits}f}") for n in range(first, floor(high / step) + 1)]
        return cls(lambda value: (value - low) / (high - low), tuple(marks))

    @classmethod
    def powers(cls, values: Sequence[float]) -> "_Axis":
        """Whole powers of ten around the values."""
        low, high = floor(log10(min(values))), ceil(log10(max(values)) + 0.05)
        high = max(high, low + 1)
        marks = [(10.0**n, f"{'< ' if 10.0**n <= LEAST_KL else ''}{10.0**n:g}") for n in range(low, high + 1)]
        return cls(lambda value: (log10(value) - low) / (high - low), tuple(marks))


class _Paper:
    """An image, and how things are put on it."""

    def __init__(self, font: Path | None) -> None:
        self.image = Image.new("RGB", (WIDTH * SCALE, HEIGHT * SCALE), "#ffffff")
        self._draw = ImageDraw.Draw(self.image)
        self._font = font
        self._index = 2 if font and "cjk" in font.name.lower() and font.suffix == ".ttc" else 0
        """Noto's collections begin with Japanese shapes; Simplified Chinese is their third."""

    def say(self, key: str, **values: Any) -> str:
        """A sentence that there are letters for."""
        lang = None if self._font else "en"
        return say(f"export.{key}", lang=lang, **{name: self.letters(str(value)) for name, value in values.items()})

    def letters(self, text: str) -> str:
        """`text`, as far as there are letters for it."""
        return text if self._font else text.encode("ascii", "replace").decode()

    def text(self, x: float, y: float, text: str, size: int, colour: str = INK, anchor: str = "la") -> None:
        self._draw.text((x * SCALE, y * SCALE), text, fill=colour, font=self._sized(size), anchor=anchor)

    def panel(
        self, sides: tuple[int, int], across: _Axis, up: _Axis, title: str, heights: Sequence[tuple[Point, float]]
    ) -> None:
        """Axes with their marks, and the points."""
        left, right = sides
        self.text(left, TOP - 22, title, 14)
        for value, word in up.marks:
            y = BOTTOM - up.place(value) * (BOTTOM - TOP)
            self._line(left, y, right, y)
            self.text(left - 8, y, word, 12, PALE, "rm")
        for value, word in across.marks:
            x = left + across.place(value) * (right - left)
            self._line(x, BOTTOM, x, BOTTOM + 5)
            self.text(x, BOTTOM + 9, word, 12, PALE, "ma")
        self.text((left + right) / 2, BOTTOM + 34, self.say("picture_size"), 13, PALE, "ma")
        if not heights:
            self.text((left + right) / 2, (TOP + BOTTOM) / 2, self.say("picture_none"), 13, PALE, "mm")
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
            self._dot(x, y, one)
        for x, y, one in spots:
            self._label(x, y, one, sides, taken)

    def _label(
        self, x: float, y: float, one: Point, sides: tuple[int, int], taken: list[tuple[float, float, float, float]]
    ) -> None:
        """The name beside its point, where nothing else stands."""
        name = one.name if self._font or one.name.isascii() else f"[{one.number}]"
        width = self._sized(12).getlength(name) / SCALE
        right = x + 10 + width <= sides[1] + 36
        left_x = x + 10 if right else x - 10 - width
        for shift in (0, -14, 14, -28, 28, -42, 42, -56, 56):
            box = (left_x, y + shift - 7, left_x + width, y + shift + 7)
            if not any(box[0] < b[2] and b[0] < box[2] and box[1] < b[3] and b[1] < box[3] for b in taken):
                break
        taken.append(box)
        self.text(left_x, y + shift, name, 12, INK if one.is_new else PALE, "lm")

    def _dot(self, x: float, y: float, one: Point) -> None:
        colour = COLOURS["new" if one.is_new else "reference" if one.is_reference else "other"]
        box = [(x - 6) * SCALE, (y - 6) * SCALE, (x + 6) * SCALE, (y + 6) * SCALE]
        self._draw.ellipse(box, fill="#ffffff" if one.is_reference else colour, outline=colour, width=2 * SCALE)

    def _line(self, *ends: float) -> None:
        self._draw.line([end * SCALE for end in ends], fill=GRID, width=SCALE)

    def _sized(self, size: int) -> Any:
        if self._font:
            return ImageFont.truetype(str(self._font), size * SCALE, index=self._index)
        return ImageFont.load_default(size * SCALE)
