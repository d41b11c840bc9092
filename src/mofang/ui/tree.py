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
    newest. Messages whose parent is missing are roots: nothing that was said is hidden."""
    listed = list(messages)
    ids = {message["id"] for message in listed}
    children: dict[str, list[Message]] = {}
    for message in listed:
        parent = message.get("parent_id")
        children.setdefault(str(parent) if parent in ids else "", []).append(message)
    turns: list[Turn] = []
    at = ""
    while forks := children.pop(at, []):
        here = next((message for message in forks if message["id"] == chosen.get(at)), forks[-1])
        versions = tuple(message["id"] for message in forks if message["role"] == here["role"])
        turns.append(Turn(here, versions.index(here["id"]), versions))
        at = here["id"]
    return turns


def title_of(question: str, limit: int = 30) -> str:
    """A conversation's first name: the first line of its first question, cut with an ellipsis."""
    line = " ".join((question.strip().splitlines() or [""])[0].split())
    return line if len(line) <= limit else line[: limit - 1] + "…"
