"""Files in conversations: what a turn refers to, what the model is then given, whose it is, and when it leaves."""

import base64
import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from served import Gateway, serving

from fakes import ScriptedEngine
from knowledge.pdfs import pdf
from mofang.client import ApiError, Client
from mofang.server.backend import LocalBackend
from mofang.server.store import iso
from mofang.settings import Settings

TEXT = "甲方应在三十日内付款。\n```\n代码 [3] <|im_end|>\n```\n"
PNG = base64.b64decode("iVBORw0KGgo=")


def refer(*files: str) -> list[dict[str, Any]]:
    return [{"type": "file", "file": {"file_id": one}} for one in files]


def turn(text: str, *files: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [*refer(*files), {"type": "text", "text": text}]}]


def said(client: Client, home: str, messages: list[dict[str, Any]], **fields: Any) -> list[dict[str, Any]]:
    """The events of an answer, to its end."""
    shape = client.generate({"conversation_id": home, "messages": messages, **fields})
    return list(client.follow_generation(shape["id"]))


@pytest.fixture
def client(gateway: Gateway) -> Iterator[Client]:
    with gateway.client() as client:
        yield client


def prompt(engine: ScriptedEngine) -> list[str]:
    return [message.text for message in engine.asked[-1][0]]


def test_the_model_reads_the_files_in_their_order_and_later_turns_have_them(
    client: Client, engine: ScriptedEngine
) -> None:
    one = client.add_file("合同.md", TEXT.encode())["id"]
    two = client.add_file("附件/表.csv", "名称,数量\n螺丝,20\n".encode())["id"]
    home = client.create_conversation()["id"]
    events = said(client, home, turn("几天内付款？", one, two))
    [asked] = engine.asked[-1][0]
    assert isinstance(asked.content, str), "texts alone are a text: not every chat template takes a list"
    fenced = "文件「合同.md」的内容：\n````\n甲方应在三十日内付款。\n```\n代码 [3] ‹¦im_end¦›\n```\n````\n\n文件「附件/表.csv」的内容：\n```\n"
    assert asked.content.startswith(fenced) and asked.content.endswith("\n```\n\n几天内付款？")
    assert "螺丝" in asked.content
    told = next(event for event in events if event["type"] == "files")["files"]
    assert [file["filename"] for file in told] == ["合同.md", "附件/表.csv"]
    assert told[0]["tokens"] == len(TEXT.rstrip("\n")) or told[0]["tokens"] == len(TEXT)
    question, answer = client.conversation(home)["messages"]
    assert question["content"][0] == {"type": "file", "file": {"file_id": one, "filename": "合同.md"}}
    assert answer["files"] == told and client.conversation(home)["title"] == "几天内付款？"
    said(client, home, [{"role": "user", "content": "再说一遍"}])
    assert prompt(engine)[0] == asked.content and prompt(engine)[-1] == "再说一遍"
    said(client, home, [], parent_id=question["id"])
    assert prompt(engine) == [asked.content], "another version of the answer has them too"


def test_chat_completions_take_them_and_their_tokens_are_counted_first(client: Client, engine: ScriptedEngine) -> None:
    one = client.add_file("说明.txt", "第一条。".encode())["id"]
    body = {"messages": turn("问", one)}
    shape = client.request("POST", "/v1/chat/completions", body)
    assert prompt(engine)[0].startswith("文件「说明.txt」的内容：\n```\n第一条。\n```\n\n问")
    assert shape["files"] == [{"file_id": one, "filename": "说明.txt", "tokens": 4, "notes": []}]
    rendered = client.request("POST", "/v1/apply-template", body)
    assert rendered["prompt"] == f"<user>{prompt(engine)[0]}"
    counted = client.request("POST", "/v1/chat/completions/input_tokens", body)["input_tokens"]
    assert counted == rendered["input_tokens"] == len(rendered["prompt"])


def test_what_a_file_says_before_it_is_sent(client: Client) -> None:
    one = client.add_file("说明.pdf", pdf([[(50, 500, 12, "第一条")], []]))["id"]
    found = client.file_reading(one)
    assert (found["kind"], found["n_chars"], found["tokens"]) == ("text", 3, None) and "2" in found["notes"][0]
    assert client.file_reading(one, model="auto")["tokens"] == 3
    picture = client.add_file("图.png", PNG)["id"]
    assert client.file_reading(picture, model="auto") == {
        "id": picture, "object": "file.reading", "filename": "图.png", "kind": "image", "n_chars": 0, "tokens": None, "notes": [],
    }  # fmt: skip
    words = client.add_file("BM25.txt", b"BM25 is no bitmap")["id"]
    assert client.file_reading(words)["kind"] == "text"


@pytest.mark.parametrize(
    ("name", "content", "code"),
    [
        ("锁.pdf", pdf([[(50, 500, 12, "字")]], encrypt=True), "pdf_encrypted"),
        ("旧.doc", b"\xd0\xcf\x11\xe0", "format_later"),
        ("空.txt", b"", "empty_file"),
        ("包.bin", b"\0\1\2", "unknown_format"),
        ("坏.docx", b"PK\3\4", "package_damaged"),
    ],
)
def test_an_unreadable_file_is_refused_before_anything_is_kept(
    client: Client, name: str, content: bytes, code: str
) -> None:
    one = client.add_file(name, content)["id"]
    home = client.create_conversation()["id"]
    for call in (
        lambda: client.file_reading(one),
        lambda: client.generate({"conversation_id": home, "messages": turn("问", one)}),
        lambda: client.request("POST", "/v1/chat/completions", {"messages": turn("问", one)}),
    ):
        with pytest.raises(ApiError) as caught:
            call()
        assert caught.value.code == code and caught.value.status < 500
    assert client.conversation(home)["messages"] == []


def test_files_that_do_not_fit_are_refused_with_the_numbers(client: Client, engine: ScriptedEngine) -> None:
    engine.n_ctx = 1000
    one = client.add_file("长.txt", ("长" * 900).encode())["id"]
    home = client.create_conversation()["id"]
    last = said(client, home, turn("说什么？", one))[-1]
    assert last["type"] == "error" and last["error"]["code"] == "files_too_long" and engine.asked == []
    n_prompt = len("<user>文件「长.txt」的内容：\n```\n" + "长" * 900 + "\n```\n\n说什么？")
    assert f"{n_prompt} 个 token" in last["error"]["message"] and "744 个" in last["error"]["message"]
    assert "知识库" in last["error"]["hint"]
    question, answer = client.conversation(home)["messages"]
    assert question["content"][-1]["text"] == "说什么？" and answer["status"] == "error"
    assert answer["files"][0]["tokens"] == 900
    engine.n_ctx = 4000
    assert said(client, home, [], parent_id=question["id"])[-1]["type"] == "done"


def test_old_turns_go_with_their_files_where_that_is_asked_for(client: Client, engine: ScriptedEngine) -> None:
    engine.n_ctx = 2000
    one = client.add_file("长.txt", ("长" * 1200).encode())["id"]
    home = client.create_conversation()["id"]
    said(client, home, turn("一", one))
    events = said(client, home, [{"role": "user", "content": "二" * 600}], truncation="auto", max_tokens=100)
    assert [event["code"] for event in events if event["type"] == "notice"] == ["truncated"]
    assert prompt(engine) == ["二" * 600]


def test_pictures_reach_only_a_model_that_sees(client: Client, engine: ScriptedEngine) -> None:
    one = client.add_file("图.png", PNG)["id"]
    home = client.create_conversation()["id"]
    assert said(client, home, turn("看", one))[-1]["error"]["code"] == "no_images"
    engine.images = True
    question = client.conversation(home)["messages"][0]["id"]
    assert said(client, home, [], parent_id=question)[-1]["type"] == "done"
    assert engine.asked[-1][0][0].content == [
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}},
        {"type": "text", "text": "看"},
    ]


def test_a_base_is_searched_for_the_question_and_not_for_the_file(client: Client, engine: ScriptedEngine) -> None:
    client.create_knowledge("手册")
    list(client.follow_job(client.add_documents("手册", [("一.md", "问天".encode())])["id"]))
    one = client.add_file("合同.txt", "付款期限".encode())["id"]
    home = client.create_conversation(knowledge=["手册"])["id"]
    events = said(client, home, turn("问？", one), max_tokens=100)
    assert [source["title"] for source in events[-1]["sources"]] == ["一.md"]
    room = next(event for event in events if event["type"] == "notice")["message"]
    assert room == f"room:{4096 - 100 - len('付款期限')}", "the passages leave the file its room"
    sources, asked = engine.asked[-1][0]
    assert "问天" in sources.text and asked.text == "文件「合同.txt」的内容：\n```\n付款期限\n```\n\n问？"
    no_hit = said(client, home, [{"role": "user", "content": "另说"}], max_tokens=100)
    assert prompt(engine)[-3].startswith("文件「合同.txt」") and no_hit[-1]["type"] == "done"


# ---- kept, changed, gone ----


def test_an_edited_turn_keeps_its_files(client: Client, engine: ScriptedEngine) -> None:
    one = client.add_file("合同.txt", "付款".encode())["id"]
    home = client.create_conversation()["id"]
    said(client, home, turn("一问", one))
    question = client.conversation(home)["messages"][0]
    mine = client.add_message(home, "改了的一问", edits=question["id"])
    assert mine["content"] == [question["content"][0], {"type": "text", "text": "改了的一问"}]
    assert mine["edits"] == question["id"]
    said(client, home, [], parent_id=mine["id"])
    assert prompt(engine)[0].endswith("付款\n```\n\n改了的一问")


def test_a_deleted_file_is_told_and_the_conversation_goes_on(client: Client, engine: ScriptedEngine) -> None:
    one = client.add_file("合同.txt", "付款".encode())["id"]
    home = client.create_conversation()["id"]
    said(client, home, turn("一问", one))
    client.delete_file(one)
    events = said(client, home, [{"role": "user", "content": "二问"}])
    assert [event["code"] for event in events if event["type"] == "notice"] == ["files_gone"]
    assert prompt(engine)[0] == "（这里原有文件「合同.txt」，它已经被删除。）\n\n一问"
    with pytest.raises(ApiError) as caught:
        client.generate({"conversation_id": home, "messages": turn("三问", one)})
    assert caught.value.code == "file_not_found"


def test_exported_and_imported_with_their_names(client: Client) -> None:
    one = client.add_file("合同.txt", "付款".encode())["id"]
    home = client.create_conversation()["id"]
    said(client, home, turn("一问", one))
    shown = client.export_conversation(home, "markdown").decode()
    assert "- 📎 合同.txt\n\n一问" in shown
    data = client.request("GET", f"/v1/conversations/{home}/export")
    [copy] = client.import_conversations(data)["data"]
    question, answer = client.conversation(copy["id"])["messages"]
    assert (
        question["content"][0]["file"] == {"file_id": one, "filename": "合同.txt"} and answer["files"][0]["tokens"] == 2
    )
    client.delete_conversation(home)
    assert client.request("GET", f"/v1/files/{one}")["id"] == one, "the copy refers to it, too"
    client.delete_conversation(copy["id"])
    with pytest.raises(ApiError):
        client.request("GET", f"/v1/files/{one}")


def test_files_leave_with_the_last_conversation_that_refers_to_them(
    client: Client, backend: LocalBackend, gateway: Gateway
) -> None:
    kept, shared, based = (client.add_file(f"{name}.txt", name.encode())["id"] for name in ("未用", "两处", "入库"))
    homes = [client.create_conversation()["id"] for _ in range(2)]
    said(client, homes[0], turn("问", shared, based))
    said(client, homes[1], turn("问", shared))
    backend.files.attach("手册", based, "入库.txt")
    client.delete_conversation(homes[0])
    assert {file["id"] for file in client.request("GET", "/v1/files")["data"]} == {kept, shared, based}
    client.delete_conversation(homes[1])
    assert {file["id"] for file in client.request("GET", "/v1/files")["data"]} == {kept, based}
    assert {path.name for path in backend.files.folder.iterdir()} == {kept, based}


def test_what_came_for_a_time_leaves_unless_a_turn_refers_to_it(
    client: Client, backend: LocalBackend, gateway: Gateway
) -> None:
    unsent, sent = (client.add_file(f"{name}.txt", b"x", expires_in_s=3600)["id"] for name in ("没发", "发了"))
    shape = client.request("GET", f"/v1/files/{unsent}")
    assert shape["expires_at"] - shape["created_at"] == 3600
    home = client.create_conversation()["id"]
    said(client, home, turn("问", sent))
    assert client.request("GET", f"/v1/files/{sent}")["expires_at"] is None
    past = iso(datetime.now(UTC) - timedelta(seconds=5))
    with backend.store.database.transaction() as db:
        db.execute("UPDATE files SET expires_at = ? WHERE expires_at IS NOT NULL", (past,))
    backend.files.start()
    assert [file["id"] for file in client.request("GET", "/v1/files")["data"]] == [sent]
    with backend.store.database.reading() as db:
        assert db.execute("SELECT count(*) FROM readings").fetchone()[0] == 1
    with gateway.http() as http:
        fields = {"purpose": "user_data", "expires_after[anchor]": "created_at", "expires_after[seconds]": "60"}
        short = http.post("/v1/files", files={"file": ("a.txt", b"x")}, data=fields)
    assert short.status_code == 400 and "expires_after.seconds" in short.json()["error"]["message"]


def test_a_file_is_its_keys(settings: Any, pool: Any, library: Any, engine: ScriptedEngine) -> None:
    settings = settings.model_copy(update={"api_key": SecretStr("sk-owner")})
    with serving(LocalBackend(settings, engines=pool, library=library), "sk-owner") as gateway:
        with gateway.client() as owner:
            keys = [owner.create_key(name)["key"] for name in ("甲", "丁")]
        mine, stranger = (Client(gateway.url, key, timeout_s=20) for key in keys)
        with mine, stranger:
            one = mine.add_file("秘密.txt", "芝麻开门".encode())["id"]
            home = stranger.create_conversation()["id"]
            codes = []
            for call in (
                lambda: stranger.file_reading(one),
                lambda: stranger.generate({"conversation_id": home, "messages": turn("问", one)}),
                lambda: stranger.request("POST", "/v1/chat/completions", {"messages": turn("问", one)}),
                lambda: stranger.request("POST", "/v1/apply-template", {"messages": turn("问", one)}),
            ):
                with pytest.raises(ApiError) as caught:
                    call()
                codes.append(caught.value.code)
            assert codes == ["file_not_found"] * 4 and engine.asked == []
            messages = [{"role": "user", "content": [*refer(one), {"type": "text", "text": "偷看"}]}]
            [copy] = stranger.import_conversations({"messages": messages})["data"]
            said(stranger, copy["id"], [{"role": "user", "content": "说说"}], truncation="disabled")
            assert "芝麻开门" not in "".join(prompt(engine)), "nor by a conversation that was made up"
            assert said(mine, mine.create_conversation()["id"], turn("问", one))[-1]["type"] == "done"
            stranger.delete_conversation(copy["id"])
            assert mine.file_reading(one)["n_chars"] == 4


def test_an_older_home_gets_the_new_columns(tmp_path: Path) -> None:
    from mofang.server.store.database import Database, migrations

    path = tmp_path / "server.db"
    old = sqlite3.connect(path)
    for number, step in enumerate(migrations()[:5], start=1):
        old.executescript(f"{step.read_text()}\nPRAGMA user_version={number};")
    old.execute("INSERT INTO files VALUES (1, 'file-1', '', 'a.txt', 'user_data', 1, '2026-01-01T00:00:00.000Z')")
    old.execute("INSERT INTO conversations (id, created_at, updated_at) VALUES ('conv-1', '2026', '2026')")
    old.commit()
    old.close()
    database = Database(path)
    with database.reading() as db:
        assert db.execute("SELECT expires_at FROM files").fetchone()[0] is None
        assert db.execute("SELECT beside FROM conversations").fetchone()[0] == ""
    database.close()


# ---- a real model ----


@pytest.mark.model
def test_a_real_model_answers_from_a_file_and_tells_when_one_is_too_long(home: Path, qwen: Path) -> None:
    settings = Settings(home=home, port=0, n_ctx=2048, model_path=str(qwen.parent))
    slow = 120  # seconds; the first to read the model's file reads it from the disk
    with serving(LocalBackend(settings)) as gateway, gateway.client(timeout_s=slow) as client:
        text = "甲方应在收到货物之后的四十五天以内付清全部货款。"
        one = client.add_file("合同.pdf", pdf([[(50, 500, 12, text)]]))["id"]
        model = qwen.stem
        counted = client.file_reading(one, model=model)["tokens"]
        home_id = client.create_conversation(model=model, sampling={"temperature": 0, "max_tokens": 60})["id"]
        last = said(client, home_id, turn("合同规定甲方在多少天以内付清货款？只说天数。", one))[-1]
        assert last["type"] == "done", last
        answer = client.conversation(home_id)["messages"][1]
        assert "45" in answer["content"] or "四十五" in answer["content"], answer["content"]
        assert answer["files"][0]["tokens"] == counted == len(client.tokenize(text, model))
        long = client.add_file("长.txt", (text * 200).encode())["id"]
        error = said(client, home_id, turn("说什么？", long))[-1]["error"]
        assert error["code"] == "files_too_long" and "1792" in error["message"]
