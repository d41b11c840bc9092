"""What pictures for people are drawn on: a PNG by Pillow, which the base install has, with axes, points and words.

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

from mofang.strings import language, say

SCALE = 2
"""Pixels of a point, in which every length here is."""
GRID, INK, PALE = "#e4e4e4", "#222222", "#707070"
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
class Axis:
    """Values → 0 to 1, and the marks on it."""

    place: Callable[[float], float]
    marks: tuple[tuple[float, str], ...]

    @classmethod
    def linear(cls, values: Sequence[float]) -> "Axis":
        """From 0 to a little beyond the largest."""
        most = max([*values, 1e-9]) * 1.12
        return cls.between(0.0, most)

    @classmethod
    def around(cls, values: Sequence[float]) -> "Axis":
        low, high = min(values), max(values)
        room = max((high - low) * 0.15, 0.005)
        return cls.between(low - room, high + room)

    @classmethod
    def between(cls, low: float, high: float) -> "Axis":
        step = 10 ** floor(log10((high - low) / 4))
        step *= next(times for times in (1, 2, 5, 10) if (high - low) / (step * times) <= 5)
        first = ceil(low / step)
        digits = max(0, -floor(log10(step)))
        marks = [(n * step, f"{n * step:,.{digits}f}") for n in range(first, floor(high / step) + 1)]
        return cls(lambda value: (value - low) / (high - low), tuple(marks))

    @classmethod
    def powers(cls, values: Sequence[float], least: float = 0.0) -> "Axis":
        """Whole powers of ten around the values. What is not above `least` is marked as "less"."""
        low, high = floor(log10(min(values))), ceil(log10(max(values)) + 0.05)
        high = max(high, low + 1)
        marks = [(10.0**n, f"{'< ' if 10.0**n <= least else ''}{10.0**n:g}") for n in range(low, high + 1)]
        return cls(lambda value: (log10(value) - low) / (high - low), tuple(marks))

    @classmethod
    def counts(cls, values: Sequence[int]) -> "Axis":
        """Whole numbers, with room on both sides; marked where there are values, as far as marks have room."""
        low, high = min(values) - 0.5, max(values) + 0.5
        every = ceil(len(values) / 20)
        return cls(lambda value: (value - low) / (high - low), tuple((n, f"{n}") for n in sorted(values)[::every]))


class Paper:
    """An image, and how things are put on it. `room`: whose strings its sentences are."""

    def __init__(self, width: int, height: int, *, room: str, names: Sequence[str] = ()) -> None:
        self.image = Image.new("RGB", (width * SCALE, height * SCALE), "#ffffff")
        self._draw = ImageDraw.Draw(self.image)
        self._room = room
        chinese = language() == "zh" or any(not name.isascii() for name in names)
        self._font = font = chinese_font() if chinese else None
        self._index = 2 if font and "cjk" in font.name.lower() and font.suffix == ".ttc" else 0
        """Noto's collections begin with Japanese shapes; Simplified Chinese is their third."""

    def say(self, key: str, **values: Any) -> str:
        """A sentence that there are letters for."""
        lang = None if self._font else "en"
        told = {name: self.letters(str(value)) for name, value in values.items()}
        return say(f"{self._room}.{key}", lang=lang, **told)

    def writes(self, name: str) -> bool:
        """Whether there are letters for all of it."""
        return bool(self._font) or name.isascii()

    def letters(self, text: str) -> str:
        """`text`, as far as there are letters for it."""
        return text if self._font else text.encode("ascii", "replace").decode()

    def text(self, x: float, y: float, text: str, size: int, colour: str = INK, anchor: str = "la") -> None:
        self._draw.text((x * SCALE, y * SCALE), text, fill=colour, font=self._sized(size), anchor=anchor)

    def width_of(self, text: str, size: int) -> float:
        return float(self._sized(size).getlength(text)) / SCALE

    def frame(self, box: tuple[int, int, int, int], across: Axis, up: Axis, title: str, below: str) -> None:
        """Axes with their marks. `box`: left, top, right, bottom."""
        left, top, right, bottom = box
        self.text(left, top - 22, title, 14)
        for value, word in up.marks:
            y = bottom - up.place(value) * (bottom - top)
            self.line((left, y, right, y), GRID)
            self.text(left - 8, y, word, 12, PALE, "rm")
        for value, word in across.marks:
            x = left + across.place(value) * (right - left)
            self.line((x, bottom, x, bottom + 5), GRID)
            self.text(x, bottom + 9, word, 12, PALE, "ma")
        self.text((left + right) / 2, bottom + 34, below, 13, PALE, "ma")

    def dot(self, x: float, y: float, colour: str, *, hollow: bool = False) -> None:
        box = [(x - 6) * SCALE, (y - 6) * SCALE, (x + 6) * SCALE, (y + 6) * SCALE]
        self._draw.ellipse(box, fill="#ffffff" if hollow else colour, outline=colour, width=2 * SCALE)

    def line(self, ends: Sequence[float], colour: str, width: float = 1) -> None:
        """Through every x, y of `ends`."""
        self._draw.line([end * SCALE for end in ends], fill=colour, width=round(width * SCALE), joint="curve")

    def save(self, path: Path) -> None:
        """Write the PNG, so that it is never seen half."""
        aside = path.with_name(f".{path.name}.part")
        self.image.save(aside, "PNG", optimize=True)
        aside.replace(path)

    def _sized(self, size: int) -> Any:
        if self._font:
            return ImageFont.truetype(str(self._font), size * SCALE, index=self._index)
        return ImageFont.load_default(size * SCALE)
