"""GPTQ for one matrix: better than rounding under every scheme, and equal to the algorithm done without any shortcut."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mofang.errors import MofangError
from mofang.export.gptq.solve import DAMP, Quantized, Scheme, fit, grid, inverse_factor, nearest, quantize, refine

N_IN, N_OUT = 96, 16


def problem(seed: int, n_in: int = N_IN, n_out: int = N_OUT) -> tuple[Tensor, Tensor]:
    """Weights and Σ x xᵀ of inputs that hang together and are of different strength, as a model's are."""
    source = torch.Generator().manual_seed(seed)
    mixed = torch.randn(n_in, n_in, generator=source) * torch.rand(n_in, generator=source)
    x = torch.randn(8 * n_in, n_in, generator=source) @ mixed
    return torch.randn(n_out, n_in, generator=source) * 0.05, x.t() @ x


def missed(weight: Tensor, made: Quantized, hessian: Tensor) -> float:
    error = weight - made.weight()
    return float(((error @ hessian) * error).sum())


@pytest.mark.parametrize("size", [-1, 16, 32, 64, 128])
@pytest.mark.parametrize("order", ["none", "activation", "group_aware"])
@pytest.mark.parametrize("sym", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_answers_are_nearer_than_after_rounding(bits: int, sym: bool, order: str, size: int) -> None:
    weight, hessian = problem(bits)
    for search in (False, True):
        scheme = Scheme(bits, size, sym, order, search)
        made = quantize(weight, hessian, scheme)
        assert missed(weight, made, hessian) < 0.8 * missed(weight, nearest(weight, scheme), hessian)
        n_groups = -(-N_IN // size) if size > 0 else 1
        assert made.scales.shape == made.zeros.shape == (n_groups, N_OUT) and made.codes.shape == (N_IN, N_OUT)
        assert int(made.codes.max()) < 2**bits and 1 <= int(made.zeros.min()) <= int(made.zeros.max()) < 2**bits
        if order != "activation":
            assert made.g_idx.tolist() == [i // size if size > 0 else 0 for i in range(N_IN)]
        else:
            assert sorted(made.g_idx.tolist()) == [i // size if size > 0 else 0 for i in range(N_IN)]


@settings(max_examples=25)
@given(
    seed=st.integers(0, 10_000),
    bits=st.sampled_from([2, 3, 4, 8]),
    size=st.sampled_from([-1, 16, 64]),
    sym=st.booleans(),
    order=st.sampled_from(["none", "activation", "group_aware"]),
    n_in=st.sampled_from([32, 80, 96]),
)
def test_looking_back_makes_it_nearer(seed: int, bits: int, size: int, sym: bool, order: str, n_in: int) -> None:
    weight, hessian = problem(seed, n_in)
    plain = quantize(weight, hessian, Scheme(bits, size, sym, order, search=True))
    refined = quantize(weight, hessian, Scheme(bits, size, sym, order, search=True, refine=True))
    damped = hessian + DAMP * hessian.diagonal().mean() * torch.eye(n_in)
    assert missed(weight, refined, damped) <= missed(weight, plain, damped) * 1.002  # scales are float16
    assert torch.equal(refined.zeros, plain.zeros) and torch.equal(refined.g_idx, plain.g_idx)
    assert int(refined.codes.max()) < 2**bits and bool((refined.scales > 0).all())


def test_a_strong_input_keeps_its_large_weight() -> None:
    """Searched with all inputs alike, the grid would shrink for the many small weights and cut the one that matters."""
    weight = torch.full((1, 16), 0.1)
    weight[0, ::2] = -0.1
    weight[0, 3] = 0.75
    strong = torch.eye(16)
    strong[3, 3] = 1e4
    scheme = Scheme(3, 16, order="none", search=True)
    same, counted = (quantize(weight, hessian, scheme).weight() for hessian in (torch.eye(16), strong))
    assert abs(float(counted[0, 3]) - 0.75) < abs(float(same[0, 3]) - 0.75)


def test_looking_back_pays_at_three_bits() -> None:
    weight, hessian = problem(1)
    plain, refined = (quantize(weight, hessian, Scheme(3, 32, refine=refine)) for refine in (False, True))
    assert missed(weight, refined, hessian) < 0.9 * missed(weight, plain, hessian)


def test_fitted_scales_are_those_of_least_squares() -> None:
    """In float64, one row at a time: the length of L (w - Σ s_g q_g) with H = Lᵀ L."""
    weight, hessian = problem(2)
    made = quantize(weight, hessian, Scheme(4, 32, order="none"))
    steps = made.codes.float() - made.zeros.float()[made.g_idx.long()]
    found = fit(steps, hessian, hessian @ weight.t(), made.scales.float(), 32)
    root = torch.linalg.cholesky(hessian.double()).t()
    for row in range(N_OUT):
        parts = torch.block_diag(*(part[:, None] for part in steps[:, row].double().split(32)))
        exact = torch.linalg.lstsq(root @ parts, (root @ weight[row].double())[:, None]).solution[:, 0]
        assert torch.allclose(found[:, row].double(), exact, rtol=2e-3), "float16 holds 11 bits"


def test_each_code_is_the_best_given_all_the_others() -> None:
    """Against the plain loop in float64: every code tried, the error computed anew."""
    weight, hessian = problem(3, n_in=40, n_out=4)
    made = quantize(weight, hessian, Scheme(2, 16, sym=False, order="none"))
    codes, zeros, scales = made.codes.clone(), made.zeros.float(), made.scales.float()
    refine(weight.t().contiguous(), hessian, codes, scales, zeros, 16, 3)
    groups = made.g_idx.long()
    steps = made.codes.float() - zeros[groups]
    fitted = fit(steps, hessian, hessian @ weight.t(), scales, 16).double()
    expected = made.codes.clone().double()
    for i in range(40):
        errors = []
        for code in range(4):
            tried = expected.clone()
            tried[i] = code
            e = weight.t().double() - fitted[groups] * (tried - zeros.double()[groups])
            errors.append((e * (hessian.double() @ e)).sum(0))
        expected[i] = torch.stack(errors).argmin(0).double()
    assert torch.equal(codes.double(), expected) and not torch.equal(codes, made.codes)


def slowly(weight: Tensor, hessian: Tensor, scheme: Scheme) -> Tensor:
    """The paper's equations as they stand: after each input the inverse of what is left, in float64."""
    n_in = weight.shape[1]
    size = n_in if scheme.group_size == -1 else scheme.group_size
    damped = hessian.double() + DAMP * hessian.diagonal().double().mean() * torch.eye(n_in)
    w, made = weight.double().clone(), torch.zeros_like(weight, dtype=torch.float64)
    for i in range(n_in):
        if i % size == 0:
            turns = range(i, min(i + size, n_in))
            costs = torch.stack([1 / torch.linalg.inv(damped[j:, j:])[0, 0] for j in turns]).float()
            scale, zero = grid(w[:, i : i + size].t().float(), scheme, costs)
        code = ((w[:, i] / scale).round() + zero).clamp(0, 2**scheme.bits - 1)
        made[:, i] = (code - zero) * scale
        inverse = torch.linalg.inv(damped[i:, i:])
        w[:, i:] -= ((w[:, i] - made[:, i]) / inverse[0, 0])[:, None] * inverse[0]
    return made


@pytest.mark.parametrize(
    "scheme",
    [
        Scheme(4, 64, True, "none"),
        Scheme(3, 16, False, "none"),
        Scheme(2, 32, True, "none", True),
        Scheme(4, -1, False, "none"),
        Scheme(8, 128, True, "none"),
    ],
)
def test_equal_to_the_algorithm_without_shortcuts(scheme: Scheme) -> None:
    """But for a weight that lies between two codes, which float32 may round to the other side."""
    weight, hessian = problem(7)
    made, wanted = quantize(weight, hessian, scheme).weight().double(), slowly(weight, hessian, scheme)
    assert ((made - wanted).abs() < 1e-5).double().mean() > 0.999
    ours, theirs = (float((((weight - each) @ hessian.double()) * (weight - each)).sum()) for each in (made, wanted))
    assert ours == pytest.approx(theirs, rel=1e-3)


def test_the_factor_is_that_of_the_damped_inverse() -> None:
    _, hessian = problem(3)
    factor = inverse_factor(hessian).double()
    damped = hessian.double() + DAMP * hessian.diagonal().double().mean() * torch.eye(N_IN)
    assert torch.equal(factor, factor.triu())
    assert torch.allclose(factor.t() @ factor @ damped, torch.eye(N_IN).double(), atol=1e-4)


def test_more_damping_where_the_usual_is_too_little() -> None:
    """A matrix with an eigenvalue of -0.08 of its mean diagonal, as sums of rounded products may be."""
    n = 32
    spread = torch.full((n,), 1.0)
    spread[0] = -0.08
    basis, _ = torch.linalg.qr(torch.randn(n, n, generator=torch.Generator().manual_seed(0)))
    hessian = basis @ torch.diag(spread) @ basis.t()
    assert bool(inverse_factor(hessian).isfinite().all())
    with pytest.raises(MofangError) as raised:
        inverse_factor(-torch.eye(n))
    assert raised.value.code == "gptq_hessian"


def test_inputs_never_seen_are_left_out() -> None:
    weight, hessian = problem(5)
    hessian[:, 9] = hessian[9] = 0
    made = quantize(weight, hessian, Scheme(4, 32))
    assert bool((made.weight()[:, 9] == 0).all()) and bool((made.weight()[:, 8] != 0).any())


def test_matrices_with_the_same_input_may_be_quantized_together() -> None:
    weight, hessian = problem(6)
    scheme = Scheme(4, 32)
    together = quantize(weight, hessian, scheme)
    apart = quantize(weight[16:], hessian, scheme)
    assert torch.equal(together.rows(16, N_OUT).codes, apart.codes)
    assert torch.equal(together.rows(16, N_OUT).weight(), apart.weight())


def test_scales_are_what_files_hold_and_weights_beyond_are_refused() -> None:
    weight, hessian = problem(8)
    tiny = quantize(weight * 1e-9, hessian, Scheme(4, 32))
    assert bool(tiny.scales.isfinite().all()) and float(tiny.scales.min()) > 0
    with pytest.raises(MofangError) as raised:
        quantize(weight * 1e8, hessian, Scheme(4, 32))
    assert raised.value.code == "gptq_beyond_float16"


def test_products_in_bfloat16_are_good_enough() -> None:
    """Their sum over batches against exact sums of the same inputs: the result misses no more."""
    source = torch.Generator().manual_seed(0)
    mixed = torch.randn(N_IN, N_IN, generator=source) * torch.rand(N_IN, generator=source) ** 3
    batches = [(torch.randn(512, N_IN, generator=source) @ mixed).bfloat16() for _ in range(8)]
    rough = sum((x.t() @ x).float() for x in batches)
    exact = sum(x.float().t() @ x.float() for x in batches)
    weight = torch.randn(N_OUT, N_IN, generator=source)
    scheme = Scheme(3, 32)
    ours = missed(weight, quantize(weight, rough, scheme), exact)
    assert ours == pytest.approx(missed(weight, quantize(weight, exact, scheme), exact), rel=0.02)


@settings(max_examples=25)
@given(
    st.sampled_from([2, 3, 4, 8]), st.booleans(), st.booleans(),
    st.lists(st.floats(-4, 4, width=32), min_size=16, max_size=16),
)  # fmt: skip
def test_a_grid_reaches_its_weights(bits: int, sym: bool, search: bool, weights: list[float]) -> None:
    w = torch.tensor(weights)[:, None]
    scale, zero = grid(w, Scheme(bits, 16, sym, search=search))
    assert scale.half().float() == scale > 0 and 1 <= zero <= 2**bits - 1 and zero == zero.round()
    if not search:
        code = ((w / scale).round() + zero).clamp(0, 2**bits - 1)
        assert ((code - zero) * scale - w).abs().max() <= 1.01 * scale
