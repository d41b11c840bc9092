"""Texts of our own that engines are measured with."""

import tomllib
from functools import cache
from pathlib import Path


@cache
def passages() -> tuple[str, ...]:
    """Passages of prose, Chinese and English in turn, some hundred tokens each."""
    found = tomllib.loads((Path(__file__).parent / "passages.toml").read_text(encoding="utf-8"))
    return tuple(str(text).strip() for text in found["passages"])
