"""Supervised fine-tuning."""

from typing import ClassVar

from mofang.recipes.training import Training


class Sft(Training):
    """Teach a model to answer, by pairs of questions and answers: only the answers count in the loss."""

    kind: ClassVar[str] = "sft"
    worker: ClassVar[str] = "mofang.train.methods.sft:run"
