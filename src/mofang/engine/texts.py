"""Texts that engines are measured with: passages of our own, and beginnings of any."""

import tomllib
from collections.abc import Callable
from functools import cache
from pathlib import Path


@cache
def passages() -> tuple[str, ...]:
    """Passages of prose, Chinese and English in turn, some hundred tokens each."""
    found = tomllib.loads((Path(__file__).parent / "passages.toml").read_text(encoding="utf-8"))
    return tuple(str(text).strip() for text in found["passages"])


def beginning(text: str, n_tokens: int, encode: Callable[[str], list[int]]) -> tuple[str, list[int]]:
    """The longest beginning that is at most `n_tokens` tokens, and its ids; found by halving, so characters are whole."""
    ids = encode(text)
    if len(ids) <= n_tokens:
        return text, ids
    low, high = 1, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        if len(encode(text[:middle])) <= n_tokens:
            low = middle
        else:
            high = middle - 1
    return text[:low], encode(text[:low])
