"""The child process that reads texts with llama.cpp's library: `python -m mofang.engine.llama.reader`.

See worker/serve.py for how it is told, reading.py for who asks.
"""

from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import numpy as np

from mofang.engine.llama import library
from mofang.engine.texts import beginning
from mofang.engine.worker.generate import Left
from mofang.engine.worker.serve import main

WINDOW = 2048
"""Tokens that are read as one, each window from its beginning; fewer where the model was trained for fewer."""


class Reader:
    """mofang.engine.worker.serve.Calls: one call, `read`."""

    def __init__(self, configuration: dict[str, Any]) -> None:
        library.mark_alone()
        loaded = library.load(Path(configuration["library"]))
        self._model = library.Model(
            loaded, Path(configuration["path"]), n_ctx=WINDOW, n_threads=configuration["n_threads"]
        )
        self.facts: dict[str, Any] = {}

    def answer(self, call: dict[str, Any], gone: Callable[[], bool]) -> Any:
        return self._read(call["text"], call["n_tokens"], gone)

    def _read(self, text: str, n_tokens: int, gone: Callable[[], bool]) -> Generator[dict[str, Any], None, None]:
        model = self._model
        _, ids = beginning(text, n_tokens, model.tokenize)
        window = min(WINDOW, model.n_ctx_train or WINDOW)
        forced: list[float] = []
        n_bytes = 0
        for begin in range(0, len(ids), window):
            part = ids[begin : begin + window]
            n_bytes += sum(len(model.data(token_id)) for token_id in part[1:])
            at = 1
            for rows in model.read(part):
                if gone():
                    raise Left
                nexts = part[at : at + len(rows)]
                forced += rows[np.arange(len(nexts)), nexts].tolist()
                at += len(rows)
                yield {"done": begin + min(at, len(part)), "total": len(ids)}
        yield {"forced": forced, "n_bytes": n_bytes}


if __name__ == "__main__":
    main(Reader)
