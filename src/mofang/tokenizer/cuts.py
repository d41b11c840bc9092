"""How a byte-level BPE cuts text before its merges, by llama.cpp's names (tokenizer.ggml.pre).

Unicode is not normalized: llama.cpp does not, and training must see what serving sees.
Source: llama.cpp src/llama-vocab.cpp (llm_tokenizer_bpe).
"""

import json
from typing import Any

from tokenizers import Regex, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Backend

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


CUTS: dict[str, Any] = {
    "gpt-2": _gpt2,
    "smollm": lambda: _gpt2(pre_tokenizers.Digits(individual_digits=True)),
    "qwen2": lambda: _split(_WORDS + r"\p{N}" + _TAIL),
    "llama-bpe": lambda: _split(_WORDS + r"\p{N}{1,3}" + _TAIL),
}
"""Name in the file → how text is cut before the merges."""
_WHOLE_FIRST = frozenset({"llama-bpe"})
"""Where a word that is in the vocabulary is taken whole, whatever the merges say."""


def byte_level(vocab: dict[str, int], merges: list[Any], pre: str) -> Any:
    """A byte-level BPE that cuts as `pre` names it; without special tokens."""
    backend = Backend(models.BPE(vocab=vocab, merges=merges, ignore_merges=pre in _WHOLE_FIRST))
    backend.pre_tokenizer = CUTS[pre]()
    backend.decoder = decoders.ByteLevel()
    return backend


def cut_name(backend: Any) -> str | None:
    """llama.cpp's name for how a byte-level BPE cuts text before its merges; None when none is known to be the same."""
    state = json.loads(backend.to_str())
    for name, cut in CUTS.items():
        known = byte_level({}, [], name)
        known.pre_tokenizer = cut()
        whole = bool(state["model"].get("ignore_merges")) == (name in _WHOLE_FIRST)
        if whole and _plain(state["pre_tokenizer"]) == _plain(json.loads(known.to_str())["pre_tokenizer"]):
            return name
    return None


def _plain(rule: Any) -> list[Any]:
    """The steps of a pre-tokenizer, without what only concerns offsets."""
    steps = rule["pretokenizers"] if rule and rule.get("type") == "Sequence" else [rule]
    return [{key: value for key, value in (step or {}).items() if key != "trim_offsets"} for step in steps]
