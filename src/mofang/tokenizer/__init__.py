"""Tokenizers of models on disk, read without loading the model: text to token ids and back."""

from mofang.tokenizer.base import Tokenizer
from mofang.tokenizer.load import load

__all__ = ["Tokenizer", "load"]
