"""Extending a tokenizer as a run: its result is all that a page needs, its tokenizer lies where the run does."""

import json
from pathlib import Path

import pytest

import tiny_llama
from mofang.errors import Invalid
from mofang.recipes import parse
from mofang.recipes.tokenizer import Extend, Measure
from mofang.runs import Run, Runs, Stopped
from mofang.tokenizer import comparison, extension, load

LINES = ["人工智能会写诗，数据要备份。", "plain English text", "系统安装程序会询问您的语言。"] * 30


@pytest.fixture
def recipe(tmp_path: Path) -> Extend:
    (tmp_path / "文.txt").write_text("\n".join(LINES), encoding="utf-8")
    tiny_llama.make(tmp_path / "tiny")
    return parse(Extend, {"model": str(tmp_path / "tiny"), "texts": str(tmp_path / "文.txt"), "new_tokens": 60})


@pytest.fixture
def run(home: Path, recipe: Extend) -> Run:
    return Runs(home).create(recipe)


def test_what_came_of_it(recipe: Extend, run: Run) -> None:
    found = extension.run(recipe, run)
    made = load(Path(found["path"]), source=True)
    assert Path(found["path"]).is_relative_to(run.folder) and made.n_vocab == found["n_vocab"]
    assert found["n_added"] == 60 and found["n_held_out"] == 4 and found["base"] == recipe.model
    assert found["card"]["chinese_after"] > found["card"]["chinese_before"]
    new = {made.decode([token_id]).strip() for token_id in range(found["n_old"], found["n_vocab"])}
    assert set(found["examples"]) <= new and len(found["examples"][0]) > 1
    cuts = found["cuts"]
    assert cuts["text"] in LINES and len(cuts["after"]) < len(cuts["before"])
    for side in ("before", "after"):
        assert b"".join(bytes(piece["bytes"]) for piece in cuts[side]).decode().strip() == cuts["text"]
    assert json.loads(json.dumps(found))["cuts"] == cuts


def test_few_lines_have_no_card(recipe: Extend, run: Run, tmp_path: Path) -> None:
    (tmp_path / "文.txt").write_text("\n".join(LINES[:19]), encoding="utf-8")
    found = extension.run(recipe, run)
    assert "card" not in found and found["cuts"] is None and found["n_added"] > 0


def test_dropped_pieces_are_counted_and_some_named(recipe: Extend, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    real = extension.make

    def make(*args: object, **options: object) -> extension.Made:
        made = real(*args, **options)  # type: ignore[arg-type]
        made.found["dropped"] = [f"词{n}" for n in range(100)]
        return made

    monkeypatch.setattr(extension, "make", make)
    found = extension.run(recipe, run)
    assert found["n_dropped"] == 100 and found["dropped"] == [f"词{n}" for n in range(extension.SHOWN)]


def test_it_stops_when_asked_and_leaves_nothing_half(recipe: Extend, run: Run) -> None:
    (run.folder / "stop").touch()
    with pytest.raises(Stopped):
        extension.run(recipe, run)
    assert not run.out.exists() or not list(run.out.iterdir())
    (run.folder / "stop").unlink()
    assert extension.run(recipe, run)["n_added"] == 60, "and begins anew"


def test_faults_of_the_recipe() -> None:
    with pytest.raises(Invalid) as raised:
        parse(Extend, {"model": "x", "texts": [], "new_tokens": 0, "script": "latin"})
    for part in ("texts", "new_tokens", "script", "mofang tokenizer extend --help"):
        assert part in f"{raised.value.message()} {raised.value.hint()}"


def test_two_are_measured_on_the_same_texts(recipe: Extend, run: Run, home: Path) -> None:
    wide = extension.run(recipe, run)["path"]
    both = parse(Measure, {"model": recipe.model, "against": wide, "texts": recipe.texts})
    old, new = comparison.run(both, Runs(home).create(both))["sides"]
    assert (old["name"], new["name"], new["n_vocab"] - old["n_vocab"]) == (recipe.model, wide, 60)
    assert old["n_lines"] == new["n_lines"] == len(LINES) and new["n_tokens"] < old["n_tokens"]
    assert new["scripts"]["latin"] == old["scripts"]["latin"] and new["chinese_per_token"] > old["chinese_per_token"]
    alone = parse(Measure, {"model": recipe.model, "against": recipe.model, "texts": recipe.texts})
    assert len(comparison.run(alone, Runs(home).create(alone))["sides"]) == 1
