"""The child process: `python -m mofang.engine.sentence_transformers.child`. See worker/serve.py."""

from collections.abc import Callable
from typing import Any

from mofang.engine.worker.embed import answered, check_lengths
from mofang.engine.worker.serve import main


class Embedding:
    """Calls of an embedder: `embed` and `tokenize`."""

    def __init__(self, configuration: dict[str, Any]) -> None:
        from mofang.engine.sentence_transformers.core import Core  # torch, only here

        self._core = Core(configuration)
        self.facts = self._core.facts

    def answer(self, call: dict[str, Any], gone: Callable[[], bool]) -> Any:
        if call["call"] == "tokenize":
            return self._core.tokenize(call["text"])
        lengths = self._core.lengths(call["texts"], call["prompt"])
        check_lengths(call["texts"], lengths, self.facts["n_ctx"])
        return answered(self._core.embed(call["texts"], call["prompt"]), sum(lengths))


if __name__ == "__main__":
    main(Embedding)
