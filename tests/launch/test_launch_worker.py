"""A run's process, before its work begins."""

from pathlib import Path

import pytest

import tiny_llama
from mofang.errors import NotFound
from mofang.launch import worker
from mofang.models.store import ModelStore
from mofang.recipes import parse
from mofang.recipes.sft import Sft
from mofang.runs import Runs
from mofang.settings import Settings


def test_data_that_is_not_there_is_said_before_a_base_is_imported(home: Path, tmp_path: Path) -> None:
    """An import may take minutes."""
    store = ModelStore(Settings(home=home))
    store.add(tiny_llama.write_gguf(tiny_llama.make(tmp_path / "tiny"), tmp_path / "a.gguf"), "a-gguf")
    recipe = parse(Sft, {"base": "a-gguf", "data": ["/nowhere.jsonl"]})
    with pytest.raises(NotFound) as raised:
        worker.call(Sft.worker, recipe, Runs(home).create(recipe))
    assert raised.value.code == "no_such_file" and "/nowhere.jsonl" in raised.value.message()
    assert [ref.name for ref in store.list()] == ["a-gguf"]
