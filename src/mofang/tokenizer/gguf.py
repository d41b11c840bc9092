"""The tokenizer inside a GGUF file, as the engine itself would use it.

A byte-level BPE ("gpt2") is vocabulary and merges; how text is cut before the merges is only named there, so the rule
stands in cuts.py, by that name. Unicode is not normalized: llama.cpp does not, and training must see what serving sees.
SentencePiece ("llama" is BPE with scores, "t5" unigram) is put back into the form of its own library.
Source: llama.cpp src/llama-vocab.cpp (llm_tokenizer_bpe, llm_tokenizer_spm, token attributes); gguf's TokenType.
"""

from pathlib import Path
from typing import Any

from tokenizers import AddedToken

from mofang.errors import Unreadable
from mofang.models.formats import gguf
from mofang.tokenizer import sentence
from mofang.tokenizer.base import Cutter, Tokenizer
from mofang.tokenizer.cuts import CUTS, byte_level
from mofang.tokenizer.fast import Fast

_CONTROL, _USER_DEFINED, _UNUSED = 3, 4, 5
_PREFIX = "tokenizer.ggml."
_LISTS = tuple(_PREFIX + name for name in ("tokens", "token_type", "merges", "scores", "precompiled_charsmap"))

_ENDS = frozenset(
    {"<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|eom_id|>", "</s>", "<EOT>"}
)
"""Names of tokens that end an answer, as llama.cpp knows them."""


def read(path: Path) -> Tokenizer:
    """Raises Unreadable for a damaged file, or a kind of tokenizer that is not known here."""
    header = gguf.read(gguf.parts(path)[0], arrays=_LISTS)
    meta = header.metadata
    kind = str(meta.get(_PREFIX + "model", ""))
    if kind not in _KINDS:
        raise _unknown(path, kind)
    tokens = meta.get(_PREFIX + "tokens")
    if not isinstance(tokens, list):
        raise Unreadable("tokenizer.none", path=path)
    types = meta.get(_PREFIX + "token_type") or [1] * len(tokens)
    n_used = len(tokens)
    while n_used and types[n_used - 1] == _UNUSED:  # rows that only fill up the matrix
        n_used -= 1
    vocab = {token: number for number, token in enumerate(tokens[:n_used])}
    backend = _KINDS[kind](path, meta, tokens[:n_used], types[:n_used])
    eos = _id(meta, "eos_token_id")
    ends = {vocab[name] for name in _ENDS if name in vocab} | {
        number for key in ("eos_token_id", "eot_token_id", "eom_token_id") if (number := _id(meta, key)) is not None
    }
    template = meta.get("tokenizer.chat_template")
    return Tokenizer(
        backend=backend,
        eos_id=eos,
        bos_id=_id(meta, "bos_token_id"),
        pad_id=_id(meta, "padding_token_id"),
        add_bos=bool(meta.get(_PREFIX + "add_bos_token", kind == "llama")),
        chat_template=str(template) if template else None,
        end_ids=frozenset(ends),
    )


def _byte_level(path: Path, meta: dict[str, Any], tokens: list[str], types: list[int]) -> Cutter:
    pre, merges = str(meta.get(_PREFIX + "pre", "gpt-2")), meta.get(_PREFIX + "merges")
    if pre not in CUTS:
        raise _unknown(path, f"gpt2 ({pre})")
    if not isinstance(merges, list):
        raise Unreadable("tokenizer.none", path=path)
    vocab = {token: number for number, token in enumerate(tokens)}
    try:
        pairs = [tuple(merge.split(" ")) for merge in merges]
        backend = byte_level(vocab, pairs, pre)
    except Exception as error:  # tokenizers raises a bare Exception
        raise Unreadable("tokenizer.broken", path=path, why=error) from error
    backend.add_tokens(
        [
            AddedToken(token, special=types[number] == _CONTROL, normalized=False)
            for number, token in enumerate(tokens)
            if types[number] in (_CONTROL, _USER_DEFINED)
        ]
    )
    return Fast(backend)


def _sentence(model_type: int) -> Any:
    def read(path: Path, meta: dict[str, Any], tokens: list[str], types: list[int]) -> Cutter:
        return sentence.SentencePiece.checked(sentence_proto(meta, tokens, types, model_type), path)

    return read


def sentence_proto(meta: dict[str, Any], tokens: list[str], types: list[int], model_type: int) -> Any:
    """A ModelProto of a GGUF's vocabulary. Normalization is SentencePiece's table where the file has one, else none."""
    proto = sentence.proto_class()()
    scores = meta.get(_PREFIX + "scores") or [0.0] * len(tokens)
    unknown = types.index(sentence.UNKNOWN) if sentence.UNKNOWN in types else -1
    for number, (token, kind, score) in enumerate(zip(tokens, types, scores, strict=False)):
        second = kind == sentence.UNKNOWN and number != unknown  # the library knows one
        proto.pieces.add(piece=token, type=sentence.CONTROL if second else kind, score=score)
    proto.trainer_spec.model_type = model_type
    proto.trainer_spec.vocab_size = len(tokens)
    proto.trainer_spec.byte_fallback = sentence.BYTE in types
    for name in ("unknown", "bos", "eos", "padding"):
        stated = _id(meta, f"{name}_token_id")
        short = {"unknown": "unk", "padding": "pad"}.get(name, name)
        setattr(proto.trainer_spec, f"{short}_id", -1 if stated is None else stated)
        if stated is not None and stated < len(tokens):
            setattr(proto.trainer_spec, f"{short}_piece", tokens[stated])
    spec = proto.normalizer_spec
    spec.name = "identity"
    spec.add_dummy_prefix = bool(meta.get(_PREFIX + "add_space_prefix", True))
    spec.remove_extra_whitespaces = bool(meta.get(_PREFIX + "remove_extra_whitespaces", False))
    spec.precompiled_charsmap = bytes(byte & 255 for byte in meta.get(_PREFIX + "precompiled_charsmap") or [])
    return proto


_KINDS: dict[str, Any] = {
    "gpt2": _byte_level,
    "llama": _sentence(sentence.BPE),
    "t5": _sentence(sentence.UNIGRAM),
}
"""tokenizer.ggml.model → how it is read."""


def _unknown(path: Path, kind: str) -> Unreadable:
    known = ", ".join([*(f"gpt2 ({name})" for name in CUTS), *(name for name in _KINDS if name != "gpt2")])
    return Unreadable("tokenizer.unknown_kind", path=path, kind=kind, known=known)


def _id(meta: dict[str, Any], key: str) -> int | None:
    value = meta.get(_PREFIX + key)
    return value if isinstance(value, int) else None
