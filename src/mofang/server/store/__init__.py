"""What the server remembers: conversations, their messages, and the answers that write them, in one SQLite file.

Every method is one transaction and blocks for it: the event loop calls them through worker threads. What is returned
is the API's JSON shape. Knows nothing of engines or HTTP.
"""

import json
import secrets
import sqlite3
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from mofang.engine.base import CALLER
from mofang.errors import Conflict, Invalid, NotFound
from mofang.messages import Message, Role
from mofang.server.store.database import Database
from mofang.server.store.search import search, words_of

ROOT = "root"
"""As `parent_id`: a new first turn, beside the ones that are there."""
FORGET_AFTER = timedelta(days=7)
"""Answers outside conversations, and the event logs of finished ones, are dropped at a start after this time."""
TITLE_CHARS = 30
"""Length of the title that a conversation gets from its first turn."""

RUNNING = ("queued", "running")
JSON_FIELDS = {"knowledge", "sampling", "tools"}


def now() -> str:
    """ISO 8601, UTC, milliseconds: sorts as text."""
    return iso(datetime.now(UTC))


def iso(moment: datetime) -> str:
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def new_id(prefix: str) -> str:
    """Not guessable, so that an id seen in one log opens nothing else."""
    return f"{prefix}-{secrets.token_hex(12)}"


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


@dataclass
class Read:
    """A conversation that came in: its own fields, and its messages, each after its parent.

    A message is {"id", "parent_id", "role", "content"} and, where they are known, "parts", "reasoning", "sources", "usage",
    "timings", "model", "status", "created_at", "extra"; the ids mean something within this conversation only.
    """

    fields: dict[str, Any]
    messages: list[dict[str, Any]] = field(default_factory=list)
    skipped: int = 0
    """Messages that hold nothing we can show."""


class Store:
    """The file `<home>/server.db`. Raises Conflict (core.newer_home) when a newer Mofang wrote it."""

    def __init__(self, path: Path) -> None:
        self._database = self.database = Database(path)

    def close(self) -> None:
        self._database.close()

    # ---- conversations ----

    def conversations(self, query: str = "") -> list[dict[str, Any]]:
        """All of them without their messages, last touched first. With a query those that hold its words, each with
        where: "hit" (store/search.py)."""
        with self._database.reading() as db:
            if words_of(query):
                return [{**_conversation(row, _running(db, row["id"])), "hit": hit} for row, hit in search(db, query)]
            rows = db.execute("SELECT * FROM conversations ORDER BY updated_at DESC, number DESC").fetchall()
            return [_conversation(row, _running(db, row["id"])) for row in rows if _seen(row)]

    def conversation(self, conversation_id: str) -> dict[str, Any]:
        """With every message of its tree, in the order of their creation."""
        with self._database.reading() as db:
            row = _find_conversation(db, conversation_id)
            messages = db.execute(
                "SELECT * FROM messages WHERE conversation_id = ? ORDER BY number", (conversation_id,)
            ).fetchall()
            shape = _conversation(row, _running(db, conversation_id))
            return {**shape, "messages": [_message(message) for message in messages]}

    def create_conversation(self, fields: Mapping[str, Any], greeting: str = "") -> dict[str, Any]:
        """`greeting`: what the model says first."""
        values = {"id": new_id("conv"), "created_at": now(), "updated_at": now(), "owner": CALLER.get()}
        values |= _columns(fields)
        with self._database.transaction() as db:
            _insert(db, "conversations", values)
            if greeting:
                _add_turn(db, values["id"], None, Message("assistant", greeting), values["created_at"])
        return self.conversation(values["id"])

    def import_conversations(self, conversations: Sequence[Read]) -> list[dict[str, Any]]:
        """Keep what was read, all of it or nothing, under new ids; without the messages, in the order given."""
        kept = []
        with self._database.transaction() as db:
            for one in conversations:
                moment, home = now(), new_id("conv")
                values = {"id": home, "created_at": moment, "updated_at": moment, "owner": CALLER.get()}
                _insert(db, "conversations", values | _columns(one.fields))
                ids: dict[str | None, str | None] = {None: None}
                for message in one.messages:
                    ids[message["id"]] = _add_read(db, home, message, ids, moment)
                said = [Message(message["role"], message["content"]) for message in one.messages]
                _touch(db, home, said)
                kept.append(home)
            rows = [_find_conversation(db, home) for home in kept]
            return [_conversation(row, None) for row in rows]

    def change_conversation(self, conversation_id: str, fields: Mapping[str, Any]) -> dict[str, Any]:
        with self._database.transaction() as db:
            _find_conversation(db, conversation_id)
            _update(db, "conversations", conversation_id, {**_columns(fields), "updated_at": now()})
        return self.conversation(conversation_id)

    def delete_conversation(self, conversation_id: str) -> None:
        """With its messages and answers."""
        with self._database.transaction() as db:
            _find_conversation(db, conversation_id)
            db.execute("DELETE FROM conversations WHERE id = ?", (conversation_id,))

    def add_message(
        self,
        conversation_id: str,
        *,
        content: str,
        role: Role | None = None,
        parent_id: str | None = None,
        edits: str | None = None,
    ) -> dict[str, Any]:
        """A message that a person wrote, placed as `begin` places a turn, or as a new version of the message `edits`.

        A version of an answer keeps its sources, one of a turn its files. Raises NotFound; Conflict while the message or
        parent is being written.
        """
        with self._database.transaction() as db:
            _find_conversation(db, conversation_id)
            kept: dict[str, Any] = {}
            turn = Message(role or "user", content)
            if edits is None:
                parent, _ = _place(db, conversation_id, parent_id)
            else:
                old = _find_message(db, conversation_id, edits)
                turn, parent = _in_place_of(old, content), old["parent_id"]
                parts = {"parts": turn.content} if turn.file_ids else {}
                kept = {"sources": old["sources"], "extra": _json({"edits": edits, **parts})}
            turn_id = _add_turn(db, conversation_id, parent, turn, now())
            if kept:
                _update(db, "messages", turn_id, kept)
            _touch(db, conversation_id, [turn])
            return _message(_find_row(db, turn_id))

    # ---- calls of tools ----

    def claim_call(self, conversation_id: str, message_id: str, call_id: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """The message of the result, empty and "running", and the call `call_id` of the answer `message_id` that it is
        for. Whoever gets them settles the call; nobody else will. Calls are claimed in their order, each result below
        the one before: models tell results apart by it.

        Raises NotFound; Conflict for a call that was claimed already, or whose turn has not come.
        """
        with self._database.transaction() as db:
            _find_conversation(db, conversation_id)
            answer = _find_message(db, conversation_id, message_id)
            calls, below = _calls(answer), _results(db, answer)
            place = next((n for n, call in enumerate(calls) if call["id"] == call_id), None)
            if place is None:
                raise NotFound("tools.no_call", id=call_id, message=message_id)
            if place < len(below):
                raise Conflict("tools.call_decided", id=call_id)
            if place > len(below):
                raise Conflict("tools.not_yet", id=call_id, first=calls[len(below)]["id"])
            turn = Message("tool", "", calls[place]["function"]["name"], None, call_id)
            parent = below[-1]["id"] if below else message_id
            turn_id = _add_turn(db, conversation_id, parent, turn, now())
            _update(db, "messages", turn_id, {"status": "running"})
            _touch(db, conversation_id, [])
            return _message(_find_row(db, turn_id)), calls[place]

    def settle_call(self, message_id: str, content: str, outcome: str, seconds: float) -> str | None:
        """Store what came of a claimed call. With it the last of an answer's calls may be settled: the message to go on
        from; None while others are not, where the conversation has gone on, and where it is gone."""
        with self._database.transaction() as db:
            row = _find_row(db, message_id)
            if row is None:
                return None
            extra = {**json.loads(row["extra"]), "outcome": outcome, "seconds": round(seconds, 3)}
            _update(db, "messages", message_id, {"content": content, "status": "done", "extra": _json(extra)})
            answer = row
            while answer["role"] == "tool":
                answer = _find_row(db, answer["parent_id"])
            below = _results(db, answer)
            if len(below) < len(_calls(answer)) or any(result["status"] in RUNNING for result in below):
                return None
            last = str(below[-1]["id"])
            followed = db.execute("SELECT 1 FROM messages WHERE parent_id = ?", (last,)).fetchone()
            return None if followed else last

    def lose_calls(self, told: str) -> None:
        """`told` is what came of the calls that an earlier process left unfinished."""
        with self._database.transaction() as db:
            db.execute(
                "UPDATE messages SET status = 'done', content = ?, extra = json_set(extra, '$.outcome', 'failed')"
                " WHERE role = 'tool' AND status = 'running'",
                (told,),
            )

    def message(self, conversation_id: str, message_id: str) -> dict[str, Any]:
        with self._database.reading() as db:
            _find_conversation(db, conversation_id)
            row = _find_row(db, message_id)
            if row is None or row["conversation_id"] != conversation_id:
                raise NotFound("server.message_not_found", id=message_id, conversation=conversation_id)
            return _message(row)

    # ---- answers ----

    def begin(
        self, *, model: str, turns: Sequence[Message], conversation_id: str | None, parent_id: str | None
    ) -> tuple[dict[str, Any], list[Message]]:
        """Store new turns and an empty answer below them; returns the generation and all that the answer replies to.

        Raises NotFound for an unknown conversation or parent, Conflict while the parent is still being written,
        Invalid when the last turn is not one to answer.
        """
        moment, generation_id, message_id = now(), new_id("gen"), new_id("msg")
        with self._database.transaction() as db:
            parent, path = None, list[Message]()
            if conversation_id is not None:
                _find_conversation(db, conversation_id)
                parent, path = _place(db, conversation_id, parent_id)
            history = [*path, *turns]
            if not history or (not turns and history[-1].role == "assistant"):
                raise Invalid("server.nothing_to_answer", param="messages")
            user_ids = []
            for turn in turns if conversation_id is not None else ():
                parent = _add_turn(db, conversation_id, parent, turn, moment)
                user_ids.append(parent)
            _insert(
                db,
                "messages",
                {
                    "id": message_id,
                    "conversation_id": conversation_id,
                    "parent_id": parent,
                    "generation_id": generation_id,
                    "role": "assistant",
                    "model": model,
                    "status": "queued",
                    "created_at": moment,
                },
            )
            _insert(
                db,
                "generations",
                {
                    "id": generation_id,
                    "conversation_id": conversation_id,
                    "message_id": message_id,
                    "user_message_ids": _json(user_ids),
                    "model": model,
                    "status": "queued",
                    "created_at": moment,
                    "owner": CALLER.get(),
                },
            )
            if conversation_id is not None:
                _touch(db, conversation_id, turns)
            return _generation(db, generation_id), history

    def generation(self, generation_id: str) -> dict[str, Any]:
        """Its state and what is written so far. Raises NotFound."""
        with self._database.reading() as db:
            return _generation(db, generation_id)

    def running(self, conversation_id: str) -> list[str]:
        """Ids of the answers that a conversation is being given. Raises NotFound."""
        with self._database.reading() as db:
            _find_conversation(db, conversation_id)
            rows = db.execute(
                "SELECT id FROM generations WHERE conversation_id = ? AND status IN ('queued', 'running')",
                (conversation_id,),
            )
            return [row["id"] for row in rows]

    def events(self, generation_id: str) -> list[dict[str, Any]] | None:
        """Everything that was told about a finished answer; None when the log was not kept."""
        with self._database.reading() as db:
            row = db.execute("SELECT events, owner FROM generations WHERE id = ?", (generation_id,)).fetchone()
        if row is None or not _seen(row):
            raise NotFound("server.generation_not_found", id=generation_id)
        return None if row["events"] is None else json.loads(zlib.decompress(row["events"]))

    def save_partial(self, generation_id: str, fields: Mapping[str, Any]) -> None:
        """What is written so far. Late saves, after the end or of a deleted conversation, change nothing."""
        with self._database.transaction() as db:
            query = "UPDATE generations SET status = 'running' WHERE id = ? AND status IN ('queued', 'running')"
            if db.execute(query, (generation_id,)).rowcount:
                _save_message(db, generation_id, {**fields, "status": "running"})

    def finish(
        self,
        generation_id: str,
        *,
        status: str,
        message: Mapping[str, Any],
        finish_reason: str | None,
        error: Mapping[str, Any] | None,
        events: Sequence[Mapping[str, Any]],
    ) -> None:
        """The answer as it ended, in one transaction with its log."""
        with self._database.transaction() as db:
            _save_message(db, generation_id, {**message, "status": status})
            db.execute(
                "UPDATE generations SET status = ?, finish_reason = ?, error = ?, model = ?, events = ?,"
                " finished_at = ? WHERE id = ?",
                (
                    status,
                    finish_reason,
                    None if error is None else _json(error),
                    message["model"],
                    zlib.compress(_json(list(events)).encode()),
                    now(),
                    generation_id,
                ),
            )

    def interrupt_running(self, error: Mapping[str, Any]) -> int:
        """Answers that an earlier process left unfinished become errors and keep their text; how many."""
        with self._database.transaction() as db:
            db.execute(
                "UPDATE messages SET status = 'error' WHERE status IN ('queued', 'running') AND role = 'assistant'"
            )
            changed = db.execute(
                "UPDATE generations SET status = 'error', error = ?, finished_at = ?"
                " WHERE status IN ('queued', 'running')",
                (_json(error), now()),
            )
            return changed.rowcount

    def forget_old(self) -> None:
        """Drop answers outside conversations and event logs that are older than FORGET_AFTER."""
        limit = iso(datetime.now(UTC) - FORGET_AFTER)
        with self._database.transaction() as db:
            db.execute("DELETE FROM messages WHERE conversation_id IS NULL AND created_at < ?", (limit,))
            db.execute("DELETE FROM generations WHERE conversation_id IS NULL AND created_at < ?", (limit,))
            db.execute("UPDATE generations SET events = NULL WHERE finished_at < ?", (limit,))


# ---- rows to shapes ----


def _conversation(row: sqlite3.Row, running: str | None) -> dict[str, Any]:
    shape = {key: row[key] for key in row.keys() if key not in ("number", "owner")}  # noqa: SIM118 (rows yield values)
    shape |= {name: json.loads(row[name]) for name in JSON_FIELDS}
    return {**shape, "running_generation_id": running}


def _message(row: sqlite3.Row) -> dict[str, Any]:
    extra = json.loads(row["extra"])
    content = extra.pop("parts", row["content"])
    return {
        "id": row["id"],
        "parent_id": row["parent_id"],
        "role": row["role"],
        "content": content,
        "reasoning": row["reasoning"],
        "sources": json.loads(row["sources"]),
        "usage": json.loads(row["usage"] or "null"),
        "timings": json.loads(row["timings"] or "null"),
        "model": row["model"],
        "status": row["status"],
        "generation_id": row["generation_id"],
        "created_at": row["created_at"],
        **extra,
    }


def _generation(db: sqlite3.Connection, generation_id: str) -> dict[str, Any]:
    row = db.execute(
        "SELECT g.*, m.content, m.reasoning, m.extra, m.sources, m.usage, m.timings FROM generations g"
        " JOIN messages m ON m.id = g.message_id WHERE g.id = ?",
        (generation_id,),
    ).fetchone()
    if row is None or not _seen(row):
        raise NotFound("server.generation_not_found", id=generation_id)
    plain = ("conversation_id", "message_id", "model", "status", "created_at", "finished_at", "finish_reason")
    decoded = ("user_message_ids", "error", "sources", "usage", "timings")
    return {
        "id": row["id"],
        "object": "generation",
        **json.loads(row["extra"]),
        **{name: row[name] for name in plain},
        "content": row["content"],
        "reasoning": row["reasoning"],
        **{name: json.loads(row[name] or "null") for name in decoded},
    }


def _to_message(row: sqlite3.Row) -> Message:
    extra = json.loads(row["extra"])
    return Message(
        row["role"],
        extra.get("parts", row["content"]),
        extra.get("name"),
        extra.get("tool_calls"),
        extra.get("tool_call_id"),
    )


# ---- pieces of transactions ----


def _columns(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _json(value) if name in JSON_FIELDS else value for name, value in fields.items()}


def _insert(db: sqlite3.Connection, table: str, values: Mapping[str, Any]) -> None:
    names = ", ".join(values)
    marks = ", ".join("?" * len(values))
    db.execute(f"INSERT INTO {table} ({names}) VALUES ({marks})", tuple(values.values()))  # noqa: S608 (our own names)


def _update(db: sqlite3.Connection, table: str, row_id: str, values: Mapping[str, Any]) -> None:
    pairs = ", ".join(f"{name} = ?" for name in values)
    db.execute(f"UPDATE {table} SET {pairs} WHERE id = ?", (*values.values(), row_id))  # noqa: S608 (our own names)


def _save_message(db: sqlite3.Connection, generation_id: str, fields: Mapping[str, Any]) -> None:
    row = db.execute("SELECT message_id FROM generations WHERE id = ?", (generation_id,)).fetchone()
    if row is not None:
        encoded = {name: _json(v) if isinstance(v, (dict, list)) else v for name, v in fields.items()}
        _update(db, "messages", row["message_id"], encoded)


def _find_conversation(db: sqlite3.Connection, conversation_id: str) -> sqlite3.Row:
    row: sqlite3.Row | None = db.execute("SELECT * FROM conversations WHERE id = ?", (conversation_id,)).fetchone()
    if row is None or not _seen(row):
        raise NotFound("server.conversation_not_found", id=conversation_id)
    return row


def _seen(row: sqlite3.Row) -> bool:
    """Whether it is the asker's: a key sees its own conversations and answers, the machine's own user all."""
    return CALLER.get() in ("", row["owner"])


def _running(db: sqlite3.Connection, conversation_id: str) -> str | None:
    row = db.execute(
        "SELECT id FROM generations WHERE conversation_id = ? AND status IN ('queued', 'running')"
        " ORDER BY number DESC LIMIT 1",
        (conversation_id,),
    ).fetchone()
    return row["id"] if row else None


def _place(db: sqlite3.Connection, conversation_id: str, parent_id: str | None) -> tuple[str | None, list[Message]]:
    """The message below which a new turn goes, and the turns from the first one down to it."""
    if parent_id == ROOT:
        return None, []
    if parent_id is None:  # the newest message is always a leaf
        query, key = "SELECT * FROM messages WHERE conversation_id = ? ORDER BY number DESC LIMIT 1", (conversation_id,)
        row = db.execute(query, key).fetchone()
        if row is None:
            return None, []
        _check_written(row)
    else:
        row = _find_message(db, conversation_id, parent_id)
    path = db.execute(
        "WITH RECURSIVE up (id, depth) AS (SELECT ?, 0 UNION ALL"
        " SELECT m.parent_id, depth + 1 FROM up JOIN messages m ON m.id = up.id WHERE m.parent_id IS NOT NULL)"
        " SELECT m.* FROM up JOIN messages m ON m.id = up.id ORDER BY depth DESC",
        (row["id"],),
    ).fetchall()
    return row["id"], [_to_message(step) for step in path]


def _find_message(db: sqlite3.Connection, conversation_id: str, message_id: str) -> sqlite3.Row:
    query = "SELECT * FROM messages WHERE id = ? AND conversation_id = ?"
    row: sqlite3.Row | None = db.execute(query, (message_id, conversation_id)).fetchone()
    if row is None:
        raise NotFound("server.message_not_found", id=message_id, conversation=conversation_id)
    _check_written(row)
    return row


def _find_row(db: sqlite3.Connection, message_id: str) -> Any:
    """A message's row; None where there is none."""
    return db.execute("SELECT * FROM messages WHERE id = ?", (message_id,)).fetchone()


def _calls(answer: sqlite3.Row) -> list[dict[str, Any]]:
    """The calls that an answer wants made: one that was cut short may end in half of one."""
    return json.loads(answer["extra"]).get("tool_calls") or [] if answer["status"] == "done" else []


def _results(db: sqlite3.Connection, answer: sqlite3.Row) -> list[sqlite3.Row]:
    """What came of the first of an answer's calls, as far as they were claimed: each stands below the one before."""
    found: list[sqlite3.Row] = []
    for call in _calls(answer):
        above = found[-1]["id"] if found else answer["id"]
        row = db.execute(
            "SELECT * FROM messages WHERE parent_id = ? AND role = 'tool' AND json_extract(extra, '$.tool_call_id') = ?"
            " ORDER BY number DESC LIMIT 1",
            (above, call["id"]),
        ).fetchone()
        if row is None:
            break
        found.append(row)
    return found


def _check_written(row: sqlite3.Row) -> None:
    if row["status"] in RUNNING:
        raise Conflict("server.still_answering", id=row["id"], generation=row["generation_id"])


def _add_turn(
    db: sqlite3.Connection, conversation_id: str | None, parent_id: str | None, turn: Message, moment: str
) -> str:
    extra = {
        "parts": turn.content if isinstance(turn.content, list) else None,
        "name": turn.name,
        "tool_calls": turn.tool_calls,
        "tool_call_id": turn.tool_call_id,
    }
    turn_id = new_id("msg")
    _insert(
        db,
        "messages",
        {
            "id": turn_id,
            "conversation_id": conversation_id,
            "parent_id": parent_id,
            "role": turn.role,
            "content": turn.text,
            "extra": _json({name: value for name, value in extra.items() if value is not None}),
            "status": "done",
            "created_at": moment,
        },
    )
    _attach(db, conversation_id, turn.file_ids)
    return turn_id


def _in_place_of(row: sqlite3.Row, text: str) -> Message:
    """A message with other words, and the same files."""
    old = _to_message(row)
    parts = old.content if isinstance(old.content, list) else []
    files = [part for part in parts if part.get("type") == "file"]
    return Message(old.role, [*files, {"type": "text", "text": text}] if files else text)


def _attach(db: sqlite3.Connection, conversation_id: str | None, file_ids: Sequence[str]) -> None:
    """Note which files a conversation refers to: they stay as long as it does (files.py). Others' are none of its own."""
    if conversation_id is None:
        return
    for file_id in file_ids:
        own = "id = ? AND ? IN ('', owner)"
        values = (file_id, CALLER.get())
        db.execute(f"INSERT OR IGNORE INTO attached SELECT id, ? FROM files WHERE {own}", (conversation_id, *values))  # noqa: S608 (our own words)
        db.execute(f"UPDATE files SET expires_at = NULL WHERE {own}", values)  # noqa: S608 (our own words)


def _add_read(
    db: sqlite3.Connection,
    conversation_id: str,
    message: Mapping[str, Any],
    ids: Mapping[str | None, str | None],
    moment: str,
) -> str:
    """A message that was read in. `ids`: what the ids of those before it have become."""
    extra = dict(message.get("extra") or {})
    if "edits" in extra:  # of a message that is not there it says nothing
        extra["edits"] = ids.get(extra["edits"], "")
    values = {
        "id": new_id("msg"),
        "conversation_id": conversation_id,
        "parent_id": ids[message["parent_id"]],
        "role": message["role"],
        "content": message["content"],
        "reasoning": message.get("reasoning") or "",
        "extra": _json(extra),
        "sources": _json(message.get("sources") or []),
        "usage": _json(message["usage"]) if message.get("usage") else None,
        "timings": _json(message["timings"]) if message.get("timings") else None,
        "model": message.get("model"),
        "status": message.get("status") or "done",
        "created_at": message.get("created_at") or moment,
    }
    _insert(db, "messages", values)
    _attach(db, conversation_id, Message(message["role"], extra.get("parts")).file_ids)
    return str(values["id"])


def _touch(db: sqlite3.Connection, conversation_id: str, turns: Sequence[Message]) -> None:
    """Note the use, and take a title from the first turn when there is none."""
    said = next((turn.text for turn in turns if turn.role == "user"), "")
    line = " ".join(said.split())
    title = line if len(line) <= TITLE_CHARS else line[: TITLE_CHARS - 1] + "…"
    db.execute(
        "UPDATE conversations SET updated_at = ?, title = CASE WHEN title = '' THEN ? ELSE title END WHERE id = ?",
        (now(), title, conversation_id),
    )
