"""The tokenizer of a Hugging Face folder: tokenizer.json, or tokenizer.model where there is none (SentencePiece), and
what the files beside it say of special tokens."""

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Backend

from mofang.errors import Unreadable
from mofang.models.formats import hf
from mofang.tokenizer import sentence
from mofang.tokenizer.base import Cutter, Tokenizer
from mofang.tokenizer.fast import Fast

FAST, SENTENCE = "tokenizer.json", "tokenizer.model"


def read(folder: Path, file: Path) -> Tokenizer:
    """`file` holds the vocabulary, `folder` what else is said of it. Raises Unreadable, MissingExtra."""
    config = _json(folder / "tokenizer_config.json")
    backend = _sentence(folder, file, config) if file.suffix == ".model" else _fast(file)
    generation = {**_json(folder / "config.json"), **_json(folder / "generation_config.json")}
    stated = generation.get("eos_token_id")
    ends = {item for item in (stated if isinstance(stated, list) else [stated]) if isinstance(item, int)}
    eos = _id(backend, config.get("eos_token"))
    return Tokenizer(
        backend=backend,
        eos_id=eos if eos is not None else min(ends, default=None),
        bos_id=_id(backend, config.get("bos_token")),
        pad_id=_id(backend, config.get("pad_token")),
        add_bos=_adds_bos(backend, config),
        chat_template=hf.template(folder),
        end_ids=frozenset(ends | ({eos} if eos is not None else set())),
    )


def _fast(file: Path) -> Fast:
    try:
        return Fast(Backend.from_file(str(file)))
    except Exception as error:  # tokenizers raises a bare Exception
        raise Unreadable("tokenizer.broken", path=file, why=error) from error


def _sentence(folder: Path, file: Path, config: dict[str, Any]) -> sentence.SentencePiece:
    try:
        proto = sentence.parse(file.read_bytes(), file)
    except OSError as error:
        raise Unreadable("tokenizer.broken", path=file, why=error) from error
    known = {piece.piece for piece in proto.pieces}
    decoder = config.get("added_tokens_decoder")
    stated = {
        **{str(token.get("content")): int(number) for number, token in (decoder or {}).items()},
        **{str(name): int(number) for name, number in _json(folder / "added_tokens.json").items()},
    }
    added = sorted(((name, number) for name, number in stated.items() if name not in known), key=lambda each: each[1])
    return sentence.SentencePiece.checked(proto, file, added)


def _adds_bos(backend: Cutter, config: dict[str, Any]) -> bool:
    """What the tokenizer itself does with an empty text; else what its configuration says."""
    bos = _id(backend, config.get("bos_token"))
    if bos is not None and isinstance(backend, Fast) and bos in backend.backend.encode("").ids:
        return True
    return bool(config.get("add_bos_token", not isinstance(backend, Fast) and bos is not None))


def _id(backend: Cutter, token: Any) -> int | None:
    text = token.get("content") if isinstance(token, dict) else token
    return backend.token_id(text) if isinstance(text, str) else None


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise Unreadable("models.config_broken", path=path, why=error) from error
    return value if isinstance(value, dict) else {}
