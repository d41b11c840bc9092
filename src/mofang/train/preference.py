"""What the methods that learn from pairs share: the way to them, their log-probabilities, and the losses of their papers."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from mofang.data import rows
from mofang.recipes.training import Training
from mofang.runs import Run
from mofang.train import examples, job
from mofang.train.examples import Pair, Pairs
from mofang.train.forward import Forward


def train(recipe: Training, run: Run, objective: job.Objective) -> dict[str, Any]:
    """What every method of pairs is: the base's pairs, and its own `objective` over them. Returns the run's result."""
    begin = job.from_base(recipe)
    found = examples.load(recipe, begin.tokenizer, run, rows.Pair)
    learned, held_out = Pairs(found.learned), Pairs(found.held_out)
    return job.train(recipe, run, begin, found, objective, examples=learned, held_out=held_out, weight=lambda pair: 1)


def logps(forward: Forward, pairs: Sequence[Pair]) -> tuple[torch.Tensor, torch.Tensor]:
    """Sums of log p over the better and the worse answers of one row, each (n,) float32."""
    sums = forward.logps([example for pair in pairs for example in (pair.chosen, pair.rejected)])
    return sums[0::2], sums[1::2]


def dpo_loss(
    chosen: torch.Tensor, rejected: torch.Tensor, ref_chosen: torch.Tensor, ref_rejected: torch.Tensor, beta: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(loss, margin) of each pair from sums of log p, all (n,): -log σ(β·(log-ratio of the better - of the worse)).

    Source: equation 7 of arXiv 2305.18290.
    """
    margin = beta * ((chosen - ref_chosen) - (rejected - ref_rejected))
    return -F.logsigmoid(margin), margin


def orpo_loss(chosen: torch.Tensor, rejected: torch.Tensor, odds_weight: float) -> tuple[torch.Tensor, torch.Tensor]:
    """(loss, log odds ratio) of each pair from means of log p, all (n,): NLL of the better - λ·log σ(log odds ratio).

    odds = p / (1 - p) with p the geometric mean of an answer's token probabilities. Source: equations 4 to 7 of
    arXiv 2403.07691.
    """
    ratio = _log_odds(chosen) - _log_odds(rejected)
    return -chosen - odds_weight * F.logsigmoid(ratio), ratio


def _log_odds(logp: torch.Tensor) -> torch.Tensor:
    """log(p / (1 - p)); p = 1 to the last bit would be infinite."""
    return logp - torch.log(-torch.expm1(logp.clamp(max=-1e-7)))
