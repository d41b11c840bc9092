"""What whoever runs a gateway relies on: figures, the log of requests, limits of bodies, pages from elsewhere."""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from served import Gateway, serving, wait_until

from fakes import FakeLibrary, FakePool, ScriptedEngine, engine_died, spoken
from mofang.server import uploads
from mofang.server.backend import LocalBackend
from mofang.server.journal import LOGGER
from mofang.server.routes import ROUTERS
from mofang.settings import Settings


def body(text: str = "你好", **fields: Any) -> dict[str, Any]:
    return {"model": "auto", "messages": [{"role": "user", "content": text}], **fields}


def figures(gateway: Gateway) -> dict[tuple[str, str], float]:
    """(name, first of model, route, limit…) → value."""
    with gateway.http() as http:
        answer = http.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    found = {}
    for family in text_string_to_metric_families(answer.text):
        for sample in family.samples:
            if "le" not in sample.labels:
                labels = ",".join(f"{sample.labels[name]}" for name in sorted(sample.labels))
                found[sample.name, labels] = sample.value
    return found


def test_figures_of_answers(gateway: Gateway, engine: ScriptedEngine) -> None:
    wait = gateway.event()
    with gateway.http() as http:
        http.post("/v1/chat/completions", json=body("一二三四"))
        http.post("/v1/completions", json={"model": "echo", "prompt": ["一二", "三"]})
        http.post("/v1/embeddings", json={"model": "hash", "input": "五六七"})
        http.get("/v1/models/nothing")
        http.get("/v1/no/such/route")
        engine.script = [*spoken("慢")[:1], wait, *spoken("")]
        with http.stream("POST", "/v1/chat/completions", json=body(stream=True)) as answer:
            rest = answer.iter_lines()
            next(rest)
            busy = figures(gateway)
            gateway.release(wait)
            list(rest)
    seen = figures(gateway)
    assert (busy["mofang_slots_busy", "echo"], seen["mofang_slots_busy", "echo"]) == (1, 0)
    assert seen["mofang_slots", "echo"] == 2 and seen["mofang_model_loaded", "hash"] == 1
    assert seen["mofang_queue_length", "echo"] == 0
    assert seen["mofang_requests_total", "POST,/v1/chat/completions,200"] == 2
    assert seen["mofang_requests_total", "GET,/v1/models/{name},404"] == 1
    assert seen["mofang_requests_total", "GET,-,404"] == 1, "unknown paths make no labels"
    assert seen["mofang_prompt_tokens_total", "echo"] == 4 + 2 + 7
    assert seen["mofang_prompt_tokens_total", "hash"] == 3
    assert seen["mofang_completion_tokens_total", "echo"] == 4 + 2 + 1 + 0
    assert seen["mofang_cached_prompt_tokens_total", "echo"] == 3 * 3
    assert seen["mofang_time_to_first_token_seconds_count", "echo"] == 3
    assert seen["mofang_time_per_output_token_seconds_count", "echo"] == 2


def test_a_crash_is_counted_once(gateway: Gateway, engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    engine.script = [engine_died()]
    monkeypatch.setattr(engine, "alive", lambda: False)
    with gateway.http() as http:
        for _ in range(2):
            assert http.post("/v1/chat/completions", json=body()).status_code == 502
    assert figures(gateway)["mofang_engine_crashes_total", "echo"] == 1


def test_two_gateways_do_not_share_figures(gateway: Gateway, settings: Settings, library: FakeLibrary) -> None:
    with gateway.http() as http:
        http.get("/healthz")
    with serving(LocalBackend(settings, engines=FakePool(), library=library)) as other:
        assert ("mofang_requests_total", "GET,/healthz,200") not in figures(other)
    assert figures(gateway)["mofang_requests_total", "GET,/healthz,200"] == 1


# ---- the log of requests ----


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Iterator[Any]:
    with caplog.at_level(logging.INFO, LOGGER):

        def read() -> list[dict[str, Any]]:
            return [json.loads(record.getMessage()) for record in caplog.records if record.name == LOGGER]

        yield read


def test_one_line_a_request_without_contents(gateway: Gateway, lines: Any) -> None:
    with gateway.http() as http:
        answer = http.post("/v1/chat/completions", json=body("秘密", stream=True))
        http.get("/v1/models/秘密")
    wait_until(lambda: len(lines()) == 2)  # a line is written when its answer has been sent
    chat, missing = lines()
    assert chat["request_id"] == answer.headers["x-request-id"]
    assert (chat["event"], chat["method"], chat["route"], chat["status"], chat["client_gone"]) == (
        "request", "POST", "/v1/chat/completions", 200, False)  # fmt: skip
    assert (chat["model"], chat["key"], chat["finish_reason"]) == ("echo", None, "stop")
    assert (chat["prompt_tokens"], chat["completion_tokens"], chat["cached_tokens"]) == (2, 2, 3)
    assert 0 < chat["ttft_ms"] <= chat["ms"]
    assert (missing["route"], missing["status"], missing["ttft_ms"]) == ("/v1/models/{name}", 404, None)
    assert "秘密" not in json.dumps(lines(), ensure_ascii=False)


def test_an_answer_that_outlives_its_request_has_a_line_of_its_own(gateway: Gateway, lines: Any) -> None:
    with gateway.http() as http:
        begun = http.post("/v1/generations", json=body("一二三"))
        wait_until(lambda: any(line["event"] == "answer" for line in lines()))
    answer = next(line for line in lines() if line["event"] == "answer")
    assert answer["request_id"] == begun.headers["x-request-id"] and answer["completion_tokens"] == 3
    assert answer["finish_reason"] == "stop"


def test_a_client_that_left_is_named(gateway: Gateway, engine: ScriptedEngine, lines: Any) -> None:
    engine.script = [*spoken("一二")[:2], gateway.event()]
    with gateway.http() as http, http.stream("POST", "/v1/chat/completions", json=body(stream=True)) as answer:
        next(answer.iter_lines())
    wait_until(lines)
    assert lines()[0]["client_gone"] is True and lines()[0]["completion_tokens"] == 2
    assert lines()[0]["finish_reason"] is None


@contextmanager
def configured(settings: Settings, pool: FakePool, library: FakeLibrary, **changes: Any) -> Iterator[Gateway]:
    changed = Settings(**{**settings.model_dump(), **changes})
    with serving(LocalBackend(changed, engines=pool, library=library), changes.get("api_key")) as running:
        yield running


def test_contents_only_where_they_are_asked_for(
    settings: Settings, pool: FakePool, library: FakeLibrary, lines: Any
) -> None:
    with configured(settings, pool, library, log_contents=True) as gateway, gateway.http() as http:
        http.post("/v1/chat/completions", json=body("天气\u2028如何"))
        http.post("/v1/completions", json={"model": "echo", "prompt": "一二"})
        wait_until(lambda: len(lines()) == 2)
    chat, completion = lines()
    assert chat["messages"] == [[{"role": "user", "content": "天气\u2028如何"}]]
    assert chat["answers"] == ["天气\u2028如何"]
    assert (completion["messages"], completion["answers"]) == (["一二"], ["二一"])


def test_refused_requests_are_recorded_too(
    settings: Settings, pool: FakePool, library: FakeLibrary, lines: Any
) -> None:
    with configured(settings, pool, library, api_key="k") as gateway:
        httpx.get(f"{gateway.url}/v1/models?key=geheim", headers={"Authorization": "Bearer mf-falsch"}, trust_env=False)
        assert httpx.get(f"{gateway.url}/metrics", trust_env=False).status_code == 401
        wait_until(lambda: len(lines()) == 2)
    assert [line["status"] for line in lines()] == [401, 401]
    assert "falsch" not in json.dumps(lines()) and "geheim" not in json.dumps(lines())


# ---- bodies ----


def test_a_body_beyond_the_limit(settings: Settings, pool: FakePool, library: FakeLibrary) -> None:
    large = json.dumps(body("长" * 400_000), ensure_ascii=False).encode()
    as_json = {"Content-Type": "application/json"}

    def in_chunks() -> Iterator[bytes]:
        yield from (large[start : start + 65_536] for start in range(0, len(large), 65_536))

    with configured(settings, pool, library, body_limit_mb=1) as gateway, gateway.http() as http:
        for content in (large, in_chunks()):
            answer = http.post("/v1/chat/completions", content=content, headers=as_json)
            assert answer.status_code == 413 and answer.json()["error"]["code"] == "body_too_large"
            told = answer.json()["error"]["message"]
            assert any(f"1.{tenth} MB" in told for tenth in (0, 1, 2)) and "上限是 1 MB" in told, (
                "how much came, how much may"
            )
        multipart = http.post("/v1/chat/completions", files={"files": large})
        assert multipart.status_code == 413, "only the upload routes count for themselves"
        small = (piece for piece in (b'{"model": "echo", "messages": ', b'[{"role": "user", "content": "x"}]}'))
        assert http.post("/v1/chat/completions", content=small, headers=as_json).status_code == 200
        assert http.post("/v1/datasets", files={"files": ("a.txt", large)}).json()["error"]["code"] != "body_too_large"


def test_every_route_that_takes_files_is_known_to_the_limit() -> None:
    paths = [route.path for router in ROUTERS for route in router.routes if route.openapi_extra == uploads.OPENAPI]  # type: ignore[attr-defined]
    assert paths and all(uploads.STREAMED.fullmatch(path) for path in paths)


# ---- pages from elsewhere ----

APP = "https://app.example"


def preflight(http: httpx.Client, origin: str) -> httpx.Response:
    asks = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,x-stainless-os"}
    return http.options("/v1/chat/completions", headers={"Origin": origin, **asks})


def test_a_page_that_is_named_may_call(settings: Settings, pool: FakePool, library: FakeLibrary) -> None:
    with configured(settings, pool, library, cors_origins=APP, api_key="k") as gateway:
        with httpx.Client(base_url=gateway.url, trust_env=False) as browser:
            asked = preflight(browser, APP)
            assert asked.status_code == 204 and asked.headers["access-control-allow-origin"] == APP
            assert "x-stainless-os" in asked.headers["access-control-allow-headers"]
            assert "POST" in asked.headers["access-control-allow-methods"] and asked.headers["vary"] == "Origin"
            without_key = browser.post("/v1/chat/completions", json=body(), headers={"Origin": APP})
            assert without_key.status_code == 401
            assert without_key.headers["access-control-allow-origin"] == APP, "the page can read what was wrong"
            for other in ("https://app.example.evil", "http://app.example", "null"):
                refused = preflight(browser, other)
                assert refused.status_code == 403 and "access-control-allow-origin" not in refused.headers
        with gateway.http() as http:
            answer = http.post("/v1/chat/completions", json=body(), headers={"Origin": APP})
            assert answer.status_code == 200 and "Retry-After" in answer.headers["access-control-expose-headers"]
            assert http.post("/v1/chat/completions", json=body(), headers={"Origin": "https://b"}).status_code == 403


def test_any_page_only_with_a_key(settings: Settings, pool: FakePool, library: FakeLibrary) -> None:
    with configured(settings, pool, library, cors_origins="*", api_key="k") as gateway, gateway.http() as http:
        assert preflight(http, "https://any.example").status_code == 204
    with configured(settings, pool, library, cors_origins="*") as gateway, gateway.http() as http:
        assert preflight(http, "https://any.example").status_code == 403


# ---- the end ----


def test_what_is_new_is_refused_while_the_gateway_ends(gateway: Gateway, engine: ScriptedEngine) -> None:
    wait = gateway.event()
    engine.script = [*spoken("一")[:1], wait, *spoken("二")]
    with gateway.http() as http:
        assert http.get("/readyz").status_code == 200
        with http.stream("POST", "/v1/chat/completions", json=body(stream=True)) as answer:
            rest = answer.iter_lines()
            next(rest)
            gateway.backend.leaving = True
            assert gateway.backend.n_answering == 1
            with gateway.http() as other:
                refused = other.post("/v1/chat/completions", json=body())
                assert refused.status_code == 503 and refused.json()["error"]["code"] == "leaving"
                assert int(refused.headers["retry-after"]) == 5
                assert other.get("/readyz").status_code == 503 and other.get("/healthz").status_code == 200
            gateway.release(wait)
            assert "data: [DONE]" in list(rest)
        wait_until(lambda: gateway.backend.n_answering == 0)
