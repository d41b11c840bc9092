"""FOCUS: what stands in like places is alike; what the texts hold too rarely is left; nothing is drawn by chance."""

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

import tiny_llama
from mofang.errors import Invalid
from mofang.export import resize
from mofang.export.rows import focus, parts
from mofang.models.store import ModelStore
from mofang.runs import Run
from mofang.tokenizer import Tokenizer, append, extend, load
from mofang.tokenizer.extend import Plan


def likeness() -> list[str]:
    """猫猫 stands where a and b stand, 车车 where x and y stand."""
    rng = random.Random(0)
    animals, vehicles = ["a", "b", "猫猫"], ["x", "y", "车车"]
    return [
        text
        for _ in range(400)
        for text in (
            f"{rng.choice('12')}{rng.choice(animals)}{rng.choice('34')}",
            f"{rng.choice('56')}{rng.choice(vehicles)}{rng.choice('78')}",
        )
    ]


@pytest.fixture(scope="module")
def both() -> tuple[Tokenizer, Tokenizer]:
    old = tiny_llama.tokenizer()
    return old, extend.extend(old, lambda: iter(["猫猫", "车车"] * 9), Plan(size=20)).tokenizer


def test_a_new_token_is_made_of_those_in_its_places(both: tuple[Tokenizer, Tokenizer]) -> None:
    old, new = both
    found = focus.blends(old, new, lambda: iter(likeness()), lambda done: None)
    for word, alike in (("猫猫", "ab"), ("车车", "xy")):
        (token_id,) = new.encode(word)
        blend = found[token_id - old.n_vocab]
        assert blend
        share = dict(zip((old.token(each) for each in blend.ids), blend.shares.tolist(), strict=True))
        assert sum(share.get(letter, 0) for letter in alike) > 0.9, share
        assert max(share, key=share.__getitem__) in alike
    rare = [one for number, one in enumerate(found, old.n_vocab) if new.decode([number]) not in ("猫猫", "车车")]
    assert rare and not any(rare), "pieces that the text does not hold have nothing to go by"


def test_pairs_are_counted_within_lines(both: tuple[Tokenizer, Tokenizer]) -> None:
    new = both[1]
    texts = ["abcabcabca", "b", "ca"] * 700
    times, pairs, counts = focus.counted(new, lambda: iter(texts), lambda done: None)
    wanted: dict[int, int] = {}
    for text in texts:
        ids = new.encode(text)
        for place, left in enumerate(ids):
            for right in ids[place + 1 : place + 1 + focus.WINDOW]:
                wanted[left * new.n_vocab + right] = wanted.get(left * new.n_vocab + right, 0) + 1
    assert dict(zip(pairs.tolist(), counts.tolist(), strict=True)) == wanted
    assert times.sum() == sum(len(new.encode(text)) for text in texts)


@given(rows=st.lists(st.lists(st.floats(-1, 1, width=32), min_size=4, max_size=4), min_size=1, max_size=4))
def test_sparsemax_is_the_nearest_point_of_the_simplex(rows: list[list[float]]) -> None:
    scores = torch.tensor(rows)
    shares = focus.sparsemax(scores)
    assert (shares >= 0).all() and torch.allclose(shares.sum(1), torch.ones(len(rows)), atol=1e-5)
    rng = np.random.default_rng(0)
    others = torch.from_numpy(rng.dirichlet([0.4] * 4, 200)).float()
    mine = (shares - scores).square().sum(1)
    assert (mine[:, None] <= (others[None] - scores[:, None]).square().sum(2) + 1e-5).all()


def test_the_worker_reads_the_texts_and_says_what_they_lack(
    base: Path, store: ModelStore, start: Callable[..., Run], tmp_path: Path, both: tuple[Tokenizer, Tokenizer],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    old, new = both
    extended, source = tmp_path / "new", tmp_path / "text.txt"
    extended.mkdir()
    new.save(extended)
    source.write_text("\n".join(likeness()))
    run = start("resize", model="tiny", tokenizer=str(extended), init="focus", texts=[str(source)])
    result = resize.run(run.recipe(), run)
    assert result["init"] == "focus" and 0 < result["n_left"] == result["n_new"] - 2
    assert f"{result['n_new']} 个新 token 中有 {result['n_left']} 个" in capsys.readouterr().out
    before, after = (
        AutoModelForCausalLM.from_pretrained(path).model.embed_tokens.weight
        for path in (base, store.get("tiny-extended").path)
    )
    for number, spelled in append.parts(load(extended), old.n_vocab).items():
        is_plain = torch.allclose(after[number], before[spelled].mean(0), atol=1e-6)
        assert is_plain is (new.decode([number]) not in ("猫猫", "车车"))
    assert [one.ids for one in parts.blends(old, new, lambda: iter(()), lambda done: None) if one]
    source.write_text("nothing new at all\n" * 20)
    run = start("resize", model="tiny", tokenizer=str(extended), init="focus", texts=str(source), name="again")
    with pytest.raises(Invalid) as raised:
        resize.run(run.recipe(), run)
    assert raised.value.code == "texts_say_nothing"
