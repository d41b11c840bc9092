"""What follows from a model's facts by arithmetic: the size in other types, and what LoRA or a training would compute.

Knows nothing of Streamlit. Facts are those of GET /v1/models/{name}.
"""

from collections.abc import Mapping
from typing import Any, Final

BITS: Final = {"f16": 16.0, "q8_0": 8.5, "q6_k": 6.6, "q5_k_m": 5.7, "q4_k_m": 4.89, "q3_k_m": 3.9, "q2_k": 3.0}
"""The usual GGUF types: bits a weight. q8_0: 32 numbers of 8 bits and a scale of 16. Those below mix types: about what
llama.cpp measured on Llama 3.1 8B (tools/quantize/README.md); small models come out larger, as their embedding weighs
more."""
SHOWN: Final = ("f16", "q8_0", "q4_k_m")
"""Those that show what quantizing is."""
GATED: Final = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3", "gemma3_text", "smollm3")
"""Architectures whose layers are query, key, value, output, gate, up and down."""
FLOPS_A_WEIGHT: Final = 6
"""Operations that training spends on a weight and a token: 2 forward, 4 backward (Kaplan et al. 2020, section 2.1)."""


def size_in(kind: str, parameters: int) -> int:
    """Bytes, about."""
    return round(parameters * BITS[kind] / 8)


def lora_parameters(facts: Mapping[str, Any], rank: int) -> int | None:
    """Numbers that LoRA of that rank trains, on all seven linear layers: rank · (inputs + outputs) of each (Hu et al.
    2021). None where the facts do not tell the shapes."""
    meta, name = facts.get("metadata") or {}, str(facts.get("architecture") or "")
    width, layers, heads = (facts.get(key) for key in ("n_embd", "n_layers", "n_head"))
    hidden = meta.get(f"{name}.feed_forward_length") or meta.get("intermediate_size")
    if name not in GATED or not (width and layers and heads and hidden):
        return None
    head = meta.get(f"{name}.attention.key_length") or meta.get("head_dim") or width // heads
    asked, kept = heads * head, (facts.get("n_head_kv") or heads) * head
    shapes = [(width, asked), (width, kept), (width, kept), (asked, width), *([(width, hidden)] * 3)]
    return int(layers * rank * sum(one + other for one, other in shapes))


def training_flops(parameters: int, tokens: int) -> int:
    """Floating-point operations of training on so many tokens."""
    return FLOPS_A_WEIGHT * parameters * tokens
