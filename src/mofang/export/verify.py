"""Whether a model that was written reads texts as the one that it was made from. No torch."""

from pathlib import Path
from typing import Any

from mofang.errors import Unreadable
from mofang.tokenizer import Tokenizer, load

PROBE = "模坊 is a workshop（坊）for models，共 42 个。\n\n  don't 安装"
"""A text whose ids must be the same before and after."""


def verify(made: Path, ours: Tokenizer) -> dict[str, Any]:
    """Read it back: its template, its end of an answer and a text's ids must be the source's. Raises Unreadable."""
    theirs = load(made)
    if ours.chat_template != theirs.chat_template:
        raise Unreadable("export.template_lost", path=made)
    if ours.eos_id != theirs.eos_id:
        raise Unreadable("export.eos_differs", path=made, found=theirs.eos_id, wanted=ours.eos_id)
    if ours.encode(PROBE) != theirs.encode(PROBE):
        raise Unreadable("export.ids_differ", path=made, text=PROBE)
    return {"chat_template": "same", "eos_token_id": theirs.eos_id, "ids": "same"}
