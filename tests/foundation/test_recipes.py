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
    """What must be given; `base` also where a new model may begin without one."""
    fields = recipe_class(kind).model_fields
    return {
        name: value
        for name, value in LEAST.items()
        if name in fields and (fields[name].is_required() or name == "base")
    }


@pytest.mark.parametrize("kind", KINDS)
def test_every_recipe_keeps_the_contract(kind: str) -> None:
    recipe = recipe_class(kind)
    assert recipe.kind == kind and ":" in recipe.worker
    for name in recipe.model_fields:
        for lang in LANGUAGES:
            assert say(recipe.words(name), lang=lang)
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


def test_columns_and_weights_in_every_spelling() -> None:
    for columns in ({"output": "回答"}, ["output=回答"], "output=回答"):
        assert parse(Sft, {**least("sft"), "columns": columns}).layout == {"output": "回答"}
    assert parse(Sft, {**least("sft"), "data": ["a", "b"], "weights": [1, 0.5]}).weights == [1, 0.5]
    for fields, part in (
        ({"columns": ["output"]}, "字段=列"),
        ({"weights": [1, 2]}, "1 个数"),
        ({"weights": [0]}, "weights"),
    ):
        with pytest.raises(Invalid) as raised:
            parse(Sft, {**least("sft"), **fields})
        assert part in raised.value.message("zh")


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


@pytest.mark.parametrize(
    "kind, fields, field, why",
    [
        ("sft", {"tune": "layers"}, "modules_to_save", "layers_or_modules"),
        ("sft", {"layers": [0]}, "layers", "only_with_tune_layers"),
        ("sft", {"tune": "full", "modules_to_save": ["lm_head"]}, "modules_to_save", "only_with_lora_or_layers"),
        ("dpo", {"tune": "new_rows"}, "first_new_row", "only_with_tune_new_rows"),
        ("orpo", {"first_new_row": 3}, "first_new_row", "only_with_tune_new_rows"),
        (
            "pretrain",
            {"tune": "new_rows", "first_new_row": 3, "weight_decay": 0.1},
            "first_new_row",
            "no_decay_of_old_rows",
        ),
        ("pretrain", {"tokenizer": "y"}, "tokenizer", "base_or_tokenizer"),
        ("pretrain", {"base": ""}, "tokenizer", "base_or_tokenizer"),
        (
            "pretrain",
            {"base": "", "tokenizer": "y", "tune": "lora"},
            "tokenizer",
            "new_model_is_full",
        ),
        ("pretrain", {"n_heads": 7}, "n_heads", "must_divide_hidden_size"),
        ("pretrain", {"n_kv_heads": 4}, "n_kv_heads", "must_divide_n_heads"),
        ("sft", {"tune": "full", "quantize_base": "nf4"}, "quantize_base", "only_with_plain_lora"),
        ("dpo", {"lora_dora": True, "quantize_base": "nf4"}, "quantize_base", "only_with_plain_lora"),
        ("resize", {"init": "focus"}, "texts", "only_with_init_focus"),
        ("resize", {"texts": ["a.txt"]}, "texts", "only_with_init_focus"),
    ],
)
def test_fields_that_do_not_go_together_are_refused_in_words(kind: str, fields: dict, field: str, why: str) -> None:
    with pytest.raises(Invalid) as raised:
        parse(recipe_class(kind), {**least(kind), **fields})
    for lang in LANGUAGES:
        text = raised.value.message(lang)
        assert field in text
    assert say(f"recipes.why_{why}") in raised.value.message("zh")
