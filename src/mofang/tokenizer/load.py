"""Which file of a model holds its tokenizer."""

from pathlib import Path

from mofang.errors import Unreadable
from mofang.tokenizer import gguf, hf
from mofang.tokenizer.base import Tokenizer


def load(path: Path) -> Tokenizer:
    """The tokenizer of a .gguf file or a Hugging Face folder. Raises Unreadable."""
    if path.is_file() and path.suffix == ".gguf":
        return gguf.read(path)
    if (path / "tokenizer.json").is_file():
        return hf.read(path)
    raise Unreadable("tokenizer.none", path=path)
