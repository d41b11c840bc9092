"""Personas out of files: our own JSON, character cards (v1 and v2, as JSON or within a PNG), text-generation-webui's YAML.

Nothing of a file is run or unpacked: a PNG's text chunks are cut out by their lengths, YAML is read as data, and every
text has a bound. Sources: malfoyslastname/character-card-spec-v2; text-generation-webui, user_data/characters.
"""

import base64
import binascii
import json
import re
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import yaml

from mofang.errors import TooLarge, Unreadable
from mofang.strings import say

FILE_BYTES = 16_000_000
"""Of a card with its picture."""
TEXT_BYTES = 2_000_000
"""Of what is said in it."""
PNG = b"\x89PNG\r\n\x1a\n"
CARD_KEYS = ("chara", "ccv3")
"""Names of the text chunks that hold a card, the one that we prefer first."""


def read(data: bytes, lang: str) -> list[dict[str, Any]]:
    """Every persona of a file: {"name", "system", "greeting", …} each. `lang`: what "{{user}}" is called in.

    Raises TooLarge, or Unreadable where the file is no card.
    """
    if len(data) > FILE_BYTES:
        raise TooLarge("server.card_too_large", found=f"{len(data) / 1e6:.1f}", limit=FILE_BYTES // 1_000_000)
    shape = _decoded(_from_png(data) if data.startswith(PNG) else data)
    listed = shape if isinstance(shape, list) else [shape]
    if not listed:
        raise Unreadable("server.no_card", why=say("server.card_without_name", lang=lang))
    return [_persona(one, lang) for one in listed]


def _persona(shape: Any, lang: str) -> dict[str, Any]:
    for reader in READERS:
        if isinstance(shape, Mapping) and (found := reader(shape)) is not None:
            break
    else:
        raise Unreadable("server.no_card", why=say("server.card_without_name", lang=lang))
    name = " ".join(str(found["name"]).split())[:100]
    if not name:
        raise Unreadable("server.no_card", why=say("server.card_without_name", lang=lang))
    texts = {field: _named(found[field], name, lang) for field in ("system", "greeting")}
    return {**found, **texts, "name": name}


def _named(text: str, name: str, lang: str) -> str:
    """With the names in the places that cards leave for them."""
    text = re.sub(r"\{\{char\}\}|<BOT>|<CHAR>", lambda _: name, text, flags=re.IGNORECASE)
    return re.sub(
        r"\{\{user\}\}|<USER>", lambda _: say("server.card_user", lang=lang), text, flags=re.IGNORECASE
    ).strip()


# ---- formats ----


def _card(shape: Mapping[str, Any]) -> dict[str, Any] | None:
    """Character cards; v2 and later keep v1's fields under "data"."""
    data = shape.get("data")
    card = data if isinstance(data, Mapping) and str(shape.get("spec", "")).startswith("chara_card_") else shape
    if "first_mes" not in card:
        return None
    told = [_text(card, name) for name in ("system_prompt", "description", "personality", "scenario", "mes_example")]
    told[0] = told[0].replace("{{original}}", "").strip()
    return {
        "name": _text(card, "name"),
        "system": "\n\n".join(part for part in told if part),
        "greeting": _text(card, "first_mes"),
    }


def _webui(shape: Mapping[str, Any]) -> dict[str, Any] | None:
    """text-generation-webui's characters."""
    if "context" not in shape:
        return None
    return {
        "name": _text(shape, "name"),
        "system": _text(shape, "context"),
        "greeting": _text(shape, "greeting"),
    }


def _ours(shape: Mapping[str, Any]) -> dict[str, Any] | None:
    """As GET /v1/personas/{id} tells one."""
    if "name" not in shape or not ({"system", "greeting"} & shape.keys()):
        return None
    found: dict[str, Any] = {name: _text(shape, name) for name in ("name", "system", "greeting")}
    if isinstance(shape.get("sampling"), Mapping):
        found["sampling"] = dict(shape["sampling"])
    if isinstance(shape.get("model"), str) and shape["model"]:
        found["model"] = shape["model"]
    return found


READERS: Sequence[Callable[[Mapping[str, Any]], dict[str, Any] | None]] = (_card, _webui, _ours)
"""Each tells the persona of a decoded file, None where that is not its format."""


def _text(shape: Mapping[str, Any], name: str) -> str:
    value = shape.get(name)
    return value.strip() if isinstance(value, str) else ""


# ---- bytes ----


def _decoded(data: bytes) -> Any:
    """JSON, or YAML, which most JSON also is; what JSON says of its own mistakes is clearer."""
    if len(data) > TEXT_BYTES:
        raise TooLarge("server.card_too_large", found=f"{len(data) / 1e6:.1f}", limit=TEXT_BYTES // 1_000_000)
    try:
        text = data.decode("utf-8-sig")
        return json.loads(text) if text.lstrip()[:1] in ("{", "[") else yaml.safe_load(text)
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        raise Unreadable("server.no_card", why=" ".join(str(error).split())[:200]) from error


def _from_png(data: bytes) -> bytes:
    """The card in a PNG's text chunks."""
    found = {keyword: text for keyword, text in _text_chunks(data) if keyword in CARD_KEYS}
    for name in CARD_KEYS:
        if name in found:
            try:
                return base64.b64decode(found[name], validate=True)
            except binascii.Error as error:
                raise Unreadable("server.no_card", why=str(error)) from error
    raise Unreadable("server.png_without_card")


def _text_chunks(data: bytes) -> Iterator[tuple[str, bytes]]:
    """Keyword and text of every tEXt chunk. A chunk: length (4 bytes), kind (4), content, check sum (4); PNG 5.3."""
    at = len(PNG)
    while at + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        if kind == b"IEND":
            return
        if at + 12 + length > len(data):
            raise Unreadable("server.no_card", why="PNG: the file ends within a chunk")
        if kind == b"tEXt":
            keyword, _, text = data[at + 8 : at + 8 + length].partition(b"\0")
            yield keyword.decode("latin-1"), text
        at += 12 + length
