"""A Core (worker/core.py) of llama-cpp-python's low-level bindings. Lives in the child only.

One context with a sequence a slot; conversations take turns. Source: llama.cpp include/llama.h.
"""

import ctypes
from collections.abc import Sequence
from typing import Any

import llama_cpp
import numpy as np

from mofang.engine.worker.core import Bytes, CoreFacts, Logits
from mofang.errors import EngineFailed

BATCH = 128
"""Tokens of a prompt between two looks; as for the engine llama on a CPU (engine/llama/provider.py)."""
ALL_LAYERS = 1 << 10
"""On a GPU, where the library was built for one (not run here for want of a GPU)."""
REPEAT_LAST_N = 64


class LlamaCppCore:
    """See the module. Raises ValueError for a model that llama.cpp refuses; its log says why."""

    def __init__(self, configuration: dict[str, Any]) -> None:
        self._name = str(configuration["model"])
        llama_cpp.llama_backend_init()
        params = llama_cpp.llama_model_default_params()
        gpu = bool(llama_cpp.llama_supports_gpu_offload())
        params.n_gpu_layers = ALL_LAYERS if gpu else 0
        self._model = llama_cpp.llama_model_load_from_file(configuration["path"].encode(), params)
        if not self._model:
            raise ValueError(f"llama.cpp cannot load {configuration['path']}")
        self._vocab = llama_cpp.llama_model_get_vocab(self._model)
        trained = llama_cpp.llama_model_n_ctx_train(self._model)
        self._context = self._new_context(configuration, min(configuration["n_ctx"], trained))
        self._memory = llama_cpp.llama_get_memory(self._context)
        self._n_vocab = llama_cpp.llama_vocab_n_tokens(self._vocab)
        self._held = [0] * configuration["n_slots"]
        """Tokens in each slot's cache."""
        self.facts = self._read_facts(min(configuration["n_ctx"], trained), configuration["n_slots"], gpu)

    def _new_context(self, configuration: dict[str, Any], n_ctx: int) -> Any:
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = n_ctx * configuration["n_slots"]
        params.n_seq_max = configuration["n_slots"]
        params.n_batch = params.n_ubatch = BATCH
        params.kv_unified = False  # every slot has its own n_ctx, whoever else is there
        params.n_threads = params.n_threads_batch = configuration["n_threads"]
        context = llama_cpp.llama_init_from_model(self._model, params)
        if not context:
            raise ValueError("llama.cpp cannot make a context of that size")
        return context

    def _read_facts(self, n_ctx: int, n_slots: int, gpu: bool) -> CoreFacts:
        template = llama_cpp.llama_model_chat_template(self._model, None)
        bos, eos = llama_cpp.llama_vocab_bos(self._vocab), llama_cpp.llama_vocab_eos(self._vocab)
        ends = (token for token in range(self._n_vocab) if llama_cpp.llama_vocab_is_eog(self._vocab, token))
        return CoreFacts(
            n_ctx=n_ctx,
            n_slots=n_slots,
            batch=BATCH,
            end_ids=frozenset(ends),
            n_vocab=self._n_vocab,
            template=template.decode("utf-8", "replace") if template else None,
            bos=self.piece(bos).decode() if bos >= 0 else "",
            eos=self.piece(eos).decode() if eos >= 0 else "",
            provider=f"llama-cpp-python {llama_cpp.__version__}" + (" gpu" if gpu else ""),
            defaults={"repeat_last_n": REPEAT_LAST_N},
        )

    def encode(self, text: str, *, special: bool) -> list[int]:
        data = text.encode("utf-8")
        room = len(data) + 16
        tokens = (llama_cpp.llama_token * room)()
        n = llama_cpp.llama_tokenize(self._vocab, data, len(data), tokens, room, special, True)
        if n < 0:
            raise EngineFailed("engine.failed", model=self._name, why=f"llama_tokenize: {n}")
        return list(tokens[:n])

    def piece(self, token: int) -> bytes:
        room = 64
        while True:
            text = ctypes.create_string_buffer(room)
            n = llama_cpp.llama_token_to_piece(self._vocab, token, text, room, 0, True)
            if n >= 0:
                return text.raw[:n]
            room = -n

    def detokenizer(self) -> Bytes:
        return Bytes(self)

    def keep(self, slot: int, n_tokens: int) -> int:
        # A recurrent model cannot forget its latest tokens: then all go.
        if not (n_tokens and llama_cpp.llama_memory_seq_rm(self._memory, slot, n_tokens, -1)):
            llama_cpp.llama_memory_seq_rm(self._memory, slot, -1, -1)
            n_tokens = 0
        self._held[slot] = n_tokens
        return n_tokens

    def feed(self, slot: int, tokens: Sequence[int]) -> Logits:
        batch = llama_cpp.llama_batch_init(len(tokens), 0, 1)
        try:
            batch.n_tokens = len(tokens)
            for at, token in enumerate(tokens):
                batch.token[at], batch.pos[at] = token, self._held[slot] + at
                batch.n_seq_id[at], batch.seq_id[at][0] = 1, slot
                batch.logits[at] = at == len(tokens) - 1
            status = llama_cpp.llama_decode(self._context, batch)
        finally:
            llama_cpp.llama_batch_free(batch)
        if status:
            raise EngineFailed("engine.failed", model=self._name, why=f"llama_decode: {status}")
        self._held[slot] += len(tokens)
        row = llama_cpp.llama_get_logits_ith(self._context, -1)
        return np.ctypeslib.as_array(row, shape=(self._n_vocab,)).copy()
