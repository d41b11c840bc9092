"""Every way to make a new vocabulary row: a convex mixture of old rows for each new token, the same each time."""

from collections.abc import Iterator
from typing import get_args

import pytest
import torch

import tiny_llama
from mofang.export.rows import ROWS
from mofang.export.rows.blend import mixed
from mofang.recipes.export import Resize
from mofang.tokenizer import Tokenizer, extend, train

TEXTS = ["系统安装程序请备份数据 install", "系统安装 the text", "数据备份"] * 8


@pytest.fixture(scope="module", params=["byte-bpe", "sp-bpe"])
def both(request: pytest.FixtureRequest) -> tuple[Tokenizer, Tokenizer]:
    """A tokenizer, and it extended."""
    old = tiny_llama.tokenizer()
    if request.param == "sp-bpe":
        old = train.train("sp-bpe", lambda: iter(["the old text installs", "安装数据"] * 9), 290)
    size = 280 if request.param == "sp-bpe" else 20  # SentencePiece learns a vocabulary of its own, bytes and all
    return old, extend.extend(old, lambda: iter(TEXTS), extend.Plan(size=size)).tokenizer


def lines() -> Iterator[str]:
    return iter(TEXTS)


@pytest.mark.parametrize("way", ROWS.names())
def test_each_row_is_within_the_old_rows(way: str, both: tuple[Tokenizer, Tokenizer]) -> None:
    old, new = both
    found = ROWS.get(way)(old, new, lines, lambda done: None)
    assert len(found) == new.n_vocab - old.n_vocab and any(found)
    for blend in filter(None, found):
        assert max(blend.ids) < old.n_vocab
        assert (blend.shares > 0).all() and float(blend.shares.sum()) == pytest.approx(1, abs=1e-5)
    some = [blend for blend in found if blend]
    weight = torch.randn(old.n_vocab, 16, generator=torch.Generator().manual_seed(1)).bfloat16()
    rows = mixed(weight, some)
    assert rows.shape == (len(some), 16) and rows.dtype == torch.bfloat16
    low, high = weight.float().amin(0), weight.float().amax(0)
    assert (rows.float() >= low - 1e-2).all() and (rows.float() <= high + 1e-2).all()
    again = ROWS.get(way)(old, new, lines, lambda done: None)
    assert torch.equal(mixed(weight, [blend for blend in again if blend]), rows)


def test_the_recipe_names_them_all() -> None:
    assert list(get_args(Resize.model_fields["init"].annotation)) == ROWS.names()
