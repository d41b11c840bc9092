"""A name → "module:attribute" table, imported only when a name is asked for.

Each room that can be extended (engines, sources, loaders, splitters…) has one literal table in its `__init__.py`: it
greps, it is the documentation, and import order cannot matter. Third parties add names by entry points of the group
"mofang.<kind>".
"""

import difflib
import importlib
import importlib.metadata
import importlib.util
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from mofang.errors import MissingExtra, UnknownName


@dataclass(frozen=True, slots=True)
class Entry:
    """One name's place in the code.

    target: "package.module:attribute". summary: one line for people. extra: the optional dependency group that it
    needs, and `library` the import name whose absence means that the group is not installed.
    """

    target: str
    summary: str
    extra: str = ""
    library: str = ""


class Registry:
    """The names of one kind. `get` fails in three distinct ways: UnknownName, MissingExtra, or our own ImportError."""

    def __init__(self, kind: str, entries: Mapping[str, Entry]) -> None:
        self.kind = kind
        self._entries = dict(entries)

    def names(self) -> list[str]:
        """Every name, ours first, then those of installed third parties."""
        return [*self._entries, *(name for name in self._third_party if name not in self._entries)]

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def entry(self, name: str) -> Entry:
        """What is known of `name` without importing it. Raises UnknownName."""
        if name in self._entries:
            return self._entries[name]
        third_party = self._third_party
        if name in third_party:
            return Entry(third_party[name], summary=f"entry point mofang.{self.kind}")
        close = difflib.get_close_matches(name, self.names(), n=1)
        raise UnknownName(
            "core.unknown_name",
            kind=self.kind,
            name=name,
            known=", ".join(self.names()),
            near=close[0] if close else "-",
        )

    def get(self, name: str) -> Any:
        """Import and return what `name` stands for."""
        entry = self.entry(name)
        if entry.library and importlib.util.find_spec(entry.library) is None:
            raise MissingExtra("core.missing_extra", name=name, library=entry.library, extra=entry.extra)
        module, attribute = entry.target.split(":")
        return getattr(importlib.import_module(module), attribute)

    @cached_property
    def _third_party(self) -> dict[str, str]:
        """Asked once: every look-up would else read the metadata of all installed packages (5 ms here)."""
        group = importlib.metadata.entry_points(group=f"mofang.{self.kind}")
        return {point.name: point.value for point in group}
