"""A BERT of 32 dimensions with random weights, as GGUF: for what no small model is at hand (rerankers)."""

from pathlib import Path

import gguf
import numpy as np

N_EMBD, N_FF, N_CTX = 32, 64, 128
LETTERS = "abcdefghijklmnopqrstuvwxyz长城中国天气"
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def write(
    path: Path,
    *,
    reranker: bool,
    letters: str = LETTERS,
    n_ctx: int = N_CTX,
    pooling: gguf.PoolingType = gguf.PoolingType.MEAN,
) -> None:
    """One layer; a token is a letter. With `reranker` a head that gives one score, and pooling by rank."""
    rng = np.random.default_rng(7)
    tokens = [*SPECIAL, *(f"▁{letter}" for letter in letters), *letters]
    out = gguf.GGUFWriter(path, "bert")
    out.add_block_count(1)
    out.add_context_length(n_ctx)
    out.add_embedding_length(N_EMBD)
    out.add_feed_forward_length(N_FF)
    out.add_head_count(2)
    out.add_layer_norm_eps(1e-12)
    out.add_causal_attention(False)
    out.add_pooling_type(gguf.PoolingType.RANK if reranker else pooling)
    out.add_tokenizer_model("bert")
    out.add_token_list(tokens)
    out.add_token_types([3] * len(SPECIAL) + [1] * (len(tokens) - len(SPECIAL)))
    out.add_token_type_count(2)
    for name, number in (("pad", 0), ("unk", 1), ("sep", 3), ("mask", 4)):
        getattr(out, f"add_{name}_token_id")(number)
    out.add_bos_token_id(2)
    out.add_eos_token_id(3)

    def tensor(name: str, *shape: int) -> None:
        out.add_tensor(name, rng.normal(0, 0.3, shape).astype(np.float32))

    tensor("token_embd.weight", len(tokens), N_EMBD)
    tensor("position_embd.weight", n_ctx, N_EMBD)
    tensor("token_types.weight", 2, N_EMBD)
    layers = {"attn_q": (N_EMBD, N_EMBD), "attn_k": (N_EMBD, N_EMBD), "attn_v": (N_EMBD, N_EMBD)}
    layers |= {"attn_output": (N_EMBD, N_EMBD), "ffn_up": (N_FF, N_EMBD), "ffn_down": (N_EMBD, N_FF)}
    heads = {"cls": (N_EMBD, N_EMBD), "cls.output": (1, N_EMBD)} if reranker else {}
    for name, shape in {**{f"blk.0.{name}": shape for name, shape in layers.items()}, **heads}.items():
        tensor(f"{name}.weight", *shape)
        tensor(f"{name}.bias", shape[0])
    for name in ("token_embd_norm", "blk.0.attn_output_norm", "blk.0.layer_output_norm"):
        tensor(f"{name}.weight", N_EMBD)
        tensor(f"{name}.bias", N_EMBD)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
