"""Which tokens a model's embedding matrix holds to be alike. Blocks: seconds for a large vocabulary.

A tokenizer takes as long to read as the matrix, so the latest ones are kept, and answers, which are small. One look
at a time: it takes a whole core.
"""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from mofang.errors import Invalid
from mofang.models.rows import nearest, open_rows
from mofang.server.shapes import whole
from mofang.tokenizer import load
from mofang.tokenizer.base import Cutter

CUTTERS: Final = 2
ANSWERS: Final = 256
MOST: Final = 100
"""Neighbours of a token that can be asked for."""

Kept = dict[Any, Any]


class Neighbours:
    """Safe from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._cutters: Kept = {}
        self._answers: Kept = {}

    def of(self, path: Path, name: str, token: str | int, n: int) -> dict[str, Any]:
        """The `n` tokens nearest to `token` (its text, or its id) by cosine. `name` is the model's, for errors.

        Raises Invalid for a text of several tokens and an id beyond the vocabulary, Unreadable for a model without a
        matrix of its own.
        """
        stat = path.stat()
        key = (str(path), stat.st_mtime_ns, stat.st_size)
        with self._lock:
            rows = open_rows(path)
            cutter = _kept(self._cutters, key, CUTTERS, lambda: load(path).backend)
            wanted = _one(cutter, token, name) if isinstance(token, str) else token
            n_tokens = min(cutter.n_vocab, rows.n_rows)
            if wanted >= n_tokens:
                raise Invalid("server.no_token", param="id", name=name, id=wanted, last=n_tokens - 1)
            near = _kept(self._answers, (*key, wanted), ANSWERS, lambda: nearest(rows, wanted, MOST, n_tokens))
        return {
            "token": _shape(cutter, wanted),
            "data": [{**_shape(cutter, row), "cosine": cosine} for row, cosine in near[:n]],
            "n_vocab": n_tokens,
            "dimensions": rows.n_columns,
            "type": rows.type,
        }


def _kept(kept: Kept, key: Any, most: int, make: Callable[[], Any]) -> Any:
    """What is kept under `key`, made where it is not; the one unused for longest makes room."""
    kept[key] = kept.pop(key) if key in kept else make()
    while len(kept) > most:
        kept.pop(next(iter(kept)))
    return kept[key]


def _one(cutter: Cutter, text: str, name: str) -> int:
    """The special token of that name, or the one token that the text is."""
    special = cutter.token_id(text)
    if special is not None and special in cutter.added():
        return special
    ids = cutter.spell(text.encode())
    if len(ids) != 1:
        pieces = " ".join(f"{cutter.data(one).decode(errors='replace')!r} ({one})" for one in ids)
        raise Invalid("server.not_one_token", param="token", text=text, name=name, n=len(ids), pieces=pieces)
    return ids[0]


def _shape(cutter: Cutter, token_id: int) -> dict[str, Any]:
    """`piece` is None for a token that is part of a character, as in /v1/tokenize."""
    raw = cutter.data(token_id)
    return {"id": token_id, "piece": whole(raw), "bytes": list(raw)}
