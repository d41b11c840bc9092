"""llama.cpp as a library: what a GGUF model expects at every place of a text, whole windows at once.

A measuring tool, as llama-perplexity is, and no engine: what answers people is a server (child.py, native.py). It is the
build that the engine would run, through its C interface: the library of a native build, else the wheel's own file. Its
two large structs change from version to version: they go through as blobs, of which only the first words are set, and
these only where their defaults are the known ones.

A crash in C ends the whole process, so the library is loaded only where `mark_alone` was called: by the main of a
process of its own (mofang.launch.worker, reading.py), never by the gateway or a command. See docs/decisions/0008.
Source: llama.h. n_vocab: rows of the output head.
"""

import atexit
import ctypes as c
from collections import deque
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mofang.engine.llama.provider import choose
from mofang.engine.llama.wheel import Wheel
from mofang.errors import EngineFailed, MissingSystem, Unreadable
from mofang.platform import n_cores
from mofang.settings import Settings

BLOCK_BYTES = 64 << 20
"""Of one block of rows: a batch is no longer than that, whatever the vocabulary. llama.cpp holds as much again."""
BATCH = (32, 512)
"""Least and most tokens of a batch; beyond the most nothing is gained (llama.cpp's own default)."""
LAST_LINES = 8
COMPLAINTS, CONTINUED = (3, 4), 5
"""ggml_log_level: warnings and errors; more of the line before."""
BLOB_BYTES = 512
"""More than both structs take (160 and 88 in 2026-11)."""
CONTEXT: dict[str, tuple[int, int]] = {
    "n_ctx": (0, 512), "n_batch": (1, 2048), "n_ubatch": (2, 512), "n_seq_max": (3, 1), "n_outputs_max": (5, 0),
    "n_outputs_max_per_seq": (6, 1), "n_threads": (7, 4), "n_threads_batch": (8, 4),
}  # fmt: skip
"""llama_context_params: field → (which 32-bit word, its default)."""
MINUS_ONE = 0xBF800000
"""-1.0 as a float32's bits: "as the model says"."""
KNOWN = {4: 0, 9: 0, **dict.fromkeys(range(10, 14), 0xFFFFFFFF), 14: 0, 15: 0, 16: MINUS_ONE, 17: MINUS_ONE}
"""Words between and behind them, which are not set, and what they must be: if one differs, the struct is another one."""

_alone = False


def mark_alone() -> None:
    """Said once by the main of a process that may crash without taking anything along: the library may be loaded here."""
    global _alone
    _alone = True


class _Params(c.Structure):
    """A struct of unknown end, returned and passed by value: in memory under every calling convention, so its true size
    does not matter to who calls."""

    _fields_ = (("words", c.c_uint32 * (BLOB_BYTES // 4)),)


class _Batch(c.Structure):
    """llama_batch."""

    _fields_ = (
        ("n_tokens", c.c_int32),
        ("token", c.POINTER(c.c_int32)),
        ("embd", c.POINTER(c.c_float)),
        ("pos", c.POINTER(c.c_int32)),
        ("n_seq_id", c.POINTER(c.c_int32)),
        ("seq_id", c.POINTER(c.POINTER(c.c_int32))),
        ("logits", c.POINTER(c.c_int8)),
    )


_Log = c.CFUNCTYPE(None, c.c_int, c.c_char_p, c.c_void_p)
_SIGNATURES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "llama_backend_init": (None, ()),
    "llama_log_set": (None, (_Log, c.c_void_p)),
    "llama_model_default_params": (_Params, ()),
    "llama_context_default_params": (_Params, ()),
    "llama_model_load_from_file": (c.c_void_p, (c.c_char_p, _Params)),
    "llama_model_free": (None, (c.c_void_p,)),
    "llama_model_get_vocab": (c.c_void_p, (c.c_void_p,)),
    "llama_model_n_ctx_train": (c.c_int32, (c.c_void_p,)),
    "llama_vocab_n_tokens": (c.c_int32, (c.c_void_p,)),
    "llama_init_from_model": (c.c_void_p, (c.c_void_p, _Params)),
    "llama_free": (None, (c.c_void_p,)),
    "llama_batch_init": (_Batch, (c.c_int32, c.c_int32, c.c_int32)),
    "llama_batch_free": (None, (_Batch,)),
    "llama_get_memory": (c.c_void_p, (c.c_void_p,)),
    "llama_memory_clear": (None, (c.c_void_p, c.c_bool)),
    "llama_decode": (c.c_int32, (c.c_void_p, _Batch)),
    "llama_get_logits": (c.POINTER(c.c_float), (c.c_void_p,)),
    "llama_tokenize": (
        c.c_int32,
        (c.c_void_p, c.c_char_p, c.c_int32, c.POINTER(c.c_int32), c.c_int32, c.c_bool, c.c_bool),
    ),
    "llama_token_to_piece": (c.c_int32, (c.c_void_p, c.c_int32, c.c_char_p, c.c_int32, c.c_int32, c.c_bool)),
}


def find(settings: Settings) -> tuple[Path, str]:
    """The library of the build that the engine runs, and what that build is called. Raises MissingSystem."""
    provider = choose(settings.home, settings.llama_build)
    provider.check()
    path = provider.library()
    if path is None and settings.llama_build != "native":  # linked into its programs, as zig does
        provider = Wheel()
        provider.check()
        path = provider.library()
    if path is None:
        raise MissingSystem("engine.no_library", provider=provider.name)
    return path, f"{provider.name} {provider.version}"


@cache
def load(path: Path) -> "Library":
    """The library in this process, loaded once. Raises MissingSystem when it is not what we know how to call."""
    if not _alone:
        raise RuntimeError("llama.cpp is loaded only in a process of its own, whose main calls mark_alone()")
    return Library(path)


class Library:
    """llama.cpp's functions. `c` is the library itself, for what is not named here (ggml_quantize_chunk)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lines: deque[str] = deque(maxlen=LAST_LINES)
        self._level = 0
        try:
            self.c = c.CDLL(str(path))
            for name, (result, arguments) in _SIGNATURES.items():
                function = getattr(self.c, name)
                function.restype, function.argtypes = result, arguments
        except (OSError, AttributeError) as error:
            raise MissingSystem("engine.odd_library", path=path, why=error) from error
        self._log = _Log(self._hear)
        self.c.llama_log_set(self._log, None)
        atexit.register(self.c.llama_log_set, _Log(0), None)  # what it says while it ends finds no interpreter
        self.c.llama_backend_init()
        words = self.c.llama_context_default_params().words
        known = dict(CONTEXT.values()) | KNOWN
        odd = [f"{word}: {words[word]:#x}" for word, value in sorted(known.items()) if words[word] != value]
        if odd:
            raise MissingSystem("engine.odd_library", path=path, why=f"llama_context_params {', '.join(odd)}")

    def said(self) -> str:
        """llama.cpp's last complaints, which are forgotten then."""
        lines = "".join(self._lines).splitlines()
        self._lines.clear()
        return "\n".join(lines)

    def _hear(self, level: int, text: bytes | None, data: object) -> None:
        self._level = self._level if level == CONTINUED else level
        if self._level in COMPLAINTS:
            self._lines.append((text or b"").decode(errors="replace"))


class Model:
    """A GGUF model that reads. Not for several threads at once; `close` (or `with`) frees all that it took."""

    def __init__(self, library: Library, path: Path, *, n_ctx: int = 512, n_threads: int | None = None) -> None:
        """n_ctx: the longest window, in tokens. Raises Unreadable when llama.cpp refuses the file, EngineFailed when
        the memory for a window is not there."""
        self._c, self._library = library.c, library
        self._context: int | None = None
        self._batch: _Batch | None = None
        self._n_read = 0
        """Tokens of the window that was read last."""
        self._model: int | None = self._c.llama_model_load_from_file(
            str(path).encode(), self._c.llama_model_default_params()
        )
        if not self._model:
            raise Unreadable("engine.library_refused", path=path, why=library.said())
        try:
            self._vocab = self._c.llama_model_get_vocab(self._model)
            self.n_vocab: int = self._c.llama_vocab_n_tokens(self._vocab)
            self.n_ctx = n_ctx
            self.n_ctx_train: int = self._c.llama_model_n_ctx_train(self._model)
            self.n_batch = min(n_ctx, max(BATCH[0], min(BATCH[1], BLOCK_BYTES // (4 * self.n_vocab))))
            n_threads = n_threads or n_cores()
            params = self._c.llama_context_default_params()
            values = {
                "n_ctx": n_ctx, "n_batch": self.n_batch, "n_ubatch": self.n_batch, "n_seq_max": 1, "n_outputs_max": 0,
                "n_outputs_max_per_seq": 0, "n_threads": n_threads, "n_threads_batch": n_threads,
            }  # fmt: skip
            for name, value in values.items():
                params.words[CONTEXT[name][0]] = value
            self._context = self._c.llama_init_from_model(self._model, params)
            if not self._context:
                raise EngineFailed("engine.library_failed", path=path, why=library.said())
            self._batch = self._c.llama_batch_init(self.n_batch, 0, 1)
        except BaseException:
            self.close()
            raise

    def tokenize(self, text: str) -> list[int]:
        """Ids of `text`, special tokens in it recognized, nothing added: as the engine's own server has them."""
        return self._tokenize(text, add_special=False)

    def begin(self) -> list[int]:
        """The ids that stand before every text."""
        return self._tokenize("", add_special=True)[:1]  # an end may be added, too

    def _tokenize(self, text: str, *, add_special: bool) -> list[int]:
        data = text.encode()
        room = len(data) + 16
        while True:
            ids = (c.c_int32 * room)()
            n = self._c.llama_tokenize(self._vocab, data, len(data), ids, room, add_special, True)
            if n >= 0:
                return list(ids[:n])
            room = -n

    def data(self, token_id: int) -> bytes:
        """The bytes that a token stands for, which may be part of a character."""
        room = 64
        while True:
            buffer = c.create_string_buffer(room)
            n = self._c.llama_token_to_piece(self._vocab, token_id, buffer, room, 0, True)
            if n >= 0:
                return buffer.raw[:n]
            room = -n

    def read(self, ids: Sequence[int], *, go_on: bool = False) -> Iterator[NDArray[np.float32]]:
        """Read one window (at most n_ctx ids) from its beginning, or `go_on` with the last one; yields blocks (n, n_vocab)
        of natural log-probabilities, one row for each id: what is expected after it. A block is the caller's to keep or
        change."""
        self._n_read = self._n_read if go_on else 0
        if self._n_read + len(ids) > self.n_ctx:
            raise ValueError(f"a window of {self._n_read + len(ids)} tokens; this model was opened for {self.n_ctx}")
        if not go_on:
            self._c.llama_memory_clear(self._c.llama_get_memory(self._context), True)
        for begin in range(0, len(ids), self.n_batch):
            block = ids[begin : begin + self.n_batch]
            rows = self._decode(block, self._n_read)
            self._n_read += len(block)
            yield rows

    def _decode(self, ids: Sequence[int], begin: int) -> NDArray[np.float32]:
        batch = self._batch
        assert batch is not None
        batch.n_tokens = len(ids)
        for i, token_id in enumerate(ids):
            batch.token[i], batch.pos[i] = token_id, begin + i
            batch.n_seq_id[i], batch.seq_id[i][0], batch.logits[i] = 1, 0, 1
        code = self._c.llama_decode(self._context, batch)
        if code:
            raise EngineFailed("engine.library_failed", path=self._library.path, why=f"{code}: {self._library.said()}")
        logits = np.ctypeslib.as_array(self._c.llama_get_logits(self._context), (len(ids), self.n_vocab))
        return log_softmax(logits)

    def close(self) -> None:
        if self._batch is not None:
            self._c.llama_batch_free(self._batch)
        if self._context:
            self._c.llama_free(self._context)
        if self._model:
            self._c.llama_model_free(self._model)
        self._batch, self._context, self._model = None, None, None

    def __enter__(self) -> "Model":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """(n, n_vocab) natural log-probabilities, in a new array."""
    rows: NDArray[np.float32] = logits - logits.max(-1, keepdims=True)
    rows -= np.log(np.exp(rows).sum(-1, keepdims=True, dtype=np.float64)).astype(np.float32)
    return rows
