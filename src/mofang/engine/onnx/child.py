"""The child process of the engine `onnx`: `python -m mofang.engine.onnx.child`. See worker/serve.py."""

import base64
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mofang.engine.worker.serve import main
from mofang.errors import TooLarge


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
        for number, (one, text) in enumerate(zip(ids, call["texts"], strict=True)):
            if len(one) > self.facts["n_ctx"]:
                values = {"number": number, "text": text[:40] + "…", "n_tokens": len(one), "n_ctx": self.facts["n_ctx"]}
                raise TooLarge("engine.text_too_long", **values)
        vectors = self._bert.embed(ids)
        return {"vectors": base64.b64encode(vectors.tobytes()).decode(), "n_tokens": sum(map(len, ids))}


if __name__ == "__main__":
    main(Embedding)
