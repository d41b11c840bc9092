"""From one form of a model to another."""

from typing import ClassVar, Literal

from pydantic import Field, ValidationInfo, field_validator

from mofang.recipes.base import Recipe
from mofang.recipes.fields import refused


class _Export(Recipe):
    model: str = Field(min_length=1)
    """The model or run to begin with: a name, a run's id, or a path."""
    name: str = ""
    """Name of the result; made from the model's when empty."""
    overwrite: bool = False
    """Replace a model of that name, once the new one is complete."""

    def title(self) -> str:
        return self.model


class Import(_Export):
    """A GGUF file's weights, tokenizer and chat template as a Hugging Face folder that can be trained."""

    kind: ClassVar[str] = "import"
    worker: ClassVar[str] = "mofang.export.imports:run"
    library: ClassVar[str] = ""

    dtype: Literal["float16", "float32"] = "float16"
    """Of the weights on disk."""
    tie_head: bool = True
    """Join an output head to the embedding where both are the same matrix, quantized twice."""


class Merge(_Export):
    """A run's adapter added into its base: one Hugging Face folder, checked against base and adapter."""

    kind: ClassVar[str] = "merge"
    worker: ClassVar[str] = "mofang.export.merge:run"

    base: str = ""
    """The base model; the one that the adapter was trained on when empty. Another one is refused."""
    dtype: Literal["same", "float16", "bfloat16", "float32"] = "same"
    """Of the result on disk; "same": the base's."""


class Resize(_Export):
    """A Hugging Face folder with rows for the new tokens of an extended tokenizer, ready to be trained on."""

    kind: ClassVar[str] = "resize"
    worker: ClassVar[str] = "mofang.export.resize:run"

    tokenizer: str = Field(min_length=1)
    """The folder that `mofang tokenizer extend` wrote."""
    init: Literal["parts", "mean", "focus"] = "parts"
    """New rows: the mean of the rows of the old tokens that spell the new one, the mean of all old rows, or a mixture of
    those of old tokens that stand in like places of `texts` (after FOCUS, arXiv 2305.14481)."""
    texts: list[str] = Field(default_factory=list, validate_default=True)
    """For `init: focus`: text of the language, files or folders; what the tokenizer was extended by serves well."""

    @field_validator("texts", mode="before")
    @classmethod
    def _one_or_many(cls, value: object) -> object:
        return [value] if isinstance(value, str) else value

    @field_validator("texts")
    @classmethod
    def _focus_needs_texts(cls, value: list[str], info: ValidationInfo) -> list[str]:
        if bool(value) != (info.data.get("init") == "focus"):
            raise refused("only_with_init_focus")
        return value


class Gguf(_Export):
    """A Hugging Face folder, or a run (merged first), as a GGUF file."""

    kind: ClassVar[str] = "gguf"
    worker: ClassVar[str] = "mofang.export.gguf:run"

    type: str = "q8_0"
    """f32, f16, bf16 and q8_0 need no compiler; K-quants such as q4_k_m need llama.cpp's llama-quantize."""


class Check(Recipe):
    """Compare a GGUF file, as the engine runs it, with the Hugging Face folder it was made from."""

    kind: ClassVar[str] = "check"
    worker: ClassVar[str] = "mofang.export.check:run"

    model: str = Field(min_length=1)
    """The GGUF model: a name or a run's id."""
    reference: str = ""
    """The Hugging Face folder or model to compare with; the one it was made from when empty."""
    text: str = ""
    """A UTF-8 text file to read; a general Chinese text of our own when empty."""
    n_tokens: int = Field(default=256, ge=8, le=100_000)
    """Tokens of the text that are compared."""

    def title(self) -> str:
        return self.model
