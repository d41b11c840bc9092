"""Which file of a model holds its tokenizer."""

from pathlib import Path

from mofang.errors import NotFound, Unreadable
from mofang.tokenizer import gguf, hf
from mofang.tokenizer.base import Tokenizer


def load(path: Path, *, source: bool = False) -> Tokenizer:
    """The tokenizer of a .gguf file, a Hugging Face folder, or a tokenizer.json or .model file by itself.

    Where a folder has both, tokenizer.json needs no further library; tokenizer.model is what it was made from, and is
    read first with `source`: only it can be extended.
    Raises NotFound, Unreadable; MissingExtra for SentencePiece without its library.
    """
    if not path.exists():
        raise NotFound("tokenizer.not_there", path=path)
    if path.is_file() and path.suffix == ".gguf":
        return gguf.read(path)
    if path.is_file() and path.suffix in (".json", ".model"):
        return hf.read(path.parent, path)
    for name in (hf.SENTENCE, hf.FAST) if source else (hf.FAST, hf.SENTENCE):
        if (path / name).is_file():
            return hf.read(path, path / name)
    raise Unreadable("tokenizer.none", path=path)
