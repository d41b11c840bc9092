"""Direct preference optimization."""

from typing import ClassVar

from pydantic import Field

from mofang.recipes.training import Preference


class Dpo(Preference):
    """Teach a model which of two answers is the better one, held to the model that it was (arXiv 2305.18290)."""

    kind: ClassVar[str] = "dpo"
    worker: ClassVar[str] = "mofang.train.methods.dpo:run"

    beta: float = Field(default=0.1, gt=0)
    """How strongly it is held to the model that it was; the paper's 0.1 to 0.5, less lets it move further."""
