"""What one record of a file teaches: a conversation, two answers to compare, or running text; and where it stands."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mofang.messages import Message


@dataclass(frozen=True, slots=True)
class Conversation:
    """Ends with the assistant; all that the assistant says is learned."""

    messages: list[Message]
    file: Path = Path()
    row: int = 0
    """From 1: the line of a JSONL, CSV or text file, the element of a JSON list, the row of a Parquet file."""
    tools: list[dict[str, Any]] = field(default_factory=list)
    """OpenAI's descriptions of the functions that may be called."""

    def digest(self) -> int:
        return _digest([_told(self.messages), self.tools])


@dataclass(frozen=True, slots=True)
class Pair:
    """A question and two answers to it, the better one and the worse one."""

    prompt: list[Message]
    chosen: list[Message]
    rejected: list[Message]
    file: Path = Path()
    row: int = 0
    tools: list[dict[str, Any]] = field(default_factory=list)

    def digest(self) -> int:
        return _digest([_told(self.prompt), _told(self.chosen), _told(self.rejected), self.tools])


@dataclass(frozen=True, slots=True)
class Document:
    """Running text; all of it is learned."""

    text: str
    file: Path = Path()
    row: int = 0
    more: bool = False
    """The file goes on in the next row: no end is learned here."""

    def digest(self) -> int:
        return _digest(self.text)


Row = Conversation | Pair | Document


def _told(messages: Sequence[Message]) -> list[dict[str, Any]]:
    return [message.to_openai() for message in messages]


def _digest(content: Any) -> int:
    """64 bits of what a row says, wherever it stands: the same row is the same on every machine."""
    raw = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False, sort_keys=True)
    return int.from_bytes(hashlib.blake2b(raw.encode(errors="surrogatepass"), digest_size=8).digest(), "little")
