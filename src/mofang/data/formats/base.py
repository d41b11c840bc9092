"""What every layout of examples offers."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mofang.messages import Message


class BadField(Exception):
    """A record's field cannot be used. The reader adds file and line."""

    def __init__(self, field: str, why: str) -> None:
        super().__init__(field, why)
        self.field = field
        self.why = why
        """A key of strings/data.toml: what would be right."""


@dataclass(frozen=True, slots=True)
class Format:
    """`fields`: names by which a first record is recognized, all of them there. `read`: a record's conversation,
    the last message the assistant's; raises BadField.
    """

    fields: frozenset[str]
    read: Callable[[dict[str, Any]], list[Message]]


def text(record: dict[str, Any], name: str, *, needed: bool = True, label: str = "") -> str:
    """The text of a field. Raises BadField when it is no text, or empty where it is needed."""
    value = record.get(name)
    if value is None and not needed:
        return ""
    if value is None:
        raise BadField(label or name, "data.why_missing")
    if not isinstance(value, str):
        raise BadField(label or name, "data.why_not_text")
    if needed and not value.strip():
        raise BadField(label or name, "data.why_empty")
    return value
