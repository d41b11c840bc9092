"""Odds ratio preference optimization: the worker of recipes.orpo.Orpo."""

from collections.abc import Sequence
from typing import Any

import torch

from mofang.recipes.orpo import Orpo
from mofang.runs import Run
from mofang.train import preference
from mofang.train.examples import Pair
from mofang.train.forward import Forward


def run(recipe: Orpo, run: Run) -> dict[str, Any]:
    """Train on pairs; the adapter or the model, its tokenizer and chat template, and a manifest are left."""

    def objective(forward: Forward, learned: Sequence[Pair], held_out: Sequence[Pair]):
        def row_loss(pairs: Sequence[Pair]) -> tuple[torch.Tensor, dict[str, float]]:
            chosen, rejected = preference.logps(forward, pairs)
            counts = [[pair.chosen.n_supervised, pair.rejected.n_supervised] for pair in pairs]
            n_chosen, n_rejected = torch.tensor(counts, device=chosen.device).unbind(1)
            losses, ratio = preference.orpo_loss(chosen / n_chosen, rejected / n_rejected, recipe.odds_weight)
            measured = {
                "nll": -(chosen / n_chosen).sum().item(),
                "log_odds_ratio": ratio.sum().item(),
                "accuracy": float((ratio > 0).sum()),
            }
            return losses.sum(), measured

        return row_loss, learned, held_out

    return preference.train(recipe, run, objective)
