"""What people keep to begin conversations with: personas, and presets of sampling. One table each, of the same manner.

A key sees and changes its own, the machine's own user all; the presets of presets.toml are everybody's and nobody's to
change. Methods are one transaction each and block.
"""

import json
import sqlite3
import tomllib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from mofang.engine.base import CALLER
from mofang.errors import Conflict, NotFound
from mofang.server.store import new_id, now
from mofang.server.store.database import Database

JSON_FIELDS = {"sampling"}


class Shelf:
    """One kind of kept things. `table` is theirs, `prefix` begins their ids, `missing` is what is said of an id that is
    none of the asker's."""

    def __init__(self, database: Database, table: str, prefix: str, missing: str) -> None:
        self._database, self._table, self._prefix, self._missing = database, table, prefix, missing

    def all(self) -> list[dict[str, Any]]:
        """Oldest first."""
        with self._database.reading() as db:
            query = f"SELECT * FROM {self._table} WHERE ? IN ('', owner) ORDER BY number"  # noqa: S608 (our own words)
            return [_shape(row) for row in db.execute(query, (CALLER.get(),)).fetchall()]

    def get(self, thing_id: str) -> dict[str, Any]:
        """Raises NotFound, also for another key's."""
        with self._database.reading() as db:
            return _shape(self._find(db, thing_id))

    def create(self, *things: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Keep these, all or none of them."""
        made = []
        with self._database.transaction() as db:
            for fields in things:
                moment, thing_id = now(), new_id(self._prefix)
                values = {"id": thing_id, "owner": CALLER.get(), "created_at": moment, "updated_at": moment}
                values |= _columns(fields)
                names, marks = ", ".join(values), ", ".join("?" * len(values))
                query = f"INSERT INTO {self._table} ({names}) VALUES ({marks})"  # noqa: S608 (our own words)
                db.execute(query, tuple(values.values()))
                made.append(thing_id)
            return [_shape(self._find(db, thing_id)) for thing_id in made]

    def change(self, thing_id: str, fields: Mapping[str, Any]) -> dict[str, Any]:
        with self._database.transaction() as db:
            self._find(db, thing_id)
            values = {**_columns(fields), "updated_at": now()}
            pairs = ", ".join(f"{name} = ?" for name in values)
            query = f"UPDATE {self._table} SET {pairs} WHERE id = ?"  # noqa: S608 (our own words)
            db.execute(query, (*values.values(), thing_id))
            return _shape(self._find(db, thing_id))

    def delete(self, thing_id: str) -> None:
        with self._database.transaction() as db:
            self._find(db, thing_id)
            db.execute(f"DELETE FROM {self._table} WHERE id = ?", (thing_id,))  # noqa: S608 (our own words)

    def _find(self, db: sqlite3.Connection, thing_id: str) -> sqlite3.Row:
        query = f"SELECT * FROM {self._table} WHERE id = ? AND ? IN ('', owner)"  # noqa: S608 (our own words)
        row: sqlite3.Row | None = db.execute(query, (thing_id, CALLER.get())).fetchone()
        if row is None:
            raise NotFound(self._missing, id=thing_id)
        return row


class Presets(Shelf):
    """The asker's own after those that everybody has."""

    def listed(self, lang: str) -> list[dict[str, Any]]:
        """Everybody's first, named in `lang`."""
        builtin = [
            {"id": name, "name": preset["name"][lang], "sampling": preset["sampling"], "builtin": True}
            for name, preset in builtin_presets().items()
        ]
        return [*builtin, *({**one, "builtin": False} for one in self.all())]

    def change(self, thing_id: str, fields: Mapping[str, Any]) -> dict[str, Any]:
        self._check_own(thing_id)
        return super().change(thing_id, fields)

    def delete(self, thing_id: str) -> None:
        self._check_own(thing_id)
        super().delete(thing_id)

    def _check_own(self, thing_id: str) -> None:
        if thing_id in builtin_presets():
            raise Conflict("server.builtin_preset", id=thing_id)


@cache
def builtin_presets() -> dict[str, dict[str, Any]]:
    """{id: {"name": {language: text}, "sampling"}}, in the file's order."""
    with (Path(__file__).parent / "presets.toml").open("rb") as file:
        return tomllib.load(file)


def shelves(database: Database) -> tuple[Shelf, Presets]:
    """Personas and presets."""
    return (
        Shelf(database, "personas", "persona", "server.persona_not_found"),
        Presets(database, "presets", "preset", "server.preset_not_found"),
    )


def _columns(fields: Mapping[str, Any]) -> dict[str, Any]:
    encode = {name: json.dumps(fields[name], ensure_ascii=False) for name in JSON_FIELDS & fields.keys()}
    return {**fields, **encode}


def _shape(row: sqlite3.Row) -> dict[str, Any]:
    shape: dict[str, Any] = {name: row[name] for name in row.keys() if name not in ("number", "owner")}  # noqa: SIM118
    return {**shape, **{name: json.loads(row[name]) for name in JSON_FIELDS}}
