"""Tokenizers that Hugging Face's `tokenizers` (Rust) computes: a byte-level BPE, and whatever a tokenizer.json holds."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Backend
from tokenizers import pre_tokenizers

from mofang.tokenizer import cuts


@dataclass(frozen=True)
class Fast:
    """base.Cutter over a tokenizers.Tokenizer."""

    backend: Backend

    tokenizer_class = "PreTrainedTokenizerFast"

    @property
    def n_vocab(self) -> int:
        return int(self.backend.get_vocab_size(with_added_tokens=True))

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self.backend.encode(text, add_special_tokens=False).ids
        return ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [found.ids for found in self.backend.encode_batch_fast(list(texts), add_special_tokens=False)]

    def decode(self, ids: Sequence[int], *, special: bool) -> str:
        text: str = self.backend.decode(list(ids), skip_special_tokens=not special)
        return text

    def token(self, token_id: int) -> str:
        return self.backend.id_to_token(token_id) or ""

    def token_id(self, name: str) -> int | None:
        found: int | None = self.backend.token_to_id(name)
        return found

    def data(self, token_id: int) -> bytes:
        name = self.token(token_id)
        if token_id in self.added():
            return name.encode()
        if self.is_byte_level():
            return bytes_of(name)
        return piece_bytes(name)

    def spell(self, data: bytes) -> list[int]:
        name = name_of(data) if self.is_byte_level() else data.decode(errors="replace").replace(" ", "\u2581")
        return [int(piece.id) for piece in self.backend.model.tokenize(name)]

    def added(self) -> set[int]:
        return {int(token_id) for token_id in self.backend.get_added_tokens_decoder()}

    def kind(self) -> str:
        name = type(self.backend.model).__name__.lower()
        return f"byte-{name}" if self.is_byte_level() else name

    def is_byte_level(self) -> bool:
        """Whether a piece is spelled in GPT-2's alphabet, one character for each byte."""
        return "ByteLevel" in repr(self.backend.decoder)

    def state(self) -> str:
        return json.dumps(json.loads(self.backend.to_str()), sort_keys=True)

    def save(self, folder: Path) -> None:
        self.backend.save(str(folder / "tokenizer.json"))

    def dead(self) -> list[int]:
        """Pieces that their own bytes do not become: the merges never lead there, or the text is cut before."""
        added, level, found = self.added(), self.is_byte_level(), []
        for name, token_id in self.backend.get_vocab(with_added_tokens=False).items():
            if token_id in added or _is_byte(name):
                continue
            if level:
                try:
                    text = bytes_of(name).decode()
                    alive = self.encode(text) == [token_id]
                except UnicodeDecodeError:  # part of a character: the merges alone decide
                    alive = [piece.id for piece in self.backend.model.tokenize(name)] == [token_id]
            else:
                alive = token_id in [piece.id for piece in self.backend.model.tokenize(name)]
            if not alive:
                found.append(int(token_id))
        return sorted(found)

    def cut_name(self) -> str | None:
        return cuts.cut_name(self.backend) if self.is_byte_level() else None


@lru_cache(maxsize=1)
def alphabet() -> dict[str, int]:
    """GPT-2's alphabet: a visible character for each byte."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in visible]
    found = {chr(byte): byte for byte in visible} | {chr(256 + n): byte for n, byte in enumerate(hidden)}
    assert found.keys() == set(pre_tokenizers.ByteLevel.alphabet())
    return found


def bytes_of(name: str) -> bytes:
    """The bytes that a piece of a byte-level vocabulary stands for; a name that is none is taken as it is."""
    known = alphabet()
    return bytes(known[letter] for letter in name) if all(letter in known for letter in name) else name.encode()


def name_of(data: bytes) -> str:
    """The reverse of `bytes_of`."""
    letters = {byte: letter for letter, byte in alphabet().items()}
    return "".join(letters[byte] for byte in data)


def piece_bytes(name: str) -> bytes:
    """The bytes of a SentencePiece piece: ▁ is a space, <0xE4> a byte."""
    return bytes([int(name[3:5], 16)]) if _is_byte(name) else name.replace("\u2581", " ").encode()


def _is_byte(name: Any) -> bool:
    return len(name) == 6 and name.startswith("<0x") and name.endswith(">")
