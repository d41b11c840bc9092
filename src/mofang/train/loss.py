"""Cross entropy of the output head, and its gradients, without ever holding all logits.

A small model's head is a quarter of its arithmetic, and the logits of one row (tokens × vocabulary) are its largest
tensor. So only the positions that are learned reach the head, a few at a time, and the gradients for the hidden states
and, where it is trained, for the head are computed on the way (4·V·H operations a position with a frozen head, where
recomputing the logits in the backward pass would take 6·V·H). Idea: Liger's fused linear cross entropy.

A preference needs each position's log-probability with a gradient that is known only later: there the logits are
computed again.
"""

from typing import Any

import torch

from mofang.train.kernels import PLAIN, Kernels

CHUNK = 256
"""Positions at a time: 256 × 152k logits are 156 MB in float32."""


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, targets, for_hidden, for_weight, kernels):
        low = weight.to(hidden.dtype)
        of_hidden: Any = torch.empty_like(hidden) if for_hidden else None
        of_weight: Any = torch.zeros(weight.shape, dtype=torch.float32, device=weight.device) if for_weight else None
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        for start in range(0, hidden.shape[0], CHUNK):
            part = slice(start, start + CHUNK)
            lost, slope = kernels.slope(hidden[part] @ low.t(), targets[part, None])
            total += lost.sum()
            if for_hidden:
                of_hidden[part] = slope @ low
            if for_weight:
                of_weight += slope.t() @ hidden[part]
        ctx.save_for_backward(of_hidden, of_weight)
        ctx.weight_dtype = weight.dtype
        return total

    @staticmethod
    def backward(ctx, upstream):
        of_hidden, of_weight = ctx.saved_tensors
        return (
            None if of_hidden is None else of_hidden * upstream.to(of_hidden.dtype),
            None if of_weight is None else (of_weight * upstream).to(ctx.weight_dtype),
            None,
            None,
            None,
            None,
        )


class _TokenLogps(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, targets, kernels):
        low = weight.to(hidden.dtype)
        logps = torch.empty(hidden.shape[0], dtype=torch.float32, device=hidden.device)
        for start in range(0, hidden.shape[0], CHUNK):
            part = slice(start, start + CHUNK)
            logits = (hidden[part] @ low.t()).float()
            logps[part] = logits.gather(1, targets[part, None])[:, 0] - torch.logsumexp(logits, dim=-1)
        ctx.save_for_backward(hidden, weight, targets)
        ctx.kernels = kernels
        return logps

    @staticmethod
    def backward(ctx, upstream):
        hidden, weight, targets = ctx.saved_tensors
        low = weight.to(hidden.dtype)
        for_hidden, for_weight = ctx.needs_input_grad[:2]
        of_hidden: Any = torch.empty_like(hidden) if for_hidden else None
        of_weight: Any = torch.zeros(weight.shape, dtype=torch.float32, device=weight.device) if for_weight else None
        for start in range(0, hidden.shape[0], CHUNK):
            part = slice(start, start + CHUNK)
            _, slope = ctx.kernels.slope(hidden[part] @ low.t(), targets[part, None])
            slope *= -upstream[part, None].to(low.dtype)
            if for_hidden:
                of_hidden[part] = slope @ low
            if for_weight:
                of_weight += slope.t() @ hidden[part]
        return of_hidden, None if of_weight is None else of_weight.to(weight.dtype), None, None


def head_loss(
    hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, kernels: Kernels = PLAIN
) -> torch.Tensor:
    """Sum over positions of -log p(target), float32. hidden (n, H), weight (V, H), targets (n,). 0 for n = 0.

    Computed in the type of `hidden`; the weight gets a gradient when it asks for one.
    """
    grad = torch.is_grad_enabled()
    wanted = grad and hidden.requires_grad, grad and weight.requires_grad
    return _HeadLoss.apply(hidden, weight, targets, *wanted, kernels)


def token_logps(
    hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, kernels: Kernels = PLAIN
) -> torch.Tensor:
    """log p(target) of every position, (n,) float32; shapes as for `head_loss`, each position with its own gradient."""
    return _TokenLogps.apply(hidden, weight, targets, kernels)
