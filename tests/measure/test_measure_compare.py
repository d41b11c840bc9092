"""Figures of two models against their definitions, and the cutting and pairing of what they read."""

import math
from itertools import islice

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mofang.measure.compare import Agreement, Forced, last_rows, side_by_side, top, windows


def rows(seed: int, n: int = 40, n_vocab: int = 11) -> np.ndarray:
    logits = np.random.default_rng(seed).normal(size=(n, n_vocab)) * 2
    return (logits - np.log(np.exp(logits).sum(-1, keepdims=True))).astype(np.float32)


def test_a_model_agrees_with_itself() -> None:
    found = Agreement()
    found.add(rows(0), rows(0))
    figures = found.figures()
    assert (figures["mean_kl"], figures["kl_error"], figures["same_top"], figures["same_top5"]) == (0, 0, 1, 1)


@given(st.integers(0, 1000), st.integers(1, 30))
def test_figures_are_their_definitions_however_they_come(seed: int, cut: int) -> None:
    ours, theirs = rows(seed), rows(seed + 1)
    found = Agreement()
    found.add(ours[:cut], theirs[:cut])
    more = Agreement()
    more.add(ours[cut:], theirs[cut:])
    found += more
    p, q = theirs.astype(float), ours.astype(float)
    kl = (np.exp(p) * (p - q)).sum(-1)
    figures = found.figures()
    assert figures["mean_kl"] == pytest.approx(kl.mean(), abs=1e-5) and min(found.kl) >= 0
    assert figures["kl_error"] == pytest.approx(kl.std(ddof=1) / math.sqrt(len(kl)), abs=1e-5)
    assert figures["median_kl"] == pytest.approx(np.median(kl), abs=1e-5)
    assert figures["kl_p99"] == pytest.approx(np.quantile(kl, 0.99), abs=1e-4)
    assert figures["same_top"] == pytest.approx((p.argmax(-1) == q.argmax(-1)).mean(), abs=1e-4)
    shared = [len({*a[:5]} & {*b[:5]}) / 5 for a, b in zip((-p).argsort(-1), (-q).argsort(-1), strict=True)]
    assert figures["same_top5"] == pytest.approx(np.mean(shared), abs=1e-4)


def test_padding_of_a_wider_head_and_tokens_ruled_out_are_no_difference() -> None:
    plain = rows(3)
    wide = np.concatenate([plain, np.full((len(plain), 5), -np.inf, np.float32)], 1)
    for one, other in ((plain, wide), (wide, plain), (wide, wide)):
        found = Agreement()
        found.add(one, other)
        assert found.figures()["mean_kl"] == 0 and found.figures()["same_top5"] == 1


def test_the_likeliest_are_in_order() -> None:
    assert top(np.array([[0.1, 3.0, 2.0, 3.0]], np.float32), 3).tolist() == [[1, 3, 2]]
    assert top(np.array([[1.0, 2.0]], np.float32), 5).tolist() == [[1, 0]]


def test_perplexity_and_its_error() -> None:
    values = np.log([0.5, 0.25, 0.5, 0.25])
    figures = (Forced(values[:2].tolist(), 3) + Forced(values[2:].tolist(), 3)).figures()
    nll = -values
    assert figures["perplexity"] == pytest.approx(math.sqrt(8), abs=1e-4) and figures["bits_per_byte"] == 1.0
    assert figures["perplexity_error"] == pytest.approx(math.sqrt(8) * nll.std(ddof=1) / 2, abs=1e-4)


@given(st.integers(0, 60), st.integers(0, 2), st.integers(4, 20))
def test_windows_expect_every_token_but_the_first_that_nothing_precedes(n: int, n_begin: int, length: int) -> None:
    ids, begin = list(range(100, 100 + n)), [7] * n_begin
    cut = list(windows(ids, begin, length))
    expected = [token for _, nexts in cut for token in nexts]
    firsts = set() if n_begin else set(ids[::length])
    assert expected == [token for token in ids if token not in firsts]
    for read, nexts in cut:
        assert len(read) < length and read[: len(begin)] == begin
        assert ([*read, nexts[-1]])[-len(nexts) :] == nexts


@given(st.lists(st.integers(1, 9), min_size=1, max_size=8), st.lists(st.integers(1, 9), min_size=1, max_size=8))
def test_blocks_of_two_readers_are_paired(one: list[int], other: list[int]) -> None:
    n = min(sum(one), sum(other))
    values = rows(5, n=80, n_vocab=2)

    def blocks(lengths: list[int]):
        at = iter(values)
        for length in lengths:
            yield np.array(list(islice(at, length)))

    pairs = list(side_by_side(blocks(one), blocks(other)))
    assert all(len(a) == len(b) > 0 for a, b in pairs)
    for side in (0, 1):
        assert np.array_equal(np.concatenate([pair[side] for pair in pairs]), values[:n])
    wanted = max(1, n // 2)
    kept = np.concatenate(list(last_rows(blocks(one), sum(one), min(wanted, sum(one)))))
    assert np.array_equal(kept, values[: sum(one)][-min(wanted, sum(one)) :])
