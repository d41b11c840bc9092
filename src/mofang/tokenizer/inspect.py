"""What a tokenizer is, and how it cuts a text: facts for people and programs. Knows nothing of terminals."""

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

from mofang.tokenizer.base import Tokenizer
from mofang.tokenizer.scripts import script_of


@dataclass(frozen=True, slots=True)
class Piece:
    """One token. `piece` as the vocabulary spells it; `text` is "" where the bytes are no whole characters."""

    id: int
    piece: str
    bytes: str
    """Hexadecimal, "e4 bd a0"."""
    text: str
    special: bool


def piece(tokenizer: Tokenizer, token_id: int) -> Piece:
    """The token of that id."""
    data = tokenizer.backend.data(token_id)
    try:
        text = data.decode()
    except UnicodeDecodeError:
        text = ""
    special = token_id in tokenizer.backend.added()
    return Piece(token_id, tokenizer.token(token_id), data.hex(" "), text, special)


def cut(tokenizer: Tokenizer, text: str) -> dict[str, Any]:
    """How `text` is cut: its tokens in order, and whether they give it back."""
    ids = tokenizer.encode(text)
    return {
        "text": text,
        "tokens": [asdict(piece(tokenizer, token_id)) for token_id in ids],
        "n_tokens": len(ids),
        "n_characters": len(text),
        "n_bytes": len(text.encode()),
        "round_trip": tokenizer.decode(ids) == text,
    }


def facts(tokenizer: Tokenizer) -> dict[str, Any]:
    """The vocabulary in numbers: its kind, its size, its special tokens, and how many pieces each script has."""
    added = tokenizer.backend.added()
    scripts: Counter[str] = Counter()
    longest = ""
    for token_id in range(tokenizer.n_vocab):
        if token_id in added:
            continue
        found = piece(tokenizer, token_id)
        if not found.text:
            scripts["bytes"] += 1
            continue
        inner = found.text.strip() or found.text
        kinds = {script_of(character) for character in inner}
        scripts["han" if "han" in kinds else kinds.pop() if len(kinds) == 1 else "mixed"] += 1
        if kinds == {"han"} or "han" in kinds:
            longest = max(longest, inner, key=len)
    return {
        "kind": tokenizer.backend.kind(),
        "n_vocab": tokenizer.n_vocab,
        "n_special": len(added),
        "pieces": dict(scripts.most_common()),
        "longest_han": longest,
        "bos": _special(tokenizer, tokenizer.bos_id),
        "eos": _special(tokenizer, tokenizer.eos_id),
        "pad": _special(tokenizer, tokenizer.pad_id),
        "add_bos": tokenizer.add_bos,
        "chat_template": bool(tokenizer.chat_template),
        "sha256": tokenizer.sha256(),
    }


def _special(tokenizer: Tokenizer, token_id: int | None) -> dict[str, Any] | None:
    return None if token_id is None else {"id": token_id, "piece": tokenizer.token(token_id)}
