"""A run's process, before its work begins."""

from pathlib import Path

import pytest

import tiny_llama
from mofang.errors import NotFound
from mofang.launch import worker
from mofang.models.store import ModelStore
from mofang.recipes import parse
from mofang.recipes.export import Resize
from mofang.recipes.sft import Sft
from mofang.recipes.tokenizer import Extend
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


def test_a_gguf_is_imported_before_it_gets_rows_for_new_tokens(home: Path, tmp_path: Path) -> None:
    store = ModelStore(Settings(home=home))
    store.add(tiny_llama.write_gguf(tiny_llama.make(tmp_path / "tiny"), tmp_path / "a.gguf"), "a-gguf")
    (tmp_path / "文.txt").write_text("人工智能会写诗，数据要备份。\n" * 40, encoding="utf-8")
    extend = parse(Extend, {"model": "a-gguf", "texts": [str(tmp_path / "文.txt")], "new_tokens": 12})
    made = worker.call(Extend.worker, extend, Runs(home).create(extend))
    resize = parse(Resize, {"model": "a-gguf", "tokenizer": made["path"], "name": "宽"})
    found = worker.call(Resize.worker, resize, Runs(home).create(resize))
    assert found["model"] == "宽" and found["n_new"] == made["n_added"] > 0
    assert store.get("宽").format == "hf" and len(store.list()) == 3
