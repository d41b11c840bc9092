"""Recipes: all faults at once, nearest names, the same fields for files, flags and forms."""

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from mofang.errors import Invalid, NotFound, UnknownName
from mofang.recipes import EXPORTERS, METHODS, parse, read_yaml, recipe_class
from mofang.recipes.sft import Sft
from mofang.strings import LANGUAGES, say

KINDS = [*METHODS, *EXPORTERS]
LEAST = {"base": "x", "data": ["a.jsonl"], "model": "x", "tokenizer": "y"}
SHIPPED = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))


def least(kind: str) -> dict:
    return {name: value for name, value in LEAST.items() if name in recipe_class(kind).model_fields}


@pytest.mark.parametrize("kind", KINDS)
def test_every_recipe_keeps_the_contract(kind: str) -> None:
    recipe = recipe_class(kind)
    assert recipe.kind == kind and ":" in recipe.worker
    for name in recipe.model_fields:
        for lang in LANGUAGES:
            assert say(f"recipes.field_{name}", lang=lang)
    made = parse(recipe, least(kind))
    assert parse(recipe, yaml.safe_load(made.as_yaml())) == made
    assert made.title()


def test_all_faults_come_at_once_with_the_nearest_name() -> None:
    with pytest.raises(Invalid) as raised:
        parse(Sft, {"base": "x", "lora_rnak": 4, "epochs": "many", "learning_rate": 2})
    text = raised.value.message("zh")
    for part in (
        "缺少必填字段 data",
        "lora_rnak，是不是 lora_rank",
        "epochs 的值 'many' 不可用：应当是整数",
        "learning_rate",
    ):
        assert part in text
    assert raised.value.exit_code == 2


def test_overrides_are_read_as_yaml_and_win() -> None:
    recipe = parse(Sft, {**least("sft"), "epochs": 1}, ["epochs=5", "packing=false", "data=[a.jsonl, b.jsonl]"])
    assert (recipe.epochs, recipe.packing, recipe.data) == (5, False, ["a.jsonl", "b.jsonl"])
    assert parse(Sft, {"base": "x", "data": "one.jsonl"}).data == ["one.jsonl"]
    with pytest.raises(Invalid) as raised:
        parse(Sft, least("sft"), ["epochs"])
    assert raised.value.code == "bad_override"


def test_files_that_are_no_recipes(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    for text, code in (("a: [", "not_yaml"), ("- a", "not_a_mapping"), ("1: 2", "not_a_mapping")):
        path.write_text(text)
        with pytest.raises(Invalid) as raised:
            read_yaml(path)
        assert raised.value.code == code
    path.write_text("")
    assert read_yaml(path) == {}
    with pytest.raises(NotFound):
        read_yaml(tmp_path / "none.yaml")
    with pytest.raises(UnknownName):
        recipe_class("sfd")


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_the_recipes_that_come_with_mofang_are_right(path: Path) -> None:
    recipe = parse(Sft, read_yaml(path))
    for file in (*recipe.data, *recipe.eval_data):
        assert (path.parents[1] / file).is_file()


@given(
    st.dictionaries(
        st.sampled_from([*Sft.model_fields, "x", "base "]),
        st.one_of(
            st.none(), st.text(max_size=5), st.integers(), st.floats(), st.lists(st.text(max_size=3), max_size=2)
        ),
    )
)
def test_whatever_is_given_is_taken_or_refused_in_words(values: dict) -> None:
    try:
        recipe = parse(Sft, values)
    except Invalid as error:
        assert error.message("zh") and error.message("en")
    else:
        assert parse(Sft, yaml.safe_load(recipe.as_yaml())) == recipe
