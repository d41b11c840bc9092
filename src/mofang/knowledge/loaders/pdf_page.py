"""One page of a PDF as a picture, with spans marked: a program of its own, which `mofang.knowledge.pages` starts.

A page may hold pictures of any size, or be made to hurt. So it is drawn in a child that has its limits of memory and
time from the system: what goes wrong here ends this process and nothing else. PNG to standard output.
"""

import json
import sys
from typing import Final

import pypdfium2
from PIL import Image, ImageChops, ImageDraw

from mofang.platform import limit_process

MAX_PIXELS: Final = 12_000_000
"""A page of any shape is drawn at most so large, as one that is read by text recognition."""
MEMORY: Final = 2_000_000_000
"""Bytes of address space. Twelve million pixels are 48 MB, a few times; the rest is for what the page brings."""
MARK: Final = (255, 226, 130)
"""Yellow, multiplied onto the page: black letters stay black."""
EDGE: Final = (201, 138, 11)
AROUND: Final = 2.0
"""Points between a text's box and its mark's edge."""


def picture(path: str, page: int, width: int, boxes: list[list[float]]) -> Image.Image:
    """The page, counted from 1, `width` pixels wide or less. boxes: in points (left, bottom, right, top)."""
    document = pypdfium2.PdfDocument(path)
    sheet = document[page - 1]
    points = max(1.0, sheet.get_width()), max(1.0, sheet.get_height())
    bitmap = sheet.render(scale=min(width / points[0], (MAX_PIXELS / (points[0] * points[1])) ** 0.5))
    drawn = bitmap.to_pil().convert("RGB")
    place = bitmap.get_posconv(sheet)
    marks = Image.new("RGB", drawn.size, "white")
    pen = ImageDraw.Draw(marks)
    for left, bottom, right, top in boxes:
        corners = [place.to_bitmap(*one) for one in ((left - AROUND, bottom - AROUND), (right + AROUND, top + AROUND))]
        across, down = (sorted(edges) for edges in zip(*corners, strict=True))
        pen.rectangle([(across[0], down[0]), (across[1], down[1])], fill=MARK, outline=EDGE)
    return ImageChops.multiply(drawn, marks)


def main() -> None:
    path, page, width, boxes, seconds = sys.argv[1:]
    limit_process(memory_bytes=MEMORY, cpu_s=int(seconds))
    picture(path, int(page), int(width), json.loads(boxes)).save(sys.stdout.buffer, "PNG")


if __name__ == "__main__":
    main()
