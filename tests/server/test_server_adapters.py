"""Adapters by name through the real HTTP layer and a real llama.cpp server."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from served import Gateway, serving

import tiny_llama
from mofang.server.backend import LocalBackend
from mofang.settings import Settings

ASK = {"messages": [{"role": "user", "content": "hello"}], "temperature": 0, "max_tokens": 8, "seed": 1}


@pytest.fixture
def tiny(home: Path) -> Iterator[Gateway]:
    base = tiny_llama.make(home / "hf")
    backend = LocalBackend(Settings(home=home, port=0, n_ctx=256, n_slots=1))
    backend.models.add(tiny_llama.write_gguf(base, home / "tiny.gguf"), "tiny")
    with serving(backend) as running:
        yield running


def _chat(http: httpx.Client, model: str) -> httpx.Response:
    return http.post("/v1/chat/completions", json={**ASK, "model": model})


def test_an_adapter_is_added_listed_asked_and_removed(tiny: Gateway, home: Path) -> None:
    adapter = str(tiny_llama.make_adapter(home / "files" / "one"))
    with tiny.http() as http:
        base = _chat(http, "tiny").json()
        refused = http.post("/v1/models/add", json={"path": adapter})
        assert refused.status_code == 400 and refused.json()["error"]["param"] == "base"
        assert http.post("/v1/models/add", json={"path": adapter, "base": "tiny"}).json()["id"] == "one"

        listed = {model["id"]: model for model in http.get("/v1/models").json()["data"]}
        pair = listed["tiny:one"]
        assert (pair["parent"], pair["format"], pair["kind"], pair["runnable"]) == ("tiny", "lora", "chat", True)
        assert listed["tiny"]["parent"] is None and listed["one"]["runnable"] is False
        details = http.get("/v1/models/tiny:one").json()
        assert details["architecture"] == "llama" and details["manifest"]["notes"]

        answer = _chat(http, "tiny:one").json()
        assert answer["model"] == "tiny:one" and answer["choices"] != base["choices"]
        assert _chat(http, "tiny").json()["choices"][0]["message"] == base["choices"][0]["message"]
        loaded = {model["id"]: model["loaded"] for model in http.get("/v1/models").json()["data"]}
        assert loaded == {"tiny": True, "one": False, "tiny:one": True}
        raw = {"model": "tiny:one", "prompt": "hello", "max_tokens": 4, "temperature": 0}
        assert http.post("/v1/completions", json=raw).json()["choices"][0]["text"]

        lost = _chat(http, "tiny:onw")
        assert lost.status_code == 404 and "tiny:one" in lost.json()["error"]["message"]
        assert http.delete("/v1/models/tiny:one").status_code == 409
        assert http.post("/v1/models/tiny:one/unload").status_code == 204
        assert not any(model["loaded"] for model in http.get("/v1/models").json()["data"])
        assert http.delete("/v1/models/one").status_code == 204 and _chat(http, "tiny:one").status_code == 404
