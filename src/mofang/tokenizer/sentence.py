"""SentencePiece, computed by Google's own library: BPE with scores (LLaMA) and unigram.

What a file says is put into a model of that library, so ties between equal scores fall as in llama.cpp: to the left.
(A tokenizer.json cannot say that: its merges have ranks.) Special tokens are recognized in the text, and each stretch
between them begins with the space that the model puts before a text, as llama.cpp does (llm_tokenizer_spm).
"""

import hashlib
import importlib.util
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from mofang.errors import MissingExtra, Unreadable
from mofang.tokenizer.fast import piece_bytes

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""SentencePiece's types of pieces; GGUF's token types are the same numbers."""
UNIGRAM, BPE = 1, 2
SPACE = "\u2581"


def library() -> Any:
    """The library. Raises MissingExtra."""
    if importlib.util.find_spec("sentencepiece") is None:
        raise MissingExtra("core.missing_extra", name="SentencePiece", library="sentencepiece", extra="train")
    import sentencepiece

    return sentencepiece


def proto_class() -> Any:
    """The library's message type of a model file, ModelProto. Raises MissingExtra."""
    library()
    from sentencepiece import sentencepiece_model_pb2

    return sentencepiece_model_pb2.ModelProto


def parse(data: bytes, path: Path) -> Any:
    """A tokenizer.model's bytes as ModelProto. Raises Unreadable, MissingExtra."""
    proto = proto_class()()
    try:
        proto.ParseFromString(data)
    except Exception as error:  # protobuf's DecodeError is not importable without protobuf's own package
        raise Unreadable("tokenizer.broken", path=path, why=error) from error
    if not proto.pieces:
        raise Unreadable("tokenizer.none", path=path)
    return proto


@dataclass(frozen=True)
class SentencePiece:
    """base.Cutter over a ModelProto. `added`: names beyond the model's own pieces, with their ids."""

    proto: Any
    added_names: tuple[tuple[str, int], ...] = ()

    tokenizer_class = "LlamaTokenizer"

    @classmethod
    def checked(cls, proto: Any, path: Path, added: Sequence[tuple[str, int]] = ()) -> "SentencePiece":
        """Raises Unreadable when the library refuses the model."""
        made = cls(proto, tuple(added))
        try:
            made._processor  # noqa: B018 -- made now, so that a broken file is said with its name
        except RuntimeError as error:
            raise Unreadable("tokenizer.broken", path=path, why=error) from error
        return made

    @cached_property
    def _processor(self) -> Any:
        return library().SentencePieceProcessor(model_proto=self.proto.SerializeToString())

    @cached_property
    def _names(self) -> dict[str, int]:
        """Special tokens as they may be written in a text."""
        own = {
            piece.piece: number
            for number, piece in enumerate(self.proto.pieces)
            if piece.type in (UNKNOWN, CONTROL, USER_DEFINED) and piece.piece
        }
        return {**own, **dict(self.added_names)}

    @cached_property
    def _split(self) -> "re.Pattern[str]":
        return re.compile("(" + "|".join(map(re.escape, sorted(self._names, key=len, reverse=True))) + ")")

    @cached_property
    def _added(self) -> dict[int, str]:
        return {token_id: name for name, token_id in self.added_names}

    @property
    def n_vocab(self) -> int:
        return max(len(self.proto.pieces), *(token_id + 1 for _, token_id in self.added_names), 0)

    def encode(self, text: str) -> list[int]:
        ids: list[int] = []
        for part in self._split.split(text) if self._names else [text]:
            if part in self._names:
                ids.append(self._names[part])
            elif part:
                ids.extend(self._processor.encode(part))
        return ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [self.encode(text) for text in texts]

    def decode(self, ids: Sequence[int], *, special: bool) -> str:
        parts: list[str] = []
        run: list[int] = []
        for token_id in ids:
            if token_id in self.added():
                parts += [self._processor.decode(run), self.token(token_id) if special else ""]
                run = []
            elif token_id < len(self.proto.pieces):
                run.append(token_id)
        return "".join([*parts, self._processor.decode(run)])

    def token(self, token_id: int) -> str:
        if token_id in self._added:
            return self._added[token_id]
        return str(self.proto.pieces[token_id].piece) if 0 <= token_id < len(self.proto.pieces) else ""

    def token_id(self, name: str) -> int | None:
        return {**{piece.piece: number for number, piece in enumerate(self.proto.pieces)}, **self._names}.get(name)

    def data(self, token_id: int) -> bytes:
        name = self.token(token_id)
        return name.encode() if token_id in self.added() else piece_bytes(name)

    def spell(self, data: bytes) -> list[int]:
        ids: list[int] = self._bare.encode(data.decode(errors="replace"))
        return ids

    @cached_property
    def _bare(self) -> Any:
        """The same without a space put before the text."""
        return _without_prefix(self.proto)

    def added(self) -> set[int]:
        return self._special_ids

    @cached_property
    def _special_ids(self) -> set[int]:
        return set(self._names.values())

    def kind(self) -> str:
        return "sp-bpe" if self.proto.trainer_spec.model_type == BPE else "sp-unigram"

    def state(self) -> str:
        return hashlib.sha256(self.proto.SerializeToString(deterministic=True)).hexdigest() + repr(self.added_names)

    def save(self, folder: Path) -> None:
        (folder / "tokenizer.model").write_bytes(self.proto.SerializeToString())
        if self.added_names:
            import json

            text = json.dumps(dict(self.added_names), ensure_ascii=False, indent=2)
            (folder / "added_tokens.json").write_text(text + "\n", encoding="utf-8")

    def dead(self) -> list[int]:
        return unreachable(self.proto)

    def cut_name(self) -> None:
        return None


def unreachable(proto: Any) -> list[int]:
    """Ids of ordinary pieces that their own text does not become.

    A BPE piece is made only by joining two pieces, so one whose halves are no pieces is never seen, whatever the text.
    """
    processor = _without_prefix(proto)
    return [
        number
        for number, piece in enumerate(proto.pieces)
        if piece.type == NORMAL and processor.encode(piece.piece.replace(SPACE, " ")) != [number]
    ]


def _without_prefix(proto: Any) -> Any:
    bare = proto_class()()
    bare.CopyFrom(proto)
    bare.normalizer_spec.add_dummy_prefix = False
    bare.normalizer_spec.remove_extra_whitespaces = False
    return library().SentencePieceProcessor(model_proto=bare.SerializeToString())
