"""The child process of the engine `onnx`: `python -m mofang.engine.onnx.child`. See worker/serve.py."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from mofang.engine.worker.embed import answered, check_lengths
from mofang.engine.worker.serve import main


class Embedding:
    """Calls of an embedder: `embed` and `tokenize`."""

    def __init__(self, configuration: dict[str, Any]) -> None:
        import onnxruntime  # only here

        from mofang.engine.onnx.core import Bert

        self._bert = Bert(
            Path(configuration["path"]),
            Path(configuration["cache"]),
            dtype=configuration["dtype"],
            n_threads=configuration["n_threads"],
            sample=configuration["sample"],
        )
        shape = self._bert.shape
        self.facts = {
            "n_ctx": min(shape.n_ctx, configuration["n_ctx"]),
            "dimensions": shape.n_embd,
            "dtype": self._bert.dtype,
            "provider": f"onnxruntime {onnxruntime.__version__} {self._bert.dtype}",
        }

    def answer(self, call: dict[str, Any], gone: Callable[[], bool]) -> Any:
        if call["call"] == "tokenize":
            return self._bert.encode(call["text"])
        ids = self._bert.encode_all(call["texts"])
        lengths = [len(one) for one in ids]
        check_lengths(call["texts"], lengths, self.facts["n_ctx"])
        return answered(self._bert.embed(ids), sum(lengths))


if __name__ == "__main__":
    main(Embedding)
