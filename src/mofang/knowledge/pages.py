"""Pages of PDFs as pictures, each drawn by a child (loaders/pdf_page.py) that cannot take the gateway with it."""

import json
import logging
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mofang.errors import Unreadable
from mofang.messages import Box

SECONDS = 20
"""That one page may take. An ordinary one, 1,400 pixels wide, takes .7 s on two busy cores, half of it the child's start
(2026-11-25)."""
AT_ONCE = 2
"""Pages that are drawn at the same time."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Page:
    """What is to be drawn. `page` from 1; `boxes` are marked."""

    path: Path
    name: str
    page: int
    boxes: Sequence[Box] = ()


def draw(page: Page, width: int) -> bytes:
    """PNG, `width` pixels wide or less. Blocks.

    Raises Unreadable: knowledge.page_not_drawn, knowledge.page_takes_long."""
    command = [
        *(sys.executable, "-m", "mofang.knowledge.loaders.pdf_page"),
        *(str(page.path), str(page.page), str(width), json.dumps(page.boxes), str(SECONDS)),
    ]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=SECONDS)
    except subprocess.TimeoutExpired as error:
        raise Unreadable("knowledge.page_takes_long", name=page.name, page=page.page, seconds=SECONDS) from error
    if done.returncode:
        told = done.stderr.decode(errors="replace").strip().rsplit("\n", 1)[-1]
        _log.warning("page %d of %s was not drawn (%d): %s", page.page, page.name, done.returncode, told)
        raise Unreadable("knowledge.page_not_drawn", name=page.name, page=page.page)
    return done.stdout
