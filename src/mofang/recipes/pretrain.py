"""Pre-training on plain text: from random weights, or continued."""

from typing import ClassVar, Literal

from pydantic import Field, ValidationInfo, field_validator

from mofang.recipes.fields import refused
from mofang.recipes.training import Training


class Pretrain(Training):
    """Teach a model a language or a field by plain text: every token counts in the loss.

    With `base` its training goes on; with `tokenizer` a Llama of the given shape begins from random weights.
    """

    kind: ClassVar[str] = "pretrain"
    worker: ClassVar[str] = "mofang.train.methods.pretrain:run"

    base: str = ""
    """The model to go on with; empty: begin from random weights, with `tokenizer`."""
    data: list[str] = Field(min_length=1)
    """Files of text, or folders of them: .txt and .md, each file a document; records with "text"."""
    epochs: int = Field(default=1, ge=1)
    """How often each text is seen."""
    learning_rate: float = Field(default=2e-4, gt=0, lt=1)
    """The highest, reached after the warm-up. Chinese-LLaMA's own; a small model from random weights takes 1e-3."""
    tune: Literal["lora", "full", "layers", "new_rows"] = "full"
    tokenizer: str = Field(default="", validate_default=True)
    """Model or folder whose tokenizer a new model gets."""
    hidden_size: int = Field(default=384, ge=8)
    """Of a new model, as all that follow: numbers in the state of a token. The defaults are 12 million parameters,
    and the vocabulary's rows."""
    intermediate_size: int = Field(default=1024, ge=8)
    """Width inside a layer's MLP."""
    n_layers: int = Field(default=8, ge=1)
    n_heads: int = Field(default=6, ge=1, validate_default=True)
    """Attention heads; they divide hidden_size."""
    n_kv_heads: int = Field(default=2, ge=1, validate_default=True)
    """Heads of keys and values; they divide n_heads."""
    tied_head: bool = True
    """The output head is the embedding: fewer parameters, for small models the better use of them."""

    @field_validator("tokenizer")
    @classmethod
    def _one_beginning(cls, value: str, info: ValidationInfo) -> str:
        if bool(value) == bool(info.data.get("base")):
            raise refused("base_or_tokenizer")
        if value and info.data.get("tune") != "full":
            raise refused("new_model_is_full")
        return value

    @field_validator("n_heads")
    @classmethod
    def _heads_divide(cls, value: int, info: ValidationInfo) -> int:
        if info.data.get("hidden_size", 0) % (2 * value):
            raise refused("must_divide_hidden_size")
        return value

    @field_validator("n_kv_heads")
    @classmethod
    def _kv_heads_divide(cls, value: int, info: ValidationInfo) -> int:
        if info.data.get("n_heads", 0) % value:
            raise refused("must_divide_n_heads")
        return value

    def title(self) -> str:
        return self.name or self.base or self.kind
