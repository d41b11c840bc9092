"""The tokenizer of a Hugging Face folder: tokenizer.json and what the files beside it say of special tokens."""

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Backend

from mofang.errors import Unreadable
from mofang.models.formats import hf
from mofang.tokenizer.base import Tokenizer


def read(folder: Path) -> Tokenizer:
    """Raises Unreadable."""
    try:
        backend = Backend.from_file(str(folder / "tokenizer.json"))
    except Exception as error:  # tokenizers raises a bare Exception
        raise Unreadable("tokenizer.broken", path=folder / "tokenizer.json", why=error) from error
    config = _json(folder / "tokenizer_config.json")
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


def _adds_bos(backend: Backend, config: dict[str, Any]) -> bool:
    """What the tokenizer itself does with an empty text; else what its configuration says."""
    bos = _id(backend, config.get("bos_token"))
    if bos is not None and bos in backend.encode("").ids:
        return True
    return bool(config.get("add_bos_token"))


def _id(backend: Backend, token: Any) -> int | None:
    text = token.get("content") if isinstance(token, dict) else token
    found: int | None = backend.token_to_id(text) if isinstance(text, str) else None
    return found


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise Unreadable("models.config_broken", path=path, why=error) from error
    return value if isinstance(value, dict) else {}
