"""GET /v1/engine: which llama.cpp runs here and why, and what tuning found, as `engine info` and the page show it."""

from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from mofang.engine import profile
from mofang.engine.llama.provider import choose, describe
from mofang.engine.profile import Choices, Profile, Step
from mofang.models.store import ModelStore
from mofang.server import create_app
from mofang.server.backend import LocalBackend
from mofang.settings import load as load_settings
from tiny_llama import make, write_gguf


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    folder = tmp_path / "lib"
    folder.mkdir()
    write_gguf(make(tmp_path / "hf"), folder / "tiny.gguf")
    monkeypatch.setenv("MOFANG_MODEL_PATH", str(folder))
    return "tiny"


def test_tells_the_build_its_reason_and_each_profile(model: str) -> None:
    settings = load_settings()
    ref = ModelStore(settings).get(model)
    named = describe(choose(settings.home))
    step = Step({"flash_attn": "off"}, {"answer": 20.0}, {"answer": 31.0}, 1.3, 0.02, True)
    profile.save(
        settings.home, ref, Profile(model, Choices(flash_attn="off"), "both", named, steps=[step], seconds=9.0)
    )
    with TestClient(create_app(LocalBackend(settings)), base_url="http://127.0.0.1") as client:
        found = client.get("/v1/engine", headers={"Accept-Language": "en"}).json()
    assert found["provider"] == named and "built" in found["why"] and found["builds"] == []
    assert found["machine"]["cores"] >= 1 and found["machine"]["cpu"]
    (told,) = found["profiles"]
    assert told["model"] == model and told["choices"]["flash_attn"] == "off" and told["steps"][0]["gain"] == 1.3
