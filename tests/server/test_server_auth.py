"""Who may come in."""

from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st
from served import Gateway, serving

from fakes import FakeLibrary, FakePool
from mofang.server.auth import host_name, is_loopback
from mofang.server.backend import LocalBackend
from mofang.settings import Settings


@pytest.fixture
def locked(settings: Settings, pool: FakePool, library: FakeLibrary) -> Iterator[Gateway]:
    with_key = Settings(**{**settings.model_dump(), "api_key": "sk-geheim"})
    with serving(LocalBackend(with_key, engines=pool, library=library), "sk-geheim") as running:
        yield running


def test_the_key(locked: Gateway) -> None:
    with httpx.Client(base_url=locked.url, trust_env=False) as http:
        bare = http.get("/v1/models")
        assert bare.status_code == 401 and bare.headers["www-authenticate"] == "Bearer"
        assert bare.json()["error"]["code"] == "no_key" and bare.headers["x-request-id"]
        for wrong in (
            "Bearer x",
            "Bearer sk-geheim2",
            "Bearer",
            "Basic sk-geheim",
            "sk-geheim",
            "Bearer ключ".encode(),
        ):
            answer = http.get("/v1/models", headers={"Authorization": wrong})
            assert answer.status_code == 401 and answer.json()["error"]["code"] == "wrong_key", wrong
        for path in ("/readyz", "/openapi.json", "/v1/system", "/v1/nowhere", "/healthz/../v1/models"):
            assert http.get(path).status_code == 401, path
        assert http.get("/healthz").json()["status"] == "ok"
        assert http.get("/").status_code == 307
        assert http.get("/v1/models", headers={"Authorization": "bearer sk-geheim"}).status_code == 200


def test_the_official_client_sees_its_own_error(locked: Gateway) -> None:
    def ask(key: str) -> Any:
        with openai.OpenAI(
            base_url=f"{locked.url}/v1", api_key=key, http_client=httpx.Client(trust_env=False), max_retries=0
        ) as client:
            return client.models.list()

    assert ask("sk-geheim").data
    with pytest.raises(openai.AuthenticationError):
        ask("sk-falsch")


def test_the_system_page_keeps_the_secret(locked: Gateway) -> None:
    with locked.http() as http:
        answer = http.get("/v1/system")
    assert "geheim" not in answer.text and answer.json()["settings"]["api_key"] is True


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8642", "127.0.0.1.evil.example", "", "[::1", "a b"])
def test_names_that_resolve_here_but_are_not_ours(gateway: Gateway, host: str) -> None:
    with gateway.http() as http:
        answer = http.get("/healthz", headers={"Host": host})
    assert answer.status_code in (400, 403)  # uvicorn itself refuses some
    assert "ok" not in answer.text


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost:8642", "LOCALHOST", "[::1]:8642", "127.0.0.2"])
def test_our_own_names(gateway: Gateway, host: str) -> None:
    with gateway.http() as http:
        assert http.get("/healthz", headers={"Host": host}).status_code == 200


def test_other_pages_may_not_act(gateway: Gateway) -> None:
    with gateway.http() as http:
        for origin in ("https://evil.example", "null", "http://127.0.0.1.evil.example"):
            refused = http.post("/v1/models/echo/load", headers={"Origin": origin})
            assert refused.status_code == 403 and refused.json()["error"]["code"] == "foreign_origin"
        assert http.post("/v1/models/echo/load", headers={"Origin": "http://localhost:8643"}).status_code == 200
        preflight = http.options("/v1/models", headers={"Origin": "https://evil.example"})
        assert "access-control-allow-origin" not in preflight.headers


def test_a_gateway_for_others_takes_their_names(settings: Settings, pool: FakePool, library: FakeLibrary) -> None:
    shared = Settings(**{**settings.model_dump(), "host": "0.0.0.0", "api_key": "k"})
    with serving(LocalBackend(shared, engines=pool, library=library), "k") as gateway, gateway.http() as http:
        assert http.get("/healthz", headers={"Host": "office.example:8642"}).status_code == 200
        refused = http.post("/v1/models/add", json={"path": "/etc/passwd"})
        assert refused.status_code == 403 and refused.json()["error"]["code"] == "add_needs_loopback"


def test_the_way_to_the_workbench_keeps_the_name(gateway: Gateway) -> None:
    with gateway.http() as http:
        for host, there in (
            ("localhost:1", "http://localhost:8643/"),
            ("127.0.0.1", "http://127.0.0.1:8643/"),
            ("[::1]:9", "http://[::1]:8643/"),
        ):
            assert http.get("/", headers={"Host": host}).headers["location"] == there


@given(st.text())
def test_any_host_header_is_read_without_failing(header: str) -> None:
    try:
        name = host_name(header)
    except ValueError:
        return
    assert not is_loopback(name) or not any(letter in name for letter in "@/ ")
