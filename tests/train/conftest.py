"""A tiny model that is registered in the test's home, data to learn, and a run that needs no process."""

import json
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import s3_stand_in
import tiny_llama
from mofang.models.store import ModelStore
from mofang.recipes import parse
from mofang.recipes.sft import Sft
from mofang.runs import Run, Runs
from mofang.settings import Settings

PAIRS = [(f"问题 {n}", f"答案 {n * n}。" * (1 + n % 3)) for n in range(9)]


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama.make(tmp_path_factory.mktemp("tiny") / "tiny")


@pytest.fixture
def tiny(tiny_folder: Path, home: Path) -> str:
    return ModelStore(Settings(home=home)).add(tiny_folder, "tiny").name


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(json.dumps({"instruction": q, "output": a}) for q, a in PAIRS), encoding="utf-8")
    return path


@pytest.fixture
def training(home: Path, tiny: str, data: Path) -> Callable[..., Run]:
    """training(field=value…) → a run of a small recipe, not started."""

    def make(**fields: Any) -> Run:
        small = {"epochs": 2, "batch_size": 4, "lora_rank": 4, "learning_rate": 1e-2, "eval_fraction": 0.2}
        return Runs(home).create(parse(Sft, {"base": tiny, "data": [str(data)], **small, **fields}))

    return make


@pytest.fixture(scope="module")
def s3() -> Iterator[s3_stand_in.Store]:
    with s3_stand_in.running() as store:
        yield store


@pytest.fixture
def storage(s3: s3_stand_in.Store, monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of an empty place in an object store, whose keys are in the environment."""
    for name, value in s3_stand_in.KEYS.items():
        monkeypatch.setenv(name, value)
    return s3.bucket(f"bucket-{uuid.uuid4().hex[:12]}")


@pytest.fixture(autouse=True)
def own_language(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    yield
