"""A vocabulary from texts: SentencePiece (unigram or BPE, Google's trainer) or a byte-level BPE (Hugging Face's).

Text is not normalized: what a model reads must come back as it was (Chinese-LLaMA's vocabulary was trained with
nmt_nfkc, which turns "，" into ","). Every byte is a piece, so nothing is unknown. Knows nothing of any base model.
"""

import io
import os
import re
from collections.abc import Callable, Iterator
from typing import Any

from tokenizers import AddedToken, pre_tokenizers, trainers

from mofang.errors import Invalid, MofangError
from mofang.tokenizer import KINDS, sentence
from mofang.tokenizer.base import Tokenizer
from mofang.tokenizer.cuts import byte_level
from mofang.tokenizer.fast import Fast

END, START, STOP = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
PRE = "qwen2"
"""How a new byte-level BPE cuts text before its merges: digits one by one, letters of any script together."""
COVERAGE = 0.9995
"""Share of characters that get a piece of their own, as Chinese-LLaMA's vocabulary; the rest are spelled in bytes."""

Lines = Callable[[], Iterator[str]]


def train(kind: str, lines: Lines, size: int) -> Tokenizer:
    """A new vocabulary of `size` tokens, special ones included.

    Raises UnknownName, MissingExtra; Invalid when the texts do not hold that many pieces.
    """
    made: Tokenizer = KINDS.get(kind)(lines(), size)
    return made


def sp_unigram(lines: Iterator[str], size: int) -> Tokenizer:
    return _sentence(lines, size, "unigram")


def sp_bpe(lines: Iterator[str], size: int) -> Tokenizer:
    return _sentence(lines, size, "bpe")


def byte_bpe(lines: Iterator[str], size: int) -> Tokenizer:
    least = 256 + 3
    if size < least:
        raise Invalid("tokenizer.size_small", param="size", size=size, least=least)
    backend = byte_level({}, [], PRE)
    trainer = trainers.BpeTrainer(
        vocab_size=size - 3, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False
    )
    backend.train_from_iterator(lines, trainer)
    found = backend.get_vocab_size()
    if found < size - 3:
        raise Invalid("tokenizer.size_large", param="size", size=size, most=found + 3)
    backend.add_tokens([AddedToken(name, special=True, normalized=False) for name in (END, START, STOP)])
    cutter = Fast(backend)
    stop, end = cutter.token_id(STOP), cutter.token_id(END)
    assert stop is not None and end is not None
    return Tokenizer(cutter, stop, None, end, False, None, frozenset({stop, end}))


def _sentence(lines: Iterator[str], size: int, model_type: str) -> Tokenizer:
    library = sentence.library()
    least = 256 + 3
    if size <= least:
        raise Invalid("tokenizer.size_small", param="size", size=size, least=least + 1)
    out = io.BytesIO()
    try:
        library.SentencePieceTrainer.train(
            sentence_iterator=lines,
            model_writer=out,
            vocab_size=size,
            model_type=model_type,
            character_coverage=COVERAGE,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            byte_fallback=True,
            split_digits=True,
            allow_whitespace_only_pieces=True,
            max_sentence_length=16_384,  # bytes; texts.LINE characters are at most 8,000
            train_extremely_large_corpus=False,
            num_threads=os.cpu_count() or 1,
            minloglevel=3,
        )
    except RuntimeError as error:
        raise _why(error, size) from error
    proto: Any = sentence.proto_class()()
    proto.ParseFromString(out.getvalue())
    cutter = sentence.SentencePiece(proto)
    bos, eos = cutter.token_id("<s>"), cutter.token_id("</s>")
    assert bos is not None and eos is not None
    return Tokenizer(cutter, eos, bos, None, True, None, frozenset({eos}))


def _why(error: RuntimeError, size: int) -> MofangError:
    """SentencePiece's refusals of a size name the limit in words."""
    if found := re.search(r"required_chars\. \d+ vs (\d+)", str(error)):
        return Invalid("tokenizer.size_small", param="size", size=size, least=int(found[1]))
    if found := re.search(r"<= ?(\d+)\.?\s*$", str(error)):
        return Invalid("tokenizer.size_large", param="size", size=size, most=int(found[1]))
    return Invalid("tokenizer.not_trained", param="texts", why=error)
