"""What a loaded model will take, before it is loaded.

weights + key-value cache at 16 bits × context × slots + compute. The first two are arithmetic; `compute` (the server's
own process, the vocabulary, the buffers of one batch) is a line through measurements.

Checked by hand on 2026-11-24 against the resident memory of a process with one xllamacpp 2026.10 server (AVX2 build),
after a prompt in every slot: SmolLM2-135M Q4_1 with 1 × 4096, 2 × 8192 and 8 × 8192 tokens, Qwen2.5-Coder-0.5B Q4_K_M
with 1 × 4096, 2 × 8192 and 1 × 32768, multilingual-e5-small Q4_0 with 4 × 512. The estimate was 0 to 1.6 % above what
was measured for the chat models (230 MB to 1.7 GB) and 6 % above for the embedder. The line rests on these models: for
a much larger one its slope is a guess, but there the weights dominate.
"""

from mofang.models.base import MemoryEstimate, ModelFacts

BATCH = 512
"""Tokens of one physical batch, llama.cpp's default for --ubatch-size."""
PROCESS_BYTES = 38_000_000
"""Python, the server and its threads; measured 2026-11-24 (see above)."""
BYTES_PER_TOKEN_OF_VOCABULARY = 760
"""Text, score and look-up tables of one vocabulary entry in llama.cpp; measured 2026-11-24 (see above)."""
BYTES_PER_SLOT = 1_000_000


def estimate(weights: int, facts: ModelFacts, n_ctx: int, n_slots: int) -> MemoryEstimate:
    """Bytes with `n_ctx` tokens, at most what the model was trained for, for each of `n_slots` conversations."""
    tokens = min(n_ctx, facts.n_ctx_train or n_ctx) * n_slots
    kv_cache = (facts.kv_bytes_per_token or 0) * tokens
    feed_forward = facts.metadata.get(f"{facts.architecture}.feed_forward_length", 4 * (facts.n_embd or 0))
    compute = compute_bytes(
        n_vocab=facts.n_vocab or 0,
        n_embd=facts.n_embd or 0,
        n_ff=feed_forward if isinstance(feed_forward, int) else 4 * (facts.n_embd or 0),
        n_slots=n_slots,
        encoder=facts.kv_bytes_per_token == 0,
    )
    return MemoryEstimate(weights, kv_cache, compute, weights + kv_cache + compute)


def compute_bytes(*, n_vocab: int, n_embd: int, n_ff: int, n_slots: int, encoder: bool) -> int:
    """The process, the vocabulary, one batch's activations; of an encoder also the outputs of every token of a batch.

    llama.cpp keeps a row of logits, n_vocab × 4 bytes, for each token that is an output: in chat one a slot, in
    embedding every token of the batch (250 thousand tokens of vocabulary × 512 = 512 MB for multilingual-e5-small).
    """
    activations = BATCH * 4 * (4 * n_embd + 2 * n_ff)
    outputs = BATCH * n_vocab * 4 if encoder else 0
    return PROCESS_BYTES + BYTES_PER_TOKEN_OF_VOCABULARY * n_vocab + activations + outputs + BYTES_PER_SLOT * n_slots
