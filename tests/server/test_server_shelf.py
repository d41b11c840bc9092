"""Personas and presets: kept, changed, each key's own; personas out of cards of every kind, and files that are none."""

import base64
import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from served import Gateway

from mofang.client import ApiError, Client
from mofang.engine.base import CALLER
from mofang.errors import MofangError, NotFound
from mofang.server import cards
from mofang.server.shelf import builtin_presets, shelves
from mofang.server.store import Store
from mofang.wire import SamplingFields


def test_personas_are_kept_changed_and_deleted(gateway: Gateway) -> None:
    with gateway.client() as client:
        made = client.create_persona(name="编辑", system="你是编辑", greeting="稿子呢？", sampling={"temperature": 0.2})
        assert client.personas() == [made] and made["model"] == "auto" and "owner" not in made
        changed = client.change_persona(made["id"], greeting="", model="echo")
        assert changed == {**made, "greeting": "", "model": "echo", "updated_at": changed["updated_at"]}
        assert client.request("GET", f"/v1/personas/{made['id']}") == changed
        client.delete_persona(made["id"])
        assert client.personas() == []
        for call in (client.delete_persona, client.change_persona):
            with pytest.raises(ApiError) as caught:
                call(made["id"])
            assert caught.value.code == "persona_not_found"


def test_presets_of_everybody_and_ones_own(gateway: Gateway) -> None:
    with gateway.client(lang="zh") as client, gateway.client(lang="en") as english:
        assert [one["name"] for one in client.presets()] == ["精确", "平衡", "发散"]
        assert [one["name"] for one in english.presets()] == ["Precise", "Balanced", "Creative"]
        made = client.create_preset("我的", {"temperature": 0.4, "dry_multiplier": 0.8})
        assert client.presets()[-1] == {**made, "builtin": False}
        changed = client.request("PATCH", f"/v1/presets/{made['id']}", {"name": "新名"})
        assert (changed["name"], changed["sampling"]) == ("新名", {"temperature": 0.4, "dry_multiplier": 0.8})
        for method in ("PATCH", "DELETE"):
            with pytest.raises(ApiError) as caught:
                client.request(method, "/v1/presets/precise", {"name": "x"} if method == "PATCH" else None)
            assert caught.value.code == "builtin_preset"
        client.delete_preset(made["id"])
        assert len(client.presets()) == 3


def test_builtin_presets_are_samplings() -> None:
    for preset in builtin_presets().values():
        assert preset["name"].keys() == {"zh", "en"}
        SamplingFields.model_validate(preset["sampling"])


@pytest.mark.parametrize(
    ("path", "body", "code"),
    [
        ("personas", {"name": ""}, "bad_field"),
        ("personas", {"system": "x"}, "bad_field"),
        ("personas", {"name": "x", "sampling": {"temperatur": 1}}, "unknown_field"),
        ("personas", {"name": "x", "avatar": "y"}, "foreign_field"),
        ("presets", {"name": "x"}, "bad_field"),
        ("presets", {"name": "x", "sampling": {"temperature": 9}}, "bad_field"),
    ],
)
def test_what_cannot_be_kept(gateway: Gateway, path: str, body: dict[str, Any], code: str) -> None:
    with gateway.client() as client:
        with pytest.raises(ApiError) as caught:
            client.request("POST", f"/v1/{path}", body)
        assert caught.value.code == code and client.personas() == []


def test_a_key_sees_its_own(tmp_path: Path) -> None:
    store = Store(tmp_path / "server.db")
    personas, _ = shelves(store.database)

    def as_key(key: str, call: Callable[[], Any]) -> Any:
        token = CALLER.set(key)
        try:
            return call()
        finally:
            CALLER.reset(token)

    [mine] = as_key("甲", lambda: personas.create({"name": "甲的"}))
    as_key("乙", lambda: personas.create({"name": "乙的"}))
    assert [one["name"] for one in as_key("甲", personas.all)] == ["甲的"]
    assert [one["name"] for one in personas.all()] == ["甲的", "乙的"]
    calls: list[Callable[[], Any]] = [
        lambda: personas.get(mine["id"]),
        lambda: personas.change(mine["id"], {"name": "x"}),
        lambda: personas.delete(mine["id"]),
    ]
    for call in calls:
        with pytest.raises(NotFound):
            as_key("乙", call)
    assert as_key("甲", lambda: personas.get(mine["id"]))["name"] == "甲的"
    store.close()


# ---- cards ----

V1 = {
    "name": "小坊", "description": "{{char}}是一位木匠。", "personality": "耐心", "scenario": "", "first_mes": "你好，{{user}}！我是<BOT>。",
    "mes_example": "",
}  # fmt: skip
V2 = {
    "spec": "chara_card_v2",
    "spec_version": "2.0",
    "data": {**V1, "system_prompt": "{{original}}用中文回答。", "alternate_greetings": [], "extensions": {}},
}
SYSTEM, GREETING = "小坊是一位木匠。\n\n耐心", "你好，用户！我是小坊。"


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(card: bytes | None, keyword: bytes = b"chara") -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0))
    text = b"" if card is None else chunk(b"tEXt", keyword + b"\0" + card)
    return cards.PNG + header + text + chunk(b"IDAT", zlib.compress(b"\0\0")) + chunk(b"IEND", b"")


def encoded(shape: Any) -> bytes:
    return json.dumps(shape).encode()


@pytest.mark.parametrize(
    ("file", "system"),
    [
        (encoded(V1), SYSTEM),
        (encoded(V2), f"用中文回答。\n\n{SYSTEM}"),
        (png(base64.b64encode(encoded(V1))), SYSTEM),
        (png(base64.b64encode(encoded(V2))), f"用中文回答。\n\n{SYSTEM}"),
        (png(base64.b64encode(encoded(V1)), b"ccv3"), SYSTEM),
        (
            "name: 小坊\ngreeting: 你好，{{user}}！我是{{char}}。\ncontext: |\n  {{char}}是一位木匠。\n\n  耐心\n".encode(),
            SYSTEM,
        ),
        ("\ufeff".encode() + encoded({"name": "小坊", "system": SYSTEM, "greeting": GREETING}), SYSTEM),
    ],
)
def test_cards(gateway: Gateway, file: bytes, system: str) -> None:
    with gateway.client(lang="zh") as client:
        [made] = client.import_personas(file)
        assert (made["name"], made["system"], made["greeting"]) == ("小坊", system, GREETING)
        assert client.personas() == [made]


def test_what_we_tell_of_a_persona_is_a_card(gateway: Gateway) -> None:
    with gateway.client() as client:
        made = client.create_persona(name="编辑", system="你是编辑", sampling={"temperature": 0.2}, model="echo")
        [again] = client.import_personas(encoded(made))
        both = client.import_personas(encoded([made, V1]))
    assert {**again, "id": made["id"]}.items() >= {
        name: made[name] for name in ("name", "system", "greeting", "model", "sampling")
    }.items()
    assert [one["name"] for one in both] == ["编辑", "小坊"]


@pytest.mark.parametrize(
    ("file", "code"),
    [
        (b"", "no_card"),
        (b"\xff\xfe\x00", "no_card"),
        (b"{", "no_card"),
        (b"[]", "no_card"),
        (b"a: [", "no_card"),
        (b"!!python/object/apply:os.system ['true']", "no_card"),
        (b"just words", "no_card"),
        (encoded({"name": "x"}), "no_card"),
        (encoded({**V1, "name": " "}), "no_card"),
        (encoded([V1, 5]), "no_card"),
        (b"[" * 100_000, "no_card"),
        (png(None), "png_without_card"),
        (png(b"!!!"), "no_card"),
        (png(base64.b64encode(b"{")), "no_card"),
        (png(base64.b64encode(encoded(V1)))[:70], "no_card"),
        (encoded({**V1, "first_mes": "长" * 700_000}), "card_too_large"),
        (b"x" * 16_000_001, "card_too_large"),
        (encoded({"name": "x", "system": "y", "sampling": {"temperature": 99}}), "bad_field"),
    ],
)
def test_files_that_are_no_card(gateway: Gateway, file: bytes, code: str) -> None:
    with gateway.client() as client:
        with pytest.raises(ApiError) as caught:
            client.import_personas(file)
        assert caught.value.code == code and client.personas() == []


@given(st.binary(max_size=200) | st.binary(max_size=200).map(lambda noise: cards.PNG + noise))
@settings(max_examples=300, deadline=None)
def test_any_file_is_read_or_refused(data: bytes) -> None:
    try:
        found = cards.read(data, "zh")
    except MofangError:
        return
    assert all(one["name"] for one in found)


def test_a_conversation_begins_with_a_persona(gateway: Gateway) -> None:
    with gateway.client() as client:
        [made] = client.import_personas(encoded(V1))
        home = _begun(client, made)
    assert home["system"] == SYSTEM and [one["content"] for one in home["messages"]] == [GREETING]


def _begun(client: Client, persona: dict[str, Any]) -> dict[str, Any]:
    kept = {name: persona[name] for name in ("system", "greeting", "model", "sampling")}
    return client.create_conversation(title="木工", **kept)
