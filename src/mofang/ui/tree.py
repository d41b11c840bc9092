"""A conversation is a tree of messages; a page shows one path through it. Pure functions over the API's JSON.

A message's siblings of the same role are its versions (a question asked again gives its answer a sibling).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

Message = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Turn:
    """A message on the path, and which of its versions it is: `version` from 0 of `versions` message ids."""

    message: Message
    version: int
    versions: tuple[str, ...]


def path(messages: Iterable[Message], chosen: Mapping[str, str]) -> list[Turn]:
    """The path from the root; at a fork the child that `chosen` names for the parent's id ("" for the root), else the
    one that leads to what was said last. Messages whose parent is missing are roots: nothing that was said is hidden."""
    listed = list(messages)
    ids = {message["id"] for message in listed}
    latest = {message["id"]: place for place, message in enumerate(listed)}
    for message in reversed(listed):  # a message stands after its parent
        if (parent := message.get("parent_id")) in ids:
            latest[parent] = max(latest[parent], latest[message["id"]])
    children: dict[str, list[Message]] = {}
    for message in listed:
        parent = message.get("parent_id")
        children.setdefault(str(parent) if parent in ids else "", []).append(message)
    turns: list[Turn] = []
    at = ""
    while forks := children.pop(at, []):
        newest = max(forks, key=lambda message: latest[message["id"]])
        here = next((message for message in forks if message["id"] == chosen.get(at)), newest)
        versions = tuple(message["id"] for message in forks if message["role"] == here["role"])
        turns.append(Turn(here, versions.index(here["id"]), versions))
        at = here["id"]
    return turns


def choices_to(messages: Iterable[Message], message_id: str) -> dict[str, str]:
    """What `path` must be told so that the message stands on it."""
    parents = {message["id"]: message.get("parent_id") for message in messages}
    choices: dict[str, str] = {}
    at: str | None = message_id
    while at is not None and at in parents and at not in choices.values():
        parent: str | None = parents[at]
        choices[parent if parent is not None and parent in parents else ""] = at
        at = parent
    return choices


def words_of(message: Mapping[str, Any]) -> str:
    """A message's text; of content in parts, that of its parts."""
    content = message.get("content") or ""
    if isinstance(content, list):
        return "\n\n".join(str(part.get("text") or "") for part in content if part.get("type") == "text")
    return str(content)


def title_of(question: str, limit: int = 30) -> str:
    """A conversation's first name: the first line of its first question, cut with an ellipsis."""
    line = " ".join((question.strip().splitlines() or [""])[0].split())
    return line if len(line) <= limit else line[: limit - 1] + "…"
