"""Extend SentencePiece as Chinese-LLaMA did: append every piece of another vocabulary that is not there yet.

Each new piece is NORMAL with score 0.0, in its own order; all else stays the base's, so the result is a BPE model with
byte fallback. 0.0 is above LLaMA's scores (-1, -2, …): Chinese pieces join first, from the left. A unigram vocabulary
is partly dead in a BPE. Of Chinese-LLaMA's 49,953 pieces 338 have no two halves to be joined from, 7 more always lose
to others, and so do 194 of LLaMA's own ("▁create", "▁people"), since Latin pieces came along (computed 2026-11-25 from
both vocabularies): hence what is dropped or completed here, and why "han" lets in Chinese only.
Source: Chinese-LLaMA-Alpaca scripts/merge_tokenizer/merge_tokenizers.py; arXiv 2304.08177.
"""

from dataclasses import replace
from typing import Any

from mofang.tokenizer import sentence, train
from mofang.tokenizer.base import Tokenizer
from mofang.tokenizer.extend import Extension, Lines, Plan, Tell, fits
from mofang.tokenizer.sentence import SPACE, SentencePiece

SCORE = 0.0


def extend(base: Tokenizer, lines: Lines, plan: Plan, tell: Tell) -> Extension:
    """Raises MissingExtra; Invalid as train.train."""
    assert isinstance(base.backend, SentencePiece)
    other = plan.vocabulary
    if other is None:
        tell("learn", 0, 0)
        other = train.train("sp-unigram", lines, plan.size)
    assert isinstance(other.backend, SentencePiece)
    tell("merge", 0, 0)
    proto, n_old = _with_added(base.backend)
    known = {piece.piece for piece in proto.pieces}
    for piece in other.backend.proto.pieces:
        if piece.piece in known or not _let_in(piece, plan.script):
            continue
        proto.pieces.add(piece=piece.piece, score=SCORE, type=sentence.NORMAL)
        known.add(piece.piece)
    n_merged, dropped = len(proto.pieces), []
    if plan.unreachable == "complete":
        _complete(proto, n_old)
    n_completed = len(proto.pieces) - n_merged
    if plan.unreachable != "keep":
        dropped = _drop(proto, n_old)
    proto.trainer_spec.vocab_size = len(proto.pieces)
    made = replace(base, backend=SentencePiece(proto))
    return Extension(made, n_old, "sentencepiece-merge", n_completed, dropped)


def _let_in(piece: Any, script: str) -> bool:
    """Control and byte pieces are the base's own, where it has them; "all" takes whatever the other one has."""
    if script == "all":
        return True
    return piece.type == sentence.NORMAL and fits(piece.piece.removeprefix(SPACE), script)


def _with_added(old: SentencePiece) -> tuple[Any, int]:
    """A copy of the model in which names beyond its pieces ([PAD]…) are pieces, so that new ones come after them."""
    proto = sentence.proto_class()()
    proto.CopyFrom(old.proto)
    names = {token_id: name for name, token_id in old.added_names}
    for token_id in range(len(proto.pieces), old.n_vocab):
        proto.pieces.add(piece=names.get(token_id, f"[unused{token_id}]"), score=0.0, type=sentence.CONTROL)
    return proto, len(proto.pieces)


def _complete(proto: Any, n_old: int) -> None:
    """Add the beginnings of pieces that cannot be reached: with them, each joins up from the left."""
    known = {piece.piece for piece in proto.pieces}
    for number in sentence.unreachable(proto):
        text = proto.pieces[number].piece
        if number < n_old:
            continue
        for part in [text[:end] for end in range(1, len(text))] + list(text):
            if part not in known:
                proto.pieces.add(piece=part, score=SCORE, type=sentence.NORMAL)
                known.add(part)


def _drop(proto: Any, n_old: int) -> list[str]:
    dead = [number for number in sentence.unreachable(proto) if number >= n_old]
    names = [proto.pieces[number].piece for number in dead]
    for number in reversed(dead):
        del proto.pieces[number]
    return names
