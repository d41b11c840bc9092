"""Odds ratio preference optimization."""

from typing import ClassVar

from pydantic import Field

from mofang.recipes.training import Preference


class Orpo(Preference):
    """Teach the better of two answers and away from the worse at once, without a reference model (arXiv 2403.07691)."""

    kind: ClassVar[str] = "orpo"
    worker: ClassVar[str] = "mofang.train.methods.orpo:run"

    odds_weight: float = Field(default=0.1, gt=0)
    """Weight of the odds ratio beside the likelihood of the chosen answer: the paper's λ."""
