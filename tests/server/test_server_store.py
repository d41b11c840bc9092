"""The database: migrations, trees of messages, what a killed process leaves."""

import sqlite3
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mofang.errors import Conflict, Invalid, NotFound, Unreadable
from mofang.messages import Message
from mofang.server import store as module
from mofang.server.store import ROOT, TITLE_CHARS, Store
from mofang.server.store.database import Database, migrations


@pytest.fixture
def store(tmp_path: Path) -> Any:
    opened = Store(tmp_path / "库" / "server.db")
    yield opened
    opened.close()


def ask(store: Store, conversation: str | None, *said: str, parent: str | None = None) -> tuple[Any, list[str]]:
    turns = [Message("user", text) for text in said]
    shape, history = store.begin(model="echo", turns=turns, conversation_id=conversation, parent_id=parent)
    return shape, [message.text for message in history]


def end(store: Store, shape: Any, text: str, status: str = "done", **fields: Any) -> None:
    message = {"content": text, "reasoning": "", "sources": [], "usage": None, "timings": None, "model": "echo"}
    store.finish(
        shape["id"],
        status=status,
        message={**message, **fields},
        finish_reason="stop",
        error=None,
        events=[{"type": "delta", "content": text}, {"type": status}],
    )


# ---- layouts ----


def test_from_empty_and_again(tmp_path: Path) -> None:
    path = tmp_path / "server.db"
    for _ in range(2):
        database = Database(path)
        assert database.version == len(migrations()) >= 1
        with database.reading() as db:
            assert db.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
            assert db.execute("PRAGMA foreign_keys").fetchone()[0] == 1
        database.close()


def test_migrations_are_numbered_without_gaps() -> None:
    assert [int(path.name[:4]) for path in migrations()] == list(range(1, len(migrations()) + 1))


def test_a_newer_layout_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "server.db"
    Store(path).close()
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    before = path.read_bytes()
    with pytest.raises(Conflict) as caught:
        Store(path)
    assert caught.value.code == "newer_home" and caught.value.values["found"] == 99
    assert path.read_bytes() == before


def test_a_migration_that_fails_leaves_the_old_layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "server.db"
    Store(path).close()
    steps = tmp_path / "steps"
    steps.mkdir()
    for step in migrations():
        (steps / step.name).write_text(step.read_text())
    (steps / "9999_bad.sql").write_text("CREATE TABLE halfway (x); CREATE TABLE conversations (x);")
    monkeypatch.setattr("mofang.server.store.database.MIGRATIONS", steps)
    with pytest.raises(Unreadable):
        Store(path)
    monkeypatch.undo()
    store = Store(path)
    with store._database.reading() as db:
        assert not db.execute("SELECT name FROM sqlite_master WHERE name = 'halfway'").fetchall()
    store.close()


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    path = tmp_path / "server.db"
    path.write_bytes("这不是数据库，".encode() * 1000)
    with pytest.raises(Unreadable) as caught:
        Store(path)
    assert str(path) in caught.value.message()


# ---- conversations ----


def test_fields_come_back_as_they_were(store: Store) -> None:
    made = store.create_conversation({"title": "标题🙂", "knowledge": ["手册"], "sampling": {"temperature": 0.5}})
    assert made["knowledge"] == ["手册"] and made["sampling"] == {"temperature": 0.5} and made["messages"] == []
    changed = store.change_conversation(made["id"], {"system": "请用文言"})
    assert (changed["title"], changed["system"], changed["model"]) == ("标题🙂", "请用文言", "auto")
    assert changed["updated_at"] >= made["updated_at"]
    assert [c["id"] for c in store.conversations()] == [made["id"]] and "messages" not in store.conversations()[0]


def test_a_tree_of_turns(store: Store) -> None:
    home = store.create_conversation({})["id"]
    first, seen = ask(store, home, "一问")
    assert seen == ["一问"] and first["status"] == "queued"
    end(store, first, "一答")
    second, seen = ask(store, home, "二问")
    assert seen == ["一问", "一答", "二问"]
    end(store, second, "二答")
    question = second["user_message_ids"][0]
    again, seen = ask(store, home, parent=question)
    assert seen == ["一问", "一答", "二问"], "answering a turn again does not see its first answer"
    end(store, again, "二答乙")
    branch, seen = ask(store, home, "改了的二问", parent=first["message_id"])
    assert seen == ["一问", "一答", "改了的二问"]
    end(store, branch, "丙")
    root, seen = ask(store, home, "另起", parent=ROOT)
    assert seen == ["另起"]
    end(store, root, "丁")
    _, seen = ask(store, home, "接着")
    assert seen == ["另起", "丁", "接着"], "without a parent: at the newest leaf"
    messages = {m["id"]: m for m in store.conversation(home)["messages"]}
    siblings = [m["content"] for m in messages.values() if m["parent_id"] == question]
    assert siblings == ["二答", "二答乙"]
    assert messages[second["message_id"]]["generation_id"] == second["id"]


def test_turns_that_cannot_be(store: Store) -> None:
    home, other = (store.create_conversation({})["id"] for _ in range(2))
    first, _ = ask(store, home, "问")
    with pytest.raises(Conflict) as caught:
        ask(store, home, "再问")
    assert caught.value.code == "still_answering"
    end(store, first, "答")
    with pytest.raises(Invalid):
        ask(store, home)
    with pytest.raises(Invalid):
        ask(store, other)
    with pytest.raises(NotFound):
        ask(store, other, "别人的", parent=first["message_id"])
    with pytest.raises(NotFound):
        ask(store, "没有", "x")
    assert [m["content"] for m in store.conversation(home)["messages"]] == ["问", "答"], "nothing was half written"
    assert store.conversation(other)["messages"] == []


def test_all_kinds_of_messages_come_back(store: Store) -> None:
    home = store.create_conversation({})["id"]
    parts = [{"type": "text", "text": "看图"}, {"type": "image_url", "image_url": {"url": "data:,x"}}]
    calls = [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
    turns = [
        Message("user", parts),
        Message("assistant", None, tool_calls=calls),
        Message("tool", "晴", tool_call_id="c"),
        Message("user", "谢谢", name="小明"),
    ]
    shape, _ = store.begin(model="echo", turns=turns, conversation_id=home, parent_id=None)
    end(store, shape, "", extra={"tool_calls": calls})
    _, history = store.begin(model="echo", turns=[Message("user", "好")], conversation_id=home, parent_id=None)
    assert history[0] == turns[0] and history[2:4] == turns[2:4]
    assert history[1].tool_calls == history[4].tool_calls == calls
    assert store.conversation(home)["messages"][0]["content"] == parts
    assert store.conversation(home)["title"] == "看图"


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"])), st.text(max_size=5))
@settings(max_examples=40)
def test_any_text_is_kept_and_titles_are_short(text: str, title: str) -> None:
    store = Store(Path(":memory:"))
    home = store.create_conversation({"title": title})["id"]
    shape, history = ask(store, home, text)
    end(store, shape, text)
    kept = store.conversation(home)
    assert history[-1] == kept["messages"][0]["content"] == kept["messages"][1]["content"] == text
    assert len(kept["title"]) <= TITLE_CHARS and "\n" not in kept["title"].replace(title, "")
    store.close()


def test_deleting_takes_everything_along(store: Store) -> None:
    home = store.create_conversation({})["id"]
    first, _ = ask(store, home, "问")
    end(store, first, "答")
    second, _ = ask(store, home, "再问")
    store.delete_conversation(home)
    with pytest.raises(NotFound):
        store.conversation(home)
    for shape in (first, second):
        with pytest.raises(NotFound):
            store.generation(shape["id"])
    store.save_partial(second["id"], {"content": "late"})
    end(store, second, "late")
    with store._database.reading() as db:
        counts = [db.execute(f"SELECT count(*) FROM {t}").fetchone()[0] for t in ("messages", "generations")]
    assert counts == [0, 0]


# ---- answers ----


def test_an_answer_outside_conversations(store: Store) -> None:
    shape, history = ask(store, None, "问")
    assert history == ["问"] and shape["conversation_id"] is None and shape["user_message_ids"] == []
    store.save_partial(shape["id"], {"content": "写到"})
    assert store.generation(shape["id"])["status"] == "running"
    end(store, shape, "写到底", usage={"total_tokens": 3})
    kept = store.generation(shape["id"])
    assert (kept["content"], kept["status"], kept["usage"]) == ("写到底", "done", {"total_tokens": 3})
    assert store.events(shape["id"]) == [{"type": "delta", "content": "写到底"}, {"type": "done"}]


def test_a_late_save_does_not_bring_an_answer_back(store: Store) -> None:
    shape, _ = ask(store, None, "问")
    end(store, shape, "完整")
    store.save_partial(shape["id"], {"content": "完"})
    assert (store.generation(shape["id"])["content"], store.generation(shape["id"])["status"]) == ("完整", "done")


def test_what_a_killed_process_leaves(tmp_path: Path) -> None:
    store = Store(tmp_path / "server.db")
    home = store.create_conversation({})["id"]
    begun, _ = ask(store, home, "问")
    store.save_partial(begun["id"], {"content": "写到一半"})
    waiting, _ = ask(store, None, "排队")
    store.close()
    store = Store(tmp_path / "server.db")
    assert store.interrupt_running({"code": "interrupted"}) == 2
    assert store.interrupt_running({"code": "other"}) == 0
    for shape in (begun, waiting):
        kept = store.generation(shape["id"])
        assert kept["status"] == "error" and kept["error"] == {"code": "interrupted"} and kept["finished_at"]
    message = store.conversation(home)["messages"][-1]
    assert (message["content"], message["status"]) == ("写到一半", "error")
    assert store.conversation(home)["running_generation_id"] is None
    assert ask(store, home, "接着")[1] == ["问", "写到一半", "接着"]
    store.close()


def test_old_answers_are_forgotten_and_conversations_are_not(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    home = store.create_conversation({})["id"]
    monkeypatch.setattr(module, "now", lambda: module.iso(datetime.now(UTC) - timedelta(days=30)))
    loose, _ = ask(store, None, "旧")
    kept, _ = ask(store, home, "旧")
    for shape in (loose, kept):
        end(store, shape, "答")
    monkeypatch.undo()
    fresh, _ = ask(store, None, "新")
    store.forget_old()
    with pytest.raises(NotFound):
        store.generation(loose["id"])
    assert store.generation(kept["id"])["content"] == "答" and store.events(kept["id"]) is None
    assert store.generation(fresh["id"])["status"] == "queued"


def test_threads_take_turns(store: Store) -> None:
    home = store.create_conversation({})["id"]

    def work(number: int) -> None:
        for _ in range(20):
            shape, _ = ask(store, home, f"问{number}", parent=ROOT)
            end(store, shape, f"答{number}")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    messages = {m["id"]: m for m in store.conversation(home)["messages"]}
    assert len(messages) == 160
    pairs = [(messages[m["parent_id"]]["content"], m["content"]) for m in messages.values() if m["parent_id"]]
    assert all(question[1] == answer[1] for question, answer in pairs)
