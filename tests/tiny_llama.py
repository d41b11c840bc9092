"""A Llama small enough to make in a test: two layers of random weights and a byte-level tokenizer, ChatML template."""

import json
from pathlib import Path

from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Backend

from mofang.tokenizer import Tokenizer
from mofang.tokenizer.fast import Fast

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
SHAPES = {
    "self_attn.q_proj": (64, 64),
    "self_attn.k_proj": (32, 64),
    "self_attn.v_proj": (32, 64),
    "self_attn.o_proj": (64, 64),
    "mlp.gate_proj": (96, 64),
    "mlp.up_proj": (96, 64),
    "mlp.down_proj": (64, 96),
}
"""Linear layers and their (outputs, inputs)."""
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def tokenizer(template: str | None = CHATML, *, end: str = "<|im_end|>", add_bos: bool = False) -> Tokenizer:
    """256 bytes, one merge and the special tokens: but for " t", a text is as many tokens as UTF-8 bytes."""
    alphabet = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "Ġt"]
    vocab = {token: number for number, token in enumerate(alphabet)}
    backend = Backend(models.BPE(vocab=vocab, merges=[("Ġ", "t")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    names = list(dict.fromkeys([*SPECIAL, end]))
    backend.add_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    end_id = backend.token_to_id(end)
    return Tokenizer(
        Fast(backend), end_id, backend.token_to_id("<|endoftext|>"), None, add_bos, template, frozenset({end_id})
    )


def make(folder: Path, *, tied: bool = True, seed: int = 0, dtype: str = "float32") -> Path:
    """Write the model and its tokenizer into `folder`."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder.mkdir(parents=True, exist_ok=True)
    cut = tokenizer()
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=cut.n_vocab + 5,  # more rows than tokens, as real models have
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.2,  # a frozen head of small weights could say nothing
        tie_word_embeddings=tied,
        eos_token_id=cut.eos_id,
        bos_token_id=cut.bos_id,
        pad_token_id=None,
    )
    LlamaForCausalLM(config).to(getattr(torch, dtype)).save_pretrained(folder)
    cut.save(folder)
    return folder


def write_gguf(
    folder: Path, target: Path, kind: str = "F32", *, architecture: str = "llama", head: bool = False,
    parts: int = 0, leave_out: str = "",
) -> Path:  # fmt: skip
    """What llama.cpp's converter makes of a tiny Llama, written with gguf's own writer. `parts`: tensors a file."""
    import gguf
    from safetensors.torch import load_file

    from mofang.export import imports
    from mofang.tokenizer import load

    names_there = {v: k for k, v in imports._BLOCK.items()} | {v: k for k, v in imports._OUTSIDE.items()}
    kind = gguf.GGMLQuantizationType[kind]
    tensors = load_file(folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    cut = load(folder)
    out = gguf.GGUFWriter(target, architecture, split_max_tensors=parts)
    out.add_license("apache-2.0")
    out.add_rope_dimension_count(config["hidden_size"] // config["num_attention_heads"])
    out.add_context_length(config["max_position_embeddings"])
    out.add_embedding_length(config["hidden_size"])
    out.add_block_count(config["num_hidden_layers"])
    out.add_feed_forward_length(config["intermediate_size"])
    out.add_head_count(config["num_attention_heads"])
    out.add_head_count_kv(config["num_key_value_heads"])
    out.add_layer_norm_rms_eps(config["rms_norm_eps"])
    out.add_rope_freq_base(10000.0)
    rows = tensors["model.embed_tokens.weight"].shape[0]
    names = [cut.token(number) for number in range(cut.n_vocab)] + [f"[PAD{n}]" for n in range(rows - cut.n_vocab)]
    out.add_tokenizer_model("gpt2")
    out.add_tokenizer_pre("gpt-2")
    out.add_token_list(names)
    out.add_token_types([3 if name.startswith("<|") else 5 if name.startswith("[PAD") else 1 for name in names])
    out.add_token_merges(["Ġ t"])
    out.add_eos_token_id(cut.eos_id)
    out.add_bos_token_id(cut.bos_id)
    out.add_chat_template(cut.chat_template)
    for name, tensor in tensors.items():
        values = tensor.float().numpy()
        for part, heads in (("q_proj", "num_attention_heads"), ("k_proj", "num_key_value_heads")):
            if part in name:  # llama.cpp's order of rotary dimensions
                n = config[heads]
                values = values.reshape(n, 2, -1, values.shape[1]).swapaxes(1, 2).reshape(values.shape)
        stem = name.removesuffix(".weight")
        short = names_there.get(stem) or f"blk.{stem.split('.')[2]}.{names_there[stem.split('.', 3)[3]]}"
        if f"{short}.weight" == leave_out:
            continue
        typed = kind if values.ndim > 1 else gguf.GGMLQuantizationType.F32
        out.add_tensor(f"{short}.weight", gguf.quants.quantize(values, typed), raw_dtype=typed)
    if head:
        values = tensors["model.embed_tokens.weight"].float().numpy()
        out.add_tensor(
            "output.weight",
            gguf.quants.quantize(values, gguf.GGMLQuantizationType.Q8_0),
            raw_dtype=gguf.GGMLQuantizationType.Q8_0,
        )
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    return target


def make_adapter(
    folder: Path,
    *,
    base: str = "",
    rank: int = 4,
    alpha: float = 8.0,
    seed: int = 1,
    dtype: str = "float32",
    layers: int = 2,
    shapes: dict[str, tuple[int, int]] | None = None,
    **config: object,
) -> Path:
    """A peft adapter of random weights over every linear layer of the tiny Llama; `config` goes over its own."""
    import torch
    from safetensors.torch import save_file

    shapes = shapes or SHAPES
    folder.mkdir(parents=True, exist_ok=True)
    source = torch.Generator().manual_seed(seed)
    tensors = {}
    for layer in range(layers):
        for name, (rows, columns) in shapes.items():
            stem = f"base_model.model.model.layers.{layer}.{name}"
            tensors[f"{stem}.lora_A.weight"] = torch.randn(rank, columns, generator=source) / columns**0.5
            tensors[f"{stem}.lora_B.weight"] = torch.randn(rows, rank, generator=source) * 0.2
    save_file(
        {name: value.to(getattr(torch, dtype)) for name, value in tensors.items()}, folder / "adapter_model.safetensors"
    )
    stated = {"peft_type": "LORA", "r": rank, "lora_alpha": alpha, "bias": "none", "base_model_name_or_path": base}
    (folder / "adapter_config.json").write_text(json.dumps({**stated, **config}))
    return folder
