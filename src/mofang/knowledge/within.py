"""Which documents a search is limited to. Worked out once, in the search's own transaction; the legs get ids."""

import sqlite3
from dataclasses import dataclass
from fnmatch import translate
from re import compile as pattern

from mofang.errors import Invalid


@dataclass(frozen=True, slots=True)
class Filter:
    """Every condition that is given must hold; within one, any of its values will do."""

    documents: tuple[str, ...] = ()
    """Ids of documents."""
    names: tuple[str, ...] = ()
    """Names: a folder ("手册/"), a whole name, or a pattern with * ? [ ] in which * also crosses "/"."""
    types: tuple[str, ...] = ()
    """File suffixes, with or without their dot: "pdf"."""

    def __bool__(self) -> bool:
        return bool(self.documents or self.names or self.types)

    def resolve(self, connection: sqlite3.Connection) -> frozenset[str]:
        """The ids of the documents that pass. Raises Invalid for an empty value."""
        if not all(value.strip(". ") for value in (*self.documents, *self.names, *self.types)):
            raise Invalid("knowledge.empty_filter", param="filter")
        ids = frozenset(self.documents)
        names = [pattern(_glob(name)) for name in self.names]
        suffixes = tuple("." + one.strip().lstrip(".").lower() for one in self.types)
        return frozenset(
            row[0]
            for row in connection.execute("SELECT id, name FROM documents")
            if (not ids or row[0] in ids)
            and (not names or any(one.match(row[1]) for one in names))
            and (not suffixes or row[1].lower().endswith(suffixes))
        )


def _glob(name: str) -> str:
    return translate(name + "*" if name.endswith("/") else name)
