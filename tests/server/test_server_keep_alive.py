"""How long a model stays in memory, as requests say it."""

import math
from typing import Any

import httpx
import pytest
from served import Gateway

from fakes import FakePool
from mofang.durations import seconds

ROUTES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "你好"}]},
    "/v1/generations": {"messages": [{"role": "user", "content": "你好"}]},
    "/v1/completions": {"prompt": "你好"},
    "/v1/embeddings": {"input": "你好", "model": "hash"},
    "/v1/rerank": {"query": "你好", "documents": ["你"], "model": "letters"},
    "/v1/models/echo/load": {},
}


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        (0, 0), (300, 300), (1.5, 1.5), ("5m", 300), ("1h30m", 5400), ("250ms", 0.25), ("90", 90), ("0", 0), (" 2s ", 2),
        (-1, math.inf), ("-1m", math.inf), ("-1", math.inf), (math.inf, math.inf),
    ],
)  # fmt: skip
def test_times_as_ollama_says_them(said: Any, meant: float) -> None:
    assert seconds(said) == meant


BAD = ["", "soon", "5 minutes", "m5", "5m3", "1d", "五分钟", True, [], {}, "--1", "1e3", "+"]


@pytest.mark.parametrize("said", [*BAD, math.nan, None])
def test_what_is_no_time(said: Any) -> None:
    with pytest.raises(ValueError):
        seconds(said)


@pytest.mark.parametrize("path", ROUTES)
def test_every_route_that_uses_a_model_passes_it_on(gateway: Gateway, pool: FakePool, path: str) -> None:
    with gateway.http() as http:
        assert http.post(path, json={**ROUTES[path], "keep_alive": "5m"}).is_success
        assert http.post(path, json={**ROUTES[path], "keep_alive": -1}).is_success
        assert http.post(path, json=ROUTES[path]).is_success
        if path == "/v1/generations":
            _until_idle(http)
    assert pool.kept == [300.0, math.inf, None]


def _until_idle(http: httpx.Client) -> None:
    while http.get("/v1/system").json()["running"]["generations"]:
        pass


@pytest.mark.parametrize("path", ROUTES)
def test_a_bad_time_is_one_clear_error(gateway: Gateway, pool: FakePool, path: str) -> None:
    with gateway.http() as http:
        for said in BAD[::3]:
            answer = http.post(path, json={**ROUTES[path], "keep_alive": said})
            error = answer.json()["error"]
            assert (answer.status_code, error["param"]) == (400, "keep_alive")
            assert "5m" in error["message"] and str(said) in error["message"]
    assert pool.kept == []


def test_pinning_is_said_when_loading_and_shown(gateway: Gateway) -> None:
    with gateway.http() as http:
        assert http.post("/v1/models/echo/load", json={"pin": True}).json()["pinned"] is True
        assert http.post("/v1/models/echo/load").json()["pinned"] is False, "no body is no wish"
        wrong = http.post("/v1/models/echo/load", json={"pinn": True})
        assert wrong.status_code == 400 and "pin" in wrong.json()["error"]["message"]
        (shown,) = {engine["model"]: engine for engine in http.get("/v1/system").json()["engines"]}.values()
        assert {"pinned", "running", "waiting", "idle_s", "unloads_in_s", "estimated_bytes", "notices"} <= shown.keys()
