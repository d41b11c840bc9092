"""Files in a conversation: its turns refer to them, and the prompt that is made of a turn holds what they say.

A turn keeps the reference only, so that later turns and other versions have the file too. Files are data, as documents
are: the text of each stands named between fences that nothing in it can close, and holds no control token of a chat
template. Pictures become parts that a model with eyes sees.
"""

import asyncio
import re
from base64 import b64encode
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, TypeVar

from mofang.engine.base import ChatEngine
from mofang.errors import Invalid, NotFound
from mofang.knowledge.answer import harmless
from mofang.messages import Message
from mofang.server.files import Files, Reading
from mofang.server.truncate import PINNED
from mofang.strings import say

LEAST_ANSWER: Final = 256
"""Tokens of the context that a prompt with files leaves for the answer."""
_FENCE = re.compile(r"`{3,}")
Part = dict[str, Any]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Attached:
    """What the files of a conversation say, by their ids; None: the file is no longer there."""

    readings: Mapping[str, Reading | None]

    def gone(self) -> list[str]:
        return [file_id for file_id, reading in self.readings.items() if reading is None]

    def whole(self, message: Message) -> Message:
        """The message with its files in their places."""
        if not isinstance(message.content, list) or not message.file_ids:
            return message
        return replace(message, content=_joined([self._part(part) for part in message.content]))

    def into(self, grounded: Sequence[Message], turns: Sequence[Message]) -> list[Message]:
        """Messages that end with `turns`, in other words perhaps: each with its turn's files before it."""
        asked = [turn for turn in turns if turn.role not in PINNED]
        first = len(grounded) - len(asked)
        return [
            self._before(message, asked[place - first]) if place >= first else message
            for place, message in enumerate(grounded)
        ]

    async def check_room(self, engine: ChatEngine, messages: Sequence[Message], options: Mapping[str, Any]) -> None:
        """Raise Invalid where the files leave no room for an answer; what pictures take only the engine knows."""
        if not self.readings or any(message.has_image for message in messages):
            return
        info = engine.info()
        room = info.n_ctx - min(LEAST_ANSWER, info.n_ctx // 2)
        n_prompt = await _told(engine.count_tokens(messages, options=options))
        if n_prompt is not None and n_prompt > room:
            raise Invalid("server.files_too_long", param="messages", model=info.model, n_prompt=n_prompt, room=room)

    def _before(self, message: Message, turn: Message) -> Message:
        if not turn.file_ids:
            return message
        own = message.content if isinstance(message.content, list) else [{"type": "text", "text": message.text}]
        files = [part for part in turn.content if part.get("type") == "file"] if isinstance(turn.content, list) else []
        return replace(message, content=_joined([*map(self._part, files), *own]))

    def _part(self, part: Part) -> Part:
        if part.get("type") != "file":
            return part
        reading = self.readings.get(part["file"]["file_id"])
        if reading is None:
            name = part["file"].get("filename") or part["file"]["file_id"]
            return {"type": "text", "text": say("server.attached_gone", name=name)}
        if reading.media_type:
            data = b64encode(reading.data).decode()
            return {"type": "image_url", "image_url": {"url": f"data:{reading.media_type};base64,{data}"}}
        return {"type": "text", "text": shown(reading)}


def shown(reading: Reading) -> str:
    """A file's text, named, between fences longer than any in it."""
    text = harmless(reading.text).strip("\n")
    fence = "`" * (1 + max((len(found) for found in _FENCE.findall(text)), default=2))
    return f"{say('server.attached', name=harmless(reading.name))}\n{fence}\n{text}\n{fence}"


def plain(message: Message) -> Message:
    """The message as a person wrote it, without its files."""
    if not isinstance(message.content, list) or not message.file_ids:
        return message
    return replace(message, content=_joined([part for part in message.content if part.get("type") != "file"]))


def _joined(parts: Sequence[Part]) -> str | list[Part]:
    """Texts that follow each other as one, since many chat templates take no list; all of it as text where all is."""
    joined: list[Part] = []
    for part in parts:
        if part.get("type") == "text" and joined and joined[-1].get("type") == "text":
            joined[-1] = {"type": "text", "text": f"{joined[-1]['text']}\n\n{part['text']}"}
        else:
            joined.append(part)
    if not joined:
        return ""
    return str(joined[0]["text"]) if len(joined) == 1 and joined[0].get("type") == "text" else joined


async def read(files: Files, messages: Sequence[Message]) -> Attached:
    """What the files say that these messages refer to. Raises NotFound where one of the last question is not there, or
    not the asker's, and what the loader of its format says; an earlier one may be gone, and that is told."""
    last = next((message for message in reversed(messages) if message.role == "user"), None)
    asked = set(last.file_ids) if last else set()
    readings: dict[str, Reading | None] = {}
    for file_id in dict.fromkeys(file_id for message in messages for file_id in message.file_ids):
        try:
            readings[file_id] = await asyncio.to_thread(files.reading, file_id)
        except NotFound:
            if file_id in asked:
                raise
            readings[file_id] = None
    return Attached(readings)


async def named(files: Files, turns: Sequence[Message]) -> list[Message]:
    """Turns that are about to be kept, each file with its own name. Raises NotFound, and Unreadable for a file that
    says nothing: better now than in an answer that fails."""
    return [replace(turn, content=await _named(files, turn.content)) if turn.file_ids else turn for turn in turns]


async def _named(files: Files, content: Any) -> list[Part]:
    parts = []
    for part in content:
        if part.get("type") == "file":
            reading = await asyncio.to_thread(files.reading, part["file"]["file_id"])
            part = {"type": "file", "file": {"file_id": part["file"]["file_id"], "filename": reading.name}}
        parts.append(part)
    return parts


async def counted(attached: Attached, engine: ChatEngine) -> list[dict[str, Any]]:
    """Each file with its tokens as this model cuts them (None for a picture, and where the model's server tells none),
    and what a person should know about how it was read."""
    return [
        {
            "file_id": file_id,
            "filename": reading.name,
            "tokens": await _tokens(reading, engine),
            "notes": list(reading.notes),
        }
        for file_id, reading in attached.readings.items()
        if reading is not None
    ]


async def _tokens(reading: Reading, engine: ChatEngine) -> int | None:
    tokens = None if reading.media_type else await _told(engine.tokenize(reading.text, parse_special=False))
    return None if tokens is None else len(tokens)


async def _told(asked: Coroutine[Any, Any, T]) -> T | None:
    """None where the model's server does not tell such things."""
    try:
        return await asked
    except Invalid as error:
        if error.code != "remote_has_no":
            raise
        return None
