"""What the child computes with: a loaded tokenizer, a mapped embedding, a session. Lives in the child only."""

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import numpy as np
import onnxruntime

from mofang.engine.onnx import graph
from mofang.engine.onnx.vocabulary import around, tokenizer
from mofang.engine.onnx.weights import Floats, Weights

Dtype = Literal["int8", "float32"]
LEAST_COSINE = 0.998
"""Of 8-bit products to float32 on the texts that they were rounded with; less is not used."""
FEW = 2
"""A call of so few texts does not wait behind another's many: somebody is asking."""


class Bert:
    """One model. Any thread may call."""

    def __init__(self, path: Path, cache: Path, *, dtype: Dtype, n_threads: int, sample: list[str]) -> None:
        """sample: texts on which the rounding is chosen and checked. `cache` keeps the rounded graph by the file's own
        stamp. The model is one that known.py knows."""
        self._weights = Weights(path)
        self.shape = self._weights.shape()
        self._tokenizer = tokenizer(self._weights)
        self._before, self._after = around(self._weights)
        self._pool = ThreadPoolExecutor(n_threads, thread_name_prefix="text")
        self.dtype: Dtype = dtype
        self._session = self._float() if dtype == "float32" else self._rounded(path, cache, sample)

    def encode(self, text: str) -> list[int]:
        """Ids without those around a text."""
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def encode_all(self, texts: list[str]) -> list[list[int]]:
        """Ids as they are computed, [CLS] and [SEP] around each."""
        found = self._tokenizer.encode_batch(texts, add_special_tokens=False)
        return [[*self._before, *one.ids, *self._after] for one in found]

    def embed(self, ids: list[list[int]]) -> Floats:
        """(len(ids), n_embd) float32, each of length 1. Every text is a run of its own on one core: nothing is padded,
        and cores do not wait for each other."""
        run = map if len(ids) <= FEW else self._pool.map
        rows = list(run(self._vector, ids))
        vectors = np.concatenate(rows) if rows else np.zeros((0, self.shape.n_embd), np.float32)
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        return np.asarray(vectors / np.maximum(lengths, np.finfo(np.float32).tiny), np.float32)

    def _vector(self, ids: list[int]) -> Floats:
        (vector,) = self._session.run([graph.OUTPUT], {graph.INPUT: self._rows(ids)})
        return np.asarray(vector, np.float32)

    def _rows(self, ids: list[int]) -> Floats:
        return self._weights.rows("token_embd.weight", ids)[None]

    # ---- the graph ----

    def _float(self) -> onnxruntime.InferenceSession:
        return _session(graph.build(self._weights))

    def _rounded(self, path: Path, cache: Path, sample: list[str]) -> onnxruntime.InferenceSession:
        kept = cache / f"{_stamp(path)}.onnx"
        if kept.is_file():
            return _session(kept.read_bytes())
        texts = self.encode_all(sample)
        watched = graph.channels(self.shape.n_layers)
        exact = _session(graph.build(self._weights, watched=watched))
        largest: dict[str, Floats] = {name: np.zeros(1, np.float32) for name in watched}
        wanted = []
        for ids in texts:
            vector, *values = exact.run([graph.OUTPUT, *watched], {graph.INPUT: self._rows(ids[: self.shape.n_ctx])})
            wanted.append(vector[0])
            for name, value in zip(watched, values, strict=True):
                largest[name] = np.maximum(largest[name], np.abs(value[0]).max(axis=0))
        made = graph.build(self._weights, largest=largest)
        self._session = _session(made)
        found = np.concatenate([self._vector(ids[: self.shape.n_ctx]) for ids in texts])
        if _least_cosine(np.stack(wanted), found) < LEAST_COSINE:
            self.dtype = "float32"
            return self._float()
        cache.mkdir(parents=True, exist_ok=True)
        aside = cache / f".{kept.name}.{os.getpid()}.part"
        aside.write_bytes(made)
        aside.replace(kept)
        return self._session


def _least_cosine(wanted: Floats, found: Floats) -> float:
    lengths = np.linalg.norm(wanted, axis=1) * np.linalg.norm(found, axis=1)
    return float(((wanted * found).sum(axis=1) / lengths).min())


def _session(made: bytes) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    # More than basic joins sums and norms into the slow operator of graph.py's `norm`.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(made, options, providers=["CPUExecutionProvider"])


def _stamp(path: Path) -> str:
    found = path.stat()
    told = f"{path.resolve()}\0{found.st_size}\0{found.st_mtime_ns}\0{graph.VERSION}\0{onnxruntime.__version__}"
    return hashlib.sha256(told.encode()).hexdigest()[:24]
