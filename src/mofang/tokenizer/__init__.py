"""Tokenizers of models on disk, read without loading the model: text to token ids and back; and how to make them."""

from mofang.registry import Entry, Registry
from mofang.tokenizer.base import Tokenizer
from mofang.tokenizer.load import load

KINDS = Registry(
    "tokenizer kind",
    {
        "sp-unigram": Entry(
            "mofang.tokenizer.train:sp_unigram", "SentencePiece, unigram", extra="train", library="sentencepiece"
        ),
        "sp-bpe": Entry("mofang.tokenizer.train:sp_bpe", "SentencePiece, BPE", extra="train", library="sentencepiece"),
        "byte-bpe": Entry("mofang.tokenizer.train:byte_bpe", "byte-level BPE, as GPT-2 and Qwen have it"),
    },
)
"""Vocabularies that can be trained: kind(lines, size) → Tokenizer."""

EXTENDERS = Registry(
    "tokenizer extender",
    {
        "sp-bpe": Entry(
            "mofang.tokenizer.merge:extend", "SentencePiece: pieces of another vocabulary, as Chinese-LLaMA"
        ),
        "byte-bpe": Entry("mofang.tokenizer.append:extend", "byte-level BPE: new merges after the old ones"),
    },
)
"""Kind of the base's tokenizer → how it is extended: extend(base, lines, plan) → Extension."""

__all__ = ["EXTENDERS", "KINDS", "Tokenizer", "load"]
