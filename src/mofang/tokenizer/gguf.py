"""The tokenizer inside a GGUF file, as the engine itself would use it.

A byte-level BPE ("gpt2") is vocabulary and merges; how text is cut before the merges is only named there, so the rule
stands here, by that name. Unicode is not normalized: llama.cpp does not, and training must see what serving sees.
Source: llama.cpp src/llama-vocab.cpp (llm_tokenizer_bpe, token attributes); gguf's TokenType.
"""

from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Backend

from mofang.errors import Unreadable
from mofang.models.formats import gguf
from mofang.tokenizer.base import Tokenizer

_CONTROL, _USER_DEFINED, _UNUSED = 3, 4, 5
_PREFIX = "tokenizer.ggml."
_LISTS = (_PREFIX + "tokens", _PREFIX + "token_type", _PREFIX + "merges")

_TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"


def _split(pattern: str) -> Any:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def _gpt2(*before: Any) -> Any:
    return pre_tokenizers.Sequence([*before, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)])


_CUTS: dict[str, Any] = {
    "gpt-2": _gpt2,
    "smollm": lambda: _gpt2(pre_tokenizers.Digits(individual_digits=True)),
    "qwen2": lambda: _split(_WORDS + r"\p{N}" + _TAIL),
    "llama-bpe": lambda: _split(_WORDS + r"\p{N}{1,3}" + _TAIL),
}
"""Name in the file → how text is cut before the merges."""
_WHOLE_FIRST = frozenset({"llama-bpe"})
"""Where a word that is in the vocabulary is taken whole, whatever the merges say."""
_ENDS = frozenset(
    {"<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|eom_id|>", "</s>", "<EOT>"}
)
"""Names of tokens that end an answer, as llama.cpp knows them."""


def read(path: Path) -> Tokenizer:
    """Raises Unreadable for a damaged file, or a kind of tokenizer that is not known here."""
    header = gguf.read(gguf.parts(path)[0], arrays=_LISTS)
    meta = header.metadata
    kind, pre = str(meta.get(_PREFIX + "model", "")), str(meta.get(_PREFIX + "pre", "gpt-2"))
    tokens, merges = meta.get(_PREFIX + "tokens"), meta.get(_PREFIX + "merges")
    if kind != "gpt2" or pre not in _CUTS:
        known = ", ".join(f"gpt2 ({name})" for name in _CUTS)
        raise Unreadable("tokenizer.unknown_kind", path=path, kind=f"{kind} ({pre})", known=known)
    if not isinstance(tokens, list) or not isinstance(merges, list):
        raise Unreadable("tokenizer.none", path=path)
    types = meta.get(_PREFIX + "token_type") or [1] * len(tokens)
    n_used = len(tokens)
    while n_used and types[n_used - 1] == _UNUSED:  # rows that only fill up the matrix
        n_used -= 1
    vocab = {token: number for number, token in enumerate(tokens[:n_used])}
    try:
        pairs = [tuple(merge.split(" ")) for merge in merges]
        backend = Backend(models.BPE(vocab=vocab, merges=pairs, ignore_merges=pre in _WHOLE_FIRST))
    except Exception as error:  # tokenizers raises a bare Exception
        raise Unreadable("tokenizer.broken", path=path, why=error) from error
    backend.pre_tokenizer = _CUTS[pre]()
    backend.decoder = decoders.ByteLevel()
    backend.add_tokens(
        [
            AddedToken(token, special=types[number] == _CONTROL, normalized=False)
            for number, token in enumerate(tokens[:n_used])
            if types[number] in (_CONTROL, _USER_DEFINED)
        ]
    )
    eos = _id(meta, "eos_token_id")
    ends = {vocab[name] for name in _ENDS if name in vocab} | {
        number for key in ("eos_token_id", "eot_token_id", "eom_token_id") if (number := _id(meta, key)) is not None
    }
    template = meta.get("tokenizer.chat_template")
    return Tokenizer(
        backend=backend,
        eos_id=eos,
        bos_id=_id(meta, "bos_token_id"),
        pad_id=_id(meta, "padding_token_id"),
        add_bos=bool(meta.get(_PREFIX + "add_bos_token", False)),
        chat_template=str(template) if template else None,
        end_ids=frozenset(ends),
    )


def _id(meta: dict[str, Any], key: str) -> int | None:
    value = meta.get(_PREFIX + key)
    return value if isinstance(value, int) else None
