"""What a wrong request is told, in which language, and that nothing of us shows."""

import json
import logging
import sqlite3
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from served import Gateway, serving

from fakes import FakeLibrary, FakePool, ScriptedEngine
from mofang.errors import Busy, Leaving, MofangError, NoSpace
from mofang.server import faults
from mofang.server.backend import LocalBackend
from mofang.settings import Settings

CHAT = "/v1/chat/completions"
HI = [{"role": "user", "content": "你好"}]


def error_of(answer: Any, status: int = 400) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    error: dict[str, Any] = answer.json()["error"]
    assert set(error) >= {"message", "type", "param", "code", "hint"}
    return error


@pytest.mark.parametrize(
    ("body", "param", "code", "told"),
    [
        ({"messages": HI, "temprature": 1}, "temprature", "unknown_field", "'temperature'"),
        ({"messages": [{"role": "user", "contnet": "x"}]}, "messages.0.contnet", "unknown_field", "'content'"),
        ({"messages": HI, "stream_options": {"usage": 1}}, "stream_options.usage", "unknown_field", "include_usage"),
        ({"messages": HI, "zzzzz": 1}, "zzzzz", "foreign_field", "temperature"),
        ({"messages": HI, "temperature": 9}, "temperature", "bad_field", "应不大于 5"),
        ({"messages": HI, "max_tokens": "许多"}, "max_tokens", "bad_field", "应是整数"),
        ({"messages": []}, "messages", "bad_field", "至少要有 1 项"),
        ({}, "messages", "bad_field", "缺少"),
        ({"messages": [{"role": "作者", "content": "x"}]}, "messages.0.role", "bad_field", "'user'"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages.0.content", "bad_field", "应是字符串"),
        ({"messages": [{"role": "user", "content": "半个\ud800"}]}, None, "broken_text", "残缺"),
    ],
)
def test_the_field_is_named(gateway: Gateway, body: dict[str, Any], param: str | None, code: str, told: str) -> None:
    with gateway.http() as http:
        error = error_of(http.post(CHAT, content=json.dumps(body), headers={"Content-Type": "application/json"}))
    assert (error["param"], error["code"]) == (param, code)
    assert told in error["message"] and error["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("content", "kind", "code"),
    [
        (b"{", "application/json", "bad_json"),
        (b"[1]", "application/json", "not_an_object"),
        (b'"x"', "application/json", "not_an_object"),
        (b"null", "application/json", "not_an_object"),
        (b"", "application/json", "no_body"),
        (b'{"messages": []}', "text/plain", "not_json"),
        (b'{"messages": []}', "", "not_json"),
        (b"\xc4\xe3\xba\xc3", "application/json", "bad_body"),
        (b"[" * 100_000, "application/json", "bad_body"),
    ],
)
def test_bodies_that_are_no_request(gateway: Gateway, content: bytes, kind: str, code: str) -> None:
    headers = {"Content-Type": kind} if kind else {}
    with gateway.http() as http:
        error = error_of(http.post(CHAT, content=content, headers=headers))
    assert error["code"] == code


def test_unknown_route_and_method(gateway: Gateway) -> None:
    with gateway.http() as http:
        assert error_of(http.get("/v1/nowhere"), 404)["code"] == "route_not_found"
        wrong = http.get(CHAT)
        assert error_of(wrong, 405)["code"] == "method_not_allowed" and wrong.headers["allow"] == "POST"
        assert http.get("/docs").status_code == http.get("/redoc").status_code == 404


@pytest.mark.parametrize(
    ("wanted", "lang"),
    [
        ("", "zh"),
        ("en", "en"),
        ("en-GB,en;q=0.9,zh;q=0.8", "en"),
        ("fr, zh-CN;q=0.5, en;q=0.4", "zh"),
        ("fr", "zh"),
        ("en;q=0", "zh"),
        ("en;q=abc", "zh"),
        ("zh;q=0.1,en;q=0.2", "en"),
    ],
)
def test_the_language_is_the_clients(wanted: str, lang: str, settings: Settings) -> None:
    assert faults.language({"accept-language": wanted}, settings) == lang


def test_messages_come_in_the_language_asked_for(gateway: Gateway) -> None:
    with gateway.http(headers={"Accept-Language": "en-US"}) as http:
        english = error_of(http.post(CHAT, json={"messages": HI, "temperature": 9}))
        model = error_of(http.post(CHAT, json={"messages": HI, "model": "ecco"}), 404)
    assert english["message"] == "field temperature cannot be 9: it must be at most 5.0"
    assert english["message"].isascii() and model["message"].isascii() and model["hint"].isascii()


@given(st.text(alphabet="enzhfr-,;q=.01 "))
def test_any_accept_language_gives_a_language(header: str) -> None:
    assert faults.language({"accept-language": header}, Settings()) in ("zh", "en")


def test_what_nobody_expected_shows_nothing_of_us(
    gateway: Gateway, engine: ScriptedEngine, caplog: pytest.LogCaptureFixture
) -> None:
    engine.script = [RuntimeError("secret path /root/x")]
    with caplog.at_level(logging.ERROR, "mofang.server"), gateway.http() as http:
        error = error_of(http.post(CHAT, json={"messages": HI}), 500)
    assert "secret" not in json.dumps(error) and error["code"] == "internal"
    reference = error["message"].split("编号 ")[1].rstrip("）")
    assert any(reference in record.getMessage() and record.exc_info for record in caplog.records)


def test_a_full_disk_is_told_as_such(settings: Settings) -> None:
    full = OSError(28, "No space left on device")
    assert isinstance(faults.understood(full, settings), NoSpace)
    assert faults.understood(OSError(13, "denied"), settings) is None
    assert faults.understood(sqlite3.OperationalError("locked"), settings) is None


def test_every_error_has_a_status_and_a_body(settings: Settings) -> None:
    def tree(cls: type[MofangError]) -> list[type[MofangError]]:
        return [cls, *(deeper for below in cls.__subclasses__() for deeper in tree(below))]

    for cls in tree(MofangError):
        if cls.__module__ != "mofang.errors":
            continue
        answer = faults.reply(cls("core.unexpected", why="x", log="y"), "en")
        error = json.loads(bytes(answer.body))["error"]
        assert answer.status_code == cls.status >= 400 and error["code"] == "unexpected"
        assert ("retry-after" in answer.headers) == issubclass(cls, (Busy, Leaving))


def test_the_schema_is_true(gateway: Gateway) -> None:
    with gateway.http() as http:
        schema = http.get("/openapi.json").json()
    assert "/v1/chat/completions" in schema["paths"] and "/" not in schema["paths"]
    for path, operations in schema["paths"].items():
        for method, operation in operations.items():
            assert "422" not in operation["responses"], f"{method} {path}"
            assert {"4XX", "5XX"} <= set(operation["responses"]), f"{method} {path}"
    assert set(schema["components"]["schemas"]["Fault"]["properties"]) >= {"message", "type", "param", "code"}
    used = json.dumps(schema["paths"])
    assert "HTTPValidationError" not in used


def test_a_key_is_in_the_schema(settings: Settings, pool: FakePool, library: FakeLibrary) -> None:
    locked = Settings(**{**settings.model_dump(), "api_key": "geheim"})
    with serving(LocalBackend(locked, engines=pool, library=library), "geheim") as gateway, gateway.http() as http:
        assert http.get("/openapi.json").json()["components"]["securitySchemes"]
