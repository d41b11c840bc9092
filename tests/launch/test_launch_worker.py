"""A run's process, before its work begins."""

from pathlib import Path

import pytest

from mofang.errors import NotFound
from mofang.launch import worker
from mofang.recipes import parse
from mofang.recipes.sft import Sft
from mofang.runs import Runs


def test_data_that_is_not_there_is_said_before_a_base_is_imported(home: Path) -> None:
    """The base is not there either: data is looked for first, as an import may take minutes."""
    recipe = parse(Sft, {"base": "a-gguf", "data": ["/nowhere.jsonl"]})
    with pytest.raises(NotFound) as raised:
        worker.call(Sft.worker, recipe, Runs(home).create(recipe))
    assert raised.value.code == "no_such_file" and "/nowhere.jsonl" in raised.value.message()
