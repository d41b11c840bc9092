"""GPTQ for one matrix: quantize input by input, and let the inputs still to come make up for each rounding.

A layer answers W x. Over the calibration texts the squared error of its answers is tr(E H Eᵀ), E the error of W and
H = Σ x xᵀ. Input i is rounded for all rows at once; the best answer to that error e is to move the inputs j > i by
-e · U[i, j] / U[i, i], with U the upper Cholesky factor of H⁻¹. What one half of a range of inputs does to the other is
done in one product, and so on in each half. Source: Frantar et al., GPTQ (https://arxiv.org/abs/2210.17323), its gptq.py;
the order by groups: GPTQModel's act_group_aware.

Two things differ. A group's grid is chosen from its weights as they are when its turn comes (there, inside a block of 128,
from weights that lack the block's own updates). And scales are rounded to float16, as files hold them, before they are used,
so that what is computed with is what is stored.

GPTQ never looks back. `refine` does: with the codes as they are, the best scales of a row are a least-squares problem of
one unknown a group; with the scales as they are, each code in turn is set to the best one given all the others (coordinate
descent, as in Behdin et al., QuantEase, https://arxiv.org/abs/2309.01885). Neither step can make the error larger.

Shapes: n_out, n_in those of the layer; G = ceil(n_in / group size).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from mofang.errors import MofangError

LEAF = 16
"""Inputs whose updates are done one by one; more are done by halves, in products. The smallest size of a group."""
SIZES = (-1, 16, 32, 64, 128, 256, 512, 1024)
"""Sizes of groups: powers of two, as the halves are."""
DAMP, DAMP_STEP, DAMP_MAX = 0.05, 0.01, 1.0
"""Share of the mean diagonal that is added to H; more where its factor does not exist. GPTQModel's (the paper: 0.01)."""
SMALLEST, LARGEST = 2.0**-24, 65504.0
"""float16's smallest and largest scales."""
SHRINKS, NORM = [1 - step / 50 for step in range(21)], 2.0
"""The search for a scale: shares of the widest grid, and the power of the error that is summed. An input's error counts
what it costs: its square over that of its pivot, with which GPTQ itself reckons. (The paper's code tries 80 shares, with a
power of 2.4, and all inputs count the same: that shrinks the grid where a strong input has a large weight. docs/log.md.)"""
RIDGE = 1e-4
"""Share of the mean diagonal that holds a scale where it was when scales are fitted: groups whose codes are all zero have
no say in it."""
FITTED = 1 << 25
"""Numbers of the least-squares problems that are solved at a time; bounds memory."""


@dataclass(frozen=True, slots=True)
class Scheme:
    """How a matrix is quantized."""

    bits: int
    group_size: int
    """Inputs that share a scale; -1 for a whole row."""
    sym: bool = True
    """Grids that lie evenly around zero."""
    order: str = "group_aware"
    """In which order inputs take their turn. "none": as they lie; "activation": the strongest first, groups are formed
    in that order; "group_aware": groups by their strongest input, and inputs within their group."""
    search: bool = False
    """Whether a grid may be narrower than its weights, where that rounds them better."""
    refine: bool = False
    """Whether scales and codes are gone through once more when all are there."""


@dataclass(frozen=True, slots=True)
class Quantized:
    """w[o, i] = scales[g_idx[i], o] · (codes[i, o] - zeros[g_idx[i], o])."""

    codes: Tensor
    """(n_in, n_out) uint8."""
    scales: Tensor
    """(G, n_out) float16."""
    zeros: Tensor
    """(G, n_out) uint8; never 0: files hold zero - 1, and readers disagree on what becomes of -1."""
    g_idx: Tensor
    """(n_in,) int32."""

    def weight(self) -> Tensor:
        """(n_out, n_in) float32."""
        groups = self.g_idx.long()
        return (self.scales.float()[groups] * (self.codes.float() - self.zeros.float()[groups])).t().contiguous()

    def rows(self, begin: int, end: int) -> "Quantized":
        """Those outputs alone."""
        return Quantized(self.codes[:, begin:end], self.scales[:, begin:end], self.zeros[:, begin:end], self.g_idx)


@torch.no_grad()
def quantize(weight: Tensor, hessian: Tensor, scheme: Scheme) -> Quantized:
    """Quantize weight (n_out, n_in) float32, given H (n_in, n_in) float32.

    Raises MofangError when no damping makes H invertible, or a scale is beyond float16.
    """
    n_out, n_in = weight.shape
    size = n_in if scheme.group_size == -1 else scheme.group_size
    order, g_idx = _order(hessian.diagonal(), size, scheme.order)
    hessian = hessian[order][:, order]
    dead = hessian.diagonal() == 0  # never seen: nothing says what would be a good value
    hessian.diagonal()[dead] = 1
    w = weight.t()[order].contiguous()  # (n_in, n_out), updated in place; an input is a row
    w[dead] = 0
    wanted = w.clone() if scheme.refine else w
    factor = inverse_factor(hessian)
    # What an error of 1 in an input costs when those after it have made up for it.
    costs = factor.diagonal().square().reciprocal()
    n_groups = -(-n_in // size)
    codes = torch.empty(n_in, n_out, dtype=torch.uint8, device=w.device)
    scales, zeros = w.new_empty(n_groups, n_out), w.new_empty(n_groups, n_out)
    top = 2**scheme.bits - 1

    def solve(begin: int, end: int) -> None:
        """Quantize inputs begin to end, whose weights are up to date; their errors take the weights' place."""
        if end - begin > LEAF:
            middle = begin + (1 << (end - begin - 1).bit_length() - 1)  # so that a group is never split between turns
            solve(begin, middle)
            w[middle:end].addmm_(factor[begin:middle, middle:end].t(), w[begin:middle], alpha=-1)
            solve(middle, end)
            return
        for i in range(begin, end):
            group = i // size
            if i % size == 0:
                scales[group], zeros[group] = grid(w[i : i + size], scheme, costs[i : i + size])
            scale, zero = scales[group], zeros[group]
            code = (w[i] / scale).round_().add_(zero).clamp_(0, top)
            codes[i] = code
            w[i].addcmul_(code.sub_(zero), scale, value=-1).div_(factor[i, i])
            w[i + 1 : end].addcmul_(factor[i, i + 1 : end, None], w[i], value=-1)

    solve(0, n_in)
    if scheme.refine:  # damped as the factor is: the texts have less to say than there are inputs
        hessian.diagonal().add_(DAMP * hessian.diagonal().mean())
        scales = refine(wanted, hessian, codes, scales, zeros, size, top)
    back, named = torch.argsort(order), torch.argsort(g_idx[::size])
    return Quantized(codes[back], scales[named].half(), zeros[named].to(torch.uint8), g_idx[back].to(torch.int32))


def refine(
    wanted: Tensor, hessian: Tensor, codes: Tensor, scales: Tensor, zeros: Tensor, size: int, top: int
) -> Tensor:
    """Better scales (G, n_out) for codes (n_in, n_out), which are bettered in place, towards wanted (n_in, n_out).

    Inputs are in the order of their turns, so that a group's stand together.
    """
    groups = torch.arange(len(codes), device=codes.device) // size
    steps = codes.float().sub_(zeros[groups])  # whole numbers that scales are multiplied with
    reach = hessian @ wanted
    scales = fit(steps, hessian, reach, scales, size)
    step, low = scales[groups], -zeros[groups]
    slope = torch.addmm(reach, hessian, steps * step, beta=-1)  # half the error's slope by each weight
    diagonal = hessian.diagonal()
    for begin in range(0, len(codes), LEAF):
        part = slice(begin, begin + LEAF)
        here, changed = slope[part].clone(), torch.empty_like(slope[part])
        for place in range(len(here)):
            i = begin + place
            code = (steps[i] - here[place] / (diagonal[i] * step[i])).round_()
            code = torch.minimum(torch.maximum(code, low[i]), low[i] + top)
            changed[place] = (code - steps[i]).mul_(step[i])
            steps[i] = code
            here.addcmul_(hessian[part, i, None], changed[place])
        slope.addmm_(hessian[:, part], changed)
    codes.copy_(steps - low)
    return fit(steps, hessian, reach, scales, size)


def fit(steps: Tensor, hessian: Tensor, reach: Tensor, scales: Tensor, size: int) -> Tensor:
    """The scales (G, n_out) that answer best with these steps (n_in, n_out); reach is H times what is wanted.

    For a row w and steps q_g of its groups: Σ_h (q_g H q_h) s_h = q_g H w for each g.
    """

    def by_group(values: Tensor) -> Tensor:
        return torch.stack([part.sum(0) for part in values.split(size)], -1)

    n_groups = len(scales)
    fitted = torch.empty_like(scales)
    for part in torch.arange(steps.shape[1], device=steps.device).split(max(1, FITTED // n_groups**2)):
        own, before = steps[:, part], scales[:, part].t()
        products = [by_group(own * (hessian[:, g : g + size] @ own[g : g + size])) for g in range(0, len(own), size)]
        left, right = torch.stack(products, -1), by_group(own * reach[:, part])
        hold = RIDGE * left.diagonal(dim1=-2, dim2=-1).mean(-1, keepdim=True) + 1e-30
        left.diagonal(dim1=-2, dim2=-1).add_(hold)
        found, failed = torch.linalg.solve_ex(left, right + hold * before)
        fine = (failed == 0)[:, None] & found.isfinite() & (found >= SMALLEST) & (found <= LARGEST)
        fitted[:, part] = torch.where(fine.all(-1, keepdim=True), found, before).t()
    return fitted.half().float().clamp_(min=SMALLEST)


def nearest(weight: Tensor, scheme: Scheme) -> Quantized:
    """Round-to-nearest on the same grids: what GPTQ is to beat. Inputs stay in their order."""
    n_in = weight.shape[1]
    size = n_in if scheme.group_size == -1 else scheme.group_size
    grids = [grid(part, scheme) for part in weight.t().split(size)]
    scales, zeros = (torch.stack(each) for each in zip(*grids, strict=True))
    groups = torch.arange(n_in, device=weight.device) // size
    codes = ((weight.t() / scales[groups]).round() + zeros[groups]).clamp(0, 2**scheme.bits - 1)
    return Quantized(codes.to(torch.uint8), scales.half(), zeros.to(torch.uint8), groups.to(torch.int32))


def inverse_factor(hessian: Tensor) -> Tensor:
    """Upper triangular U with Uᵀ U = (H + damping)⁻¹, float32. Raises MofangError.

    With J the reversal of rows and columns and J H J = L Lᵀ, U is the inverse of J L J: one factorization, H is never
    inverted.
    """
    n, mean = len(hessian), hessian.diagonal().mean()
    damp = DAMP
    while damp < DAMP_MAX:
        damped = hessian.flip(0, 1)
        damped.diagonal().add_(damp * mean)
        lower, info = torch.linalg.cholesky_ex(damped)
        if not info.item() and bool(lower.isfinite().all()):
            identity = torch.eye(n, dtype=hessian.dtype, device=hessian.device)
            return torch.linalg.solve_triangular(lower.flip(0, 1), identity, upper=True)
        damp += DAMP_STEP
    raise MofangError("export.gptq_hessian")


def grid(w: Tensor, scheme: Scheme, costs: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Scale and zero of each output for weights (size, n_out): float32 that float16 holds, and whole numbers.

    costs (size,): what a squared error of each input counts where a grid is searched for; all the same without.
    """
    low, high = w.amin(0).clamp_(max=0), w.amax(0).clamp_(min=0)
    if scheme.sym:
        high = torch.maximum(-low, high)
        low = -high
    else:  # low enough that its zero is at least 1
        low = torch.minimum(low, high / (1 - 2 * (2**scheme.bits - 1)))
    empty = low == high
    low, high = low.masked_fill(empty, -1), high.masked_fill(empty, 1)
    best = _grid(low, high, 1.0, scheme)
    if not scheme.search:
        return best
    counts = w.new_ones(len(w), 1) if costs is None else (costs / costs.mean())[:, None]
    least = _miss(w, *best, scheme, counts)
    for shrink in SHRINKS[1:]:
        tried = _grid(low, high, shrink, scheme)
        miss = _miss(w, *tried, scheme, counts)
        better = miss < least
        least = torch.where(better, miss, least)
        best = torch.where(better, tried[0], best[0]), torch.where(better, tried[1], best[1])
    return best


def _grid(low: Tensor, high: Tensor, shrink: float, scheme: Scheme) -> tuple[Tensor, Tensor]:
    top = 2**scheme.bits - 1
    exact = (high - low) * (shrink / top)
    if not bool((exact <= LARGEST).all()):
        raise MofangError("export.gptq_beyond_float16", value=float(exact.max()))
    scale = exact.half().float().clamp_(min=SMALLEST)
    if scheme.sym:
        return scale, torch.full_like(scale, 2 ** (scheme.bits - 1))
    return scale, (-low * shrink / scale).round_().clamp_(1, top)


def _miss(w: Tensor, scale: Tensor, zero: Tensor, scheme: Scheme, counts: Tensor) -> Tensor:
    code = (w / scale).round_().add_(zero).clamp_(0, 2**scheme.bits - 1)
    return ((code - zero) * scale).sub_(w).square_().mul_(counts).sum(0)


def _order(diagonal: Tensor, size: int, order: str) -> tuple[Tensor, Tensor]:
    """(n_in,) which input takes which turn, and the group of each turn as files will name it."""
    n_in = len(diagonal)
    natural = torch.arange(n_in, device=diagonal.device)
    if order == "none":
        return natural, natural // size
    if order == "activation":
        return diagonal.argsort(descending=True, stable=True), natural // size
    whole = n_in // size * size  # a last group that is not full keeps its turn, as turns of groups begin at multiples
    groups = diagonal[:whole].view(-1, size)
    turns = groups.amax(1).argsort(descending=True, stable=True)
    inner = groups.argsort(dim=1, descending=True, stable=True)[turns] + turns[:, None] * size
    last = diagonal[whole:].argsort(descending=True, stable=True) + whole
    order_ = torch.cat([inner.flatten(), last])
    return order_, order_ // size
