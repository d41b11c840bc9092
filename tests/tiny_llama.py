"""A Llama small enough to make in a test: two layers of random weights and a byte-level tokenizer, ChatML template."""

from pathlib import Path

from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Backend

from mofang.tokenizer import Tokenizer

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
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
        backend, end_id, backend.token_to_id("<|endoftext|>"), None, add_bos, template, frozenset({end_id})
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
