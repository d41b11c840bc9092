"""New rows are the means of their parts; everything old stays, tied or not; the result loads, converts, and refuses."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import tiny_llama
from mofang.errors import Invalid
from mofang.export import resize
from mofang.models.store import ModelStore
from mofang.runs import Run
from mofang.tokenizer import append, extend, load, train
from mofang.tokenizer.extend import Plan

TEXTS = ["系统安装程序请备份数据", "系统安装", "数据备份"] * 5


@pytest.fixture
def extended(tmp_path: Path) -> Path:
    made = extend.extend(tiny_llama.tokenizer(), lambda: iter(TEXTS), Plan(size=30))
    (tmp_path / "new").mkdir()
    extend.save(made, tmp_path / "new")
    return tmp_path / "new"


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("init", ["parts", "mean"])
def test_rows_are_means_and_what_was_stays(
    tied: bool, init: str, extended: Path, store: ModelStore, start: Callable[..., Run], tmp_path: Path
) -> None:
    base = tiny_llama.make(tmp_path / "tiny", tied=tied)
    store.add(base, "tiny")
    run = start("resize", model="tiny", tokenizer=str(extended), init=init)
    result = resize.run(run.recipe(), run)
    made = store.get("tiny-extended")
    assert result["rows"] == 290 and result["n_new"] == 30 and result["tied"] is tied
    old, new = (AutoModelForCausalLM.from_pretrained(path).eval() for path in (base, made.path))
    assert (new.get_output_embeddings().weight is new.get_input_embeddings().weight) is tied
    parts = append.parts(load(made.path), 260)
    for matrix in ("get_input_embeddings", "get_output_embeddings"):
        before, after = getattr(old, matrix)().weight, getattr(new, matrix)().weight
        assert after.shape == (290, 64) and torch.equal(after[:260], before[:260])
        for token_id, ids in parts.items():
            wanted = before[ids if init == "parts" else slice(260)].mean(0)
            torch.testing.assert_close(after[token_id], wanted)
    ids = torch.tensor([load(base).encode("the old text")])
    torch.testing.assert_close(new(ids).logits[..., :260], old(ids).logits[..., :260])
    assert load(made.path).sha256() == load(extended).sha256() and made.manifest["parents"][0]["name"] == "tiny"


def test_spare_rows_are_used_before_the_matrix_grows(
    base: Path, store: ModelStore, start: Callable[..., Run], tmp_path: Path
) -> None:
    made = extend.extend(tiny_llama.tokenizer(), lambda: iter(TEXTS), Plan(size=3))  # the model has 5 spare rows
    (tmp_path / "few").mkdir()
    extend.save(made, tmp_path / "few")
    run = start("resize", model="tiny", tokenizer=str(tmp_path / "few"), name="few")
    assert resize.run(run.recipe(), run)["rows"] == 265


def test_another_tokenizer_is_refused(base: Path, store: ModelStore, start: Callable[..., Run], tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    train.train("byte-bpe", lambda: iter(TEXTS), 280).save(tmp_path / "other")
    for place, code in ((tmp_path / "other", "not_extended"), (base, "nothing_new")):
        run = start("resize", model="tiny", tokenizer=str(place))
        with pytest.raises(Invalid) as raised:
            resize.run(run.recipe(), run)
        assert raised.value.code == code and [ref.name for ref in store.list()] == ["tiny"]


def test_sentencepieces_parts_spell_the_piece() -> None:
    old = train.train("sp-bpe", lambda: iter(["the old text installs"] * 9), 280)
    made = extend.extend(old, lambda: iter(["系统 安装系统"] * 20), Plan(size=265)).tokenizer
    for token_id in range(old.n_vocab, made.n_vocab):
        parts = old.backend.spell(made.backend.data(token_id))
        assert b"".join(old.backend.data(part) for part in parts) == made.backend.data(token_id)
