"""Models that read a text, whatever form they lie in: what each expects at every place, over its whole vocabulary.

A GGUF is read by llama.cpp's library as the engine runs it, a Hugging Face or GPTQ folder by PyTorch in float32. Each
form has one reader; check.py knows only the questions.
"""

import inspect
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mofang import settings
from mofang.engine.llama import library
from mofang.errors import Invalid, MissingExtra, TooLarge, Unreadable
from mofang.models.base import ModelRef
from mofang.models.formats import FORMATS
from mofang.platform import has_module, memory
from mofang.tokenizer import load as load_tokenizer

WINDOW = 512
"""Tokens that are read as one, each window from its beginning: what published figures of llama.cpp are read with."""
BLOCK_BYTES = library.BLOCK_BYTES


class Reader(Protocol):
    """A model that reads. `close` frees it."""

    n_vocab: int
    """Rows of its head."""
    n_named: int
    """Of these, those that are tokens; the others are padding."""
    window: int
    tools: dict[str, str]
    """Programs that compute, with their versions."""

    def encode(self, text: str) -> list[int]: ...

    def data(self, token_id: int) -> bytes:
        """The bytes that a token stands for."""
        ...

    def begin(self) -> list[int]:
        """The ids that stand before every text."""
        ...

    def read(self, ids: Sequence[int]) -> Iterator[NDArray[np.float32]]:
        """Blocks (n, n_vocab) of natural log-probabilities: one row for each id, what is expected after it."""
        ...

    def close(self) -> None: ...


def open_reader(ref: ModelRef) -> Reader:
    """Raises Invalid for a form that cannot be read, TooLarge before it is loaded, MissingExtra, MissingSystem,
    Unreadable."""
    reader = _READERS.get(ref.format)
    if reader is None or not ref.path.exists() or (ref.format == "gguf" and not ref.path.is_file()):
        raise Invalid("export.not_comparable", param="model", name=ref.name, format=ref.format)
    made: Reader = reader(ref)
    return made


class _Gguf:
    """Over llama.cpp's library."""

    def __init__(self, ref: ModelRef) -> None:
        path, name = library.find(settings.load())
        self._model = library.Model(library.load(path), ref.path, n_ctx=WINDOW)
        self.n_vocab = self._model.n_vocab
        self.n_named = _named(ref, self.n_vocab)
        self.window = min(WINDOW, self._model.n_ctx_train or WINDOW)
        self.tools = {"llama.cpp": name}
        self.encode, self.data, self.begin = self._model.tokenize, self._model.data, self._model.begin
        self.read, self.close = self._model.read, self._model.close


class _Folder:
    """Over PyTorch."""

    def __init__(self, ref: ModelRef) -> None:
        if not has_module("torch"):
            raise MissingExtra("core.missing_extra", name=ref.name, library="torch", extra="train")
        import torch
        import transformers

        from mofang.export.load import causal_model

        needed, available = FORMATS.get(ref.format).facts(ref.path).parameters * 4, memory().available
        if needed > available:
            sizes = {"needed": f"{needed / 1e9:.1f}", "available": f"{available / 1e9:.1f}"}
            raise TooLarge("export.check_too_large", name=ref.name, **sizes)
        self._tokenizer = load_tokenizer(ref.path)
        self._model: Any = causal_model(ref)
        self._torch, self._new_cache = torch, transformers.DynamicCache
        accepted = inspect.signature(self._model.forward).parameters
        self._cache = "cache" if "cache" in accepted else "past_key_values"  # renamed in transformers 5.24
        self.n_vocab = int(self._model.config.get_text_config().vocab_size)
        self.n_named = self._tokenizer.n_vocab
        longest = getattr(self._model.config.get_text_config(), "max_position_embeddings", None)
        self.window = min(WINDOW, longest or WINDOW)
        self.tools = {"torch": str(torch.__version__), "transformers": str(transformers.__version__)}
        self.encode, self.begin = self._tokenizer.encode, self._tokenizer.begin
        self.data = self._tokenizer.backend.data

    def read(self, ids: Sequence[int]) -> Iterator[NDArray[np.float32]]:
        """In blocks over a cache of keys and values, so that no more rows are held than one block has."""
        torch, n = self._torch, max(32, BLOCK_BYTES // (4 * self.n_vocab))
        cache = self._new_cache(config=self._model.config)
        for at in range(0, len(ids), n):
            with torch.no_grad():
                given = torch.tensor(ids[at : at + n])[None]
                logits = self._model(given, use_cache=True, **{self._cache: cache}).logits[0]
                rows: NDArray[np.float32] = torch.log_softmax(logits.float(), -1).numpy()
            yield rows

    def close(self) -> None:
        self._model = None


_READERS: dict[str, Any] = {"gguf": _Gguf, "hf": _Folder, "gptq": _Folder}
"""Form → what reads it."""
READABLE = tuple(_READERS)


def _named(ref: ModelRef, n_vocab: int) -> int:
    try:
        return load_tokenizer(ref.path).n_vocab
    except Unreadable:  # a kind that only llama.cpp cuts by: every row counts
        return n_vocab
