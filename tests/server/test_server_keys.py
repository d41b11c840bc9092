"""Keys that the owner gives out: what they open, what they do not, and that nobody can read them again."""

import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from served import Gateway, serving, wait_until

from fakes import FakeLibrary, FakePool, ScriptedEngine, install_model, spoken
from mofang.engine.base import CALLER
from mofang.errors import Denied
from mofang.server.backend import LocalBackend
from mofang.server.keys import WRITE_USE_EVERY_S, Keys, Limits, any_active, digest
from mofang.server.store.database import Database
from mofang.settings import Settings


@pytest.fixture
def locked(settings: Settings, pool: FakePool, library: FakeLibrary) -> Iterator[Gateway]:
    install_model(settings.home, "other")
    pool.engines["other"] = ScriptedEngine("other")
    with_key = Settings(**{**settings.model_dump(), "api_key": "sk-geheim", "chat_model": "echo"})
    with serving(LocalBackend(with_key, engines=pool, library=library), "sk-geheim") as running:
        yield running


def made(gateway: Gateway, name: str = "小王", **fields: Any) -> tuple[str, httpx.Client]:
    """A new key's id, and an HTTP client that brings it."""
    with gateway.client() as owner:
        key = owner.create_key(name, **fields)
    assert key["key"].startswith("mf-") and len(key["key"]) == 46
    bearer = {"Authorization": f"Bearer {key['key']}"}
    return key["id"], httpx.Client(base_url=gateway.url, trust_env=False, headers=bearer, timeout=20)


def say(http: httpx.Client, text: str = "你好", **fields: Any) -> httpx.Response:
    body = {"model": "auto", "messages": [{"role": "user", "content": text}], **fields}
    return http.post("/v1/chat/completions", json=body)


def code(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


def test_a_key_from_its_making_to_its_end(locked: Gateway) -> None:
    key_id, http = made(locked, models=["ec*"], tokens_per_minute=5000)
    with http, locked.client() as owner:
        assert say(http).status_code == 200
        [shown] = owner.keys()
        assert (shown["id"], shown["name"], shown["state"], shown["models"]) == (key_id, "小王", "active", ["ec*"])
        assert shown["last_used_at"] and shown["tokens_per_minute"] == 5000 and "key" not in shown
        assert owner.revoke_key(key_id)["state"] == "revoked"
        assert code(say(http)) == (401, "key_revoked")
        assert owner.keys()[0]["state"] == "revoked"
    with locked.http() as http:
        assert code(http.delete("/v1/keys/key-none")) == (404, "key_not_found")
        assert code(http.post("/v1/keys", json={"name": "x", "rpm": 3}))[0] == 400


def test_nothing_that_is_kept_or_told_holds_the_secret(locked: Gateway, settings: Settings) -> None:
    _, http = made(locked)
    secret = http.headers["Authorization"].split()[1]
    with http, locked.http() as owner:
        told = [say(http).text, http.get("/v1/system").text, owner.get("/v1/keys").text, owner.get("/metrics").text]
    wrong = httpx.get(f"{locked.url}/v1/models", headers={"Authorization": f"Bearer {secret}x"}, trust_env=False)
    told.append(wrong.text)
    assert wrong.status_code == 401 and not any(secret[3:] in text for text in told)
    kept = b"".join(path.read_bytes() for path in settings.home.glob("server.db*"))
    assert secret.encode()[3:] not in kept and digest(secret).encode() in kept


def test_what_only_the_owner_may(locked: Gateway) -> None:
    _, http = made(locked)
    with http:
        for method, path, body in (
            ("GET", "/v1/keys", None),
            ("POST", "/v1/keys", {"name": "me too"}),
            ("DELETE", "/v1/keys/key-1", None),
            ("POST", "/v1/models/pull", {"name": "auto"}),
            ("POST", "/v1/models/add", {"path": "/etc/passwd"}),
            ("POST", "/v1/models/remote", {"name": "x", "base_url": "http://127.0.0.1:1/v1", "model": "y"}),
            ("DELETE", "/v1/models/echo", None),
            ("POST", "/v1/models/echo/load", {"reload": True}),
            ("POST", "/v1/models/echo/load", {"replicas": 9}),
            ("POST", "/v1/runs", {"kind": "sft", "recipe": {}}),
        ):
            assert code(http.request(method, path, json=body)) == (403, "owner_only"), (method, path)


def test_a_keys_models(locked: Gateway) -> None:
    _, http = made(locked, models=["ech?"])
    with http:
        assert [model["id"] for model in http.get("/v1/models").json()["data"]] == ["echo"]
        assert say(http).json()["model"] == "echo", "auto means a model that is allowed"
        refused = say(http, model="other")
        assert code(refused) == (403, "model_denied") and "other" in refused.json()["error"]["message"]
        assert code(say(http, model="other", stream=True)) == (403, "model_denied")
        ask = {"model": "other", "messages": [{"role": "user", "content": "x"}]}
        assert code(http.post("/v1/generations", json=ask)) == (403, "model_denied")
        assert code(http.post("/v1/completions", json={"model": "other", "prompt": "x"})) == (403, "model_denied")
        assert code(http.post("/v1/embeddings", json={"model": "auto", "input": "x"})) == (403, "model_denied")
        assert code(http.post("/v1/tokenize", json={"model": "other", "text": "x"})) == (403, "model_denied")
        assert code(http.get("/v1/models/other")) == (403, "model_denied")
        assert code(http.post("/v1/models/other/unload")) == (403, "model_denied")
    with locked.http() as owner:
        assert say(owner, model="other").status_code == 200


def test_limits_are_told_and_kept(locked: Gateway) -> None:
    key_id, http = made(locked, requests_per_minute=2, tokens_per_minute=1000)
    with http:
        first = say(http)
        assert first.headers["x-ratelimit-remaining-requests"] == "1"
        assert first.headers["x-ratelimit-remaining-tokens"] == str(1000 - first.json()["usage"]["total_tokens"])
        assert http.get("/v1/models").status_code == 200, "looking costs nothing"
        assert say(http, stream=True).status_code == 200
        refused = say(http)
        assert code(refused) == (429, "request_limit") and refused.json()["error"]["type"] == "rate_limit_error"
        assert 1 <= int(refused.headers["retry-after"]) <= 60
        assert refused.headers["x-ratelimit-remaining-requests"] == "0"
        ask = {"model": "auto", "messages": [{"role": "user", "content": "x"}]}
        assert code(http.post("/v1/generations", json=ask)) == (429, "request_limit")
    with locked.http() as owner:
        assert say(owner).status_code == 200
        assert f'mofang_refused_total{{key="{key_id}",limit="request_limit"}} 2.0' in owner.get("/metrics").text


def test_the_tokens_of_a_generation_and_of_embeddings_count(locked: Gateway) -> None:
    _, http = made(locked, tokens_per_minute=6)
    with http:
        assert http.post("/v1/embeddings", json={"model": "auto", "input": "一二"}).status_code == 200
        ask = {"model": "auto", "messages": [{"role": "user", "content": "一二三四"}]}
        shape = http.post("/v1/generations", json=ask).json()
        with http.stream("GET", f"/v1/generations/{shape['id']}/events") as events:
            events.read()
        refused = say(http)
    assert code(refused) == (429, "token_limit")
    assert " 10 " in refused.json()["error"]["message"], "2 + 4 read + 4 written"


def test_a_place_is_held_while_an_answer_runs(locked: Gateway, engine: ScriptedEngine) -> None:
    _, http = made(locked, concurrent=1)
    wait = locked.event()
    engine.script = [*spoken("慢")[:1], wait, *spoken("")]
    with http:
        with http.stream("POST", "/v1/chat/completions", json={"model": "auto", "stream": True,
                         "messages": [{"role": "user", "content": "x"}]}) as answer:  # fmt: skip
            assert answer.status_code == 200
            assert code(say(http)) == (429, "concurrent_limit")
        engine.script = None
        wait_until(lambda: say(http).status_code == 200)  # leaving gave the place back


def test_a_client_that_leaves_early_has_paid_for_what_it_got(locked: Gateway, engine: ScriptedEngine) -> None:
    _, http = made(locked, tokens_per_minute=5)
    engine.script = [*spoken("一二三四五六")[:6], locked.event()]
    with http:
        body = {"model": "auto", "stream": True, "messages": [{"role": "user", "content": "x"}]}
        with http.stream("POST", "/v1/chat/completions", json=body) as answer:
            for line in answer.iter_lines():
                if "六" in line:
                    break
        wait_until(lambda: engine.open == 0)
        wait_until(lambda: code(say(http)) == (429, "token_limit") if say(http).is_error else False)


def test_on_whose_behalf_engines_work(locked: Gateway, pool: FakePool, monkeypatch: pytest.MonkeyPatch) -> None:
    callers = []
    use = pool.use
    monkeypatch.setattr(pool, "use", lambda *args, **more: (callers.append(CALLER.get()), use(*args, **more))[1])
    key_id, http = made(locked)
    ask = {"model": "auto", "messages": [{"role": "user", "content": "x"}]}
    with http, locked.http() as owner:
        say(http)
        say(owner)
        shape = http.post("/v1/generations", json=ask).json()
        wait_until(lambda: http.get(f"/v1/generations/{shape['id']}").json()["status"] == "done")
    assert callers == [key_id, "", key_id]


def test_an_open_gateway_holds_a_key_to_its_limits_and_minds_no_foreign_one(gateway: Gateway) -> None:
    _, http = made(gateway, models=["nothing"])
    with http:
        assert code(say(http)) == (403, "model_denied")
        assert code(http.get("/v1/models", headers={"Authorization": "Bearer mf-typo"})) == (401, "wrong_key")
        assert http.get("/v1/models", headers={"Authorization": "Bearer sk-dummy"}).json()["data"]
        for header in ("X-Forwarded-For", "Forwarded"):
            through_a_proxy = httpx.get(f"{gateway.url}/v1/models", headers={header: "1.2.3.4"}, trust_env=False)
            assert code(through_a_proxy) == (401, "no_key")
            assert http.get("/v1/models", headers={header: "1.2.3.4"}).status_code == 200


def test_the_header_of_anthropics_clients(locked: Gateway) -> None:
    for key, status in (("sk-geheim", 200), ("sk-falsch", 401)):
        answer = httpx.get(f"{locked.url}/v1/models", headers={"x-api-key": key}, trust_env=False)
        assert answer.status_code == status


def test_the_official_client_sees_limits_as_its_own_errors(locked: Gateway) -> None:
    _, http = made(locked, requests_per_minute=1, models=["echo"])
    secret = http.headers["Authorization"].split()[1]
    http.close()
    with openai.OpenAI(base_url=f"{locked.url}/v1", api_key=secret, max_retries=0,
                       http_client=httpx.Client(trust_env=False)) as client:  # fmt: skip

        def ask(model: str) -> Any:
            return client.chat.completions.create(model=model, messages=[{"role": "user", "content": "x"}])

        with pytest.raises(openai.PermissionDeniedError):
            ask("other")
        ask("echo")
        with pytest.raises(openai.RateLimitError):
            ask("echo")


def test_keys_survive_a_restart_and_expire(tmp_path: Path) -> None:
    moment = datetime(2026, 11, 24, tzinfo=UTC)
    path = tmp_path / "server.db"
    assert not any_active(path)
    database = Database(path)
    key, secret = Keys(database, lambda: moment).create("甲", limits=Limits(concurrent=3), expires_in_s=60)
    later = Keys(database, lambda: moment + timedelta(seconds=59))
    assert later.find(secret) == key and key.limits.concurrent == 3
    too_late = Keys(database, lambda: moment + timedelta(seconds=60))
    with pytest.raises(Denied) as expired:
        too_late.find(secret)
    assert expired.value.code == "key_expired" and secret not in str(expired.value)
    database.close()


def test_the_last_use_is_written_now_and_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = [0.0]
    monkeypatch.setattr("mofang.server.keys.time.monotonic", lambda: seconds[0])
    database = Database(tmp_path / "server.db")
    keys = Keys(database)
    key, _ = keys.create("甲", limits=Limits())
    assert keys.touch(key) is False
    seconds[0] += WRITE_USE_EVERY_S
    assert keys.touch(key) is True
    keys.flush()
    assert keys.touch(key) is False
    with sqlite3.connect(tmp_path / "server.db") as other:
        assert other.execute("SELECT last_used_at FROM keys").fetchone()[0]
    other.close()
    database.close()
    assert any_active(tmp_path / "server.db")
