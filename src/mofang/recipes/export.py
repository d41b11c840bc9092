"""From one form of a model to another."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from mofang.recipes.base import Recipe
from mofang.recipes.fields import one_of, one_or_many, refused


class _Export(Recipe):
    command: ClassVar[str] = "export {kind}"

    model: str = Field(min_length=1)
    """The model or run to begin with: a name, a run's id, or a path."""
    name: str = ""
    """Name of the result; made from the model's when empty."""
    overwrite: bool = False
    """Replace a model of that name, once the new one is complete."""

    def title(self) -> str:
        return self.model


class Import(_Export):
    """A GGUF file's weights, tokenizer and chat template as a Hugging Face folder that can be trained; or a folder of
    pickled weights as one of safetensors."""

    kind: ClassVar[str] = "import"
    command: ClassVar[str] = "models import"
    worker: ClassVar[str] = "mofang.export.imports:run"
    library: ClassVar[str] = ""

    dtype: Literal["auto", "float16", "float32"] = "auto"
    """Of the weights on disk; "auto": float16, of pickled weights their own."""
    tie_head: bool = True
    """Join an output head to the embedding where both are the same matrix, quantized twice."""
    pickle: bool = False
    """Read pickled weights (.bin), as tensors only: a pickle may hold programs, which are not run."""


class Merge(_Export):
    """Adapters of runs or of others added into their base: one Hugging Face folder, checked against base and adapters."""

    kind: ClassVar[str] = "merge"
    worker: ClassVar[str] = "mofang.export.merge:run"
    called: ClassVar[Mapping[str, str]] = {"weights": "adapter_weights"}

    adapters: list[str] = Field(default_factory=list)
    """Further adapters, added after `model` in this order: runs or folders."""
    weights: list[float] = Field(default_factory=list, validate_default=True)
    """What each adapter's change is multiplied by, `model`'s first; 1 for each when empty."""
    base: str = ""
    """The base model; the one that the adapter was trained on when empty. Another one is refused."""
    dtype: Literal["same", "float16", "bfloat16", "float32"] = "same"
    """Of the result on disk; "same": the base's."""
    pickle: bool = False
    """Read pickled weights (.bin), as tensors only: a pickle may hold programs, which are not run."""

    _one_or_many = field_validator("adapters", mode="before")(one_or_many)

    @field_validator("weights", mode="before")
    @classmethod
    def _number_or_many(cls, value: object) -> object:
        return [value] if isinstance(value, int | float) else value

    @field_validator("weights")
    @classmethod
    def _one_each(cls, value: list[float], info: ValidationInfo) -> list[float]:
        n = 1 + len(info.data.get("adapters") or ())
        if value and len(value) != n:
            raise PydanticCustomError("adapter_weights", "must be {n} numbers, one for each adapter", {"n": n})
        return value


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

    _one_or_many = field_validator("texts", mode="before")(one_or_many)

    @field_validator("texts")
    @classmethod
    def _focus_needs_texts(cls, value: list[str], info: ValidationInfo) -> list[str]:
        if bool(value) != (info.data.get("init") == "focus"):
            raise refused("only_with_init_focus")
        return value


class _Calibrated(_Export):
    """An exporter that watches the model read."""

    calibration: list[str] = Field(default_factory=list)
    """Files or folders of texts or conversations; "mofang" among them is Mofang's own Chinese, English and code, which is
    also what is read when empty."""
    samples: int = Field(default=128, ge=1, le=100_000)
    """Sequences of calibration text."""
    length: int = Field(default=512, ge=16, le=32_768)
    """Tokens of a sequence."""
    seed: int = 0
    """Of the choice among calibration texts."""

    _one_or_many = field_validator("calibration", mode="before")(one_or_many)


class Gguf(_Calibrated):
    """A Hugging Face folder, a run (merged first), or a GPTQ model, as a GGUF file."""

    kind: ClassVar[str] = "gguf"
    worker: ClassVar[str] = "mofang.export.gguf:run"

    type: str = ""
    """f32, f16, bf16 and q8_0 need no compiler; K-quants such as q4_k_m need llama.cpp's llama-quantize. "auto": the
    fastest here of several sizes, of those within `max_kl`. When empty: q8_0. A GPTQ model's quantized weights are kept to
    the bit whatever is said here; it says what becomes of the others, which are kept too when empty."""
    bits: float = Field(default=0, ge=0, le=16)
    """Average bits of a weight: each matrix gets the type by which the whole loses least, measured on the calibration texts.
    0: as `type` says."""
    size: str = ""
    """The same by the file's size: "300MB"."""
    types: str = ""
    """The same by a file of an earlier choice: lines `tensor=type`, as they lie beside a model made by `bits` or `size`."""
    max_kl: float = Field(default=0.05, gt=0)
    """For `type: auto`: the largest mean KL divergence (nats) from the whole model."""
    imatrix: bool = True
    """Give llama-quantize an importance matrix of the calibration texts."""
    samples: int = Field(default=64, ge=1, le=100_000)
    """Sequences of calibration text."""

    @field_validator("size", "types")
    @classmethod
    def _one_way(cls, value: str, info: ValidationInfo) -> str:
        if value and any(info.data.get(name) for name in ("type", "bits", "size")):
            raise refused("one_of_type_bits_size_types")
        return value

    @field_validator("bits")
    @classmethod
    def _not_with_type(cls, value: float, info: ValidationInfo) -> float:
        if value and info.data.get("type"):
            raise refused("one_of_type_bits_size_types")
        return value


class Gptq(_Calibrated):
    """A Hugging Face folder, or a run (merged first), with linear layers quantized by GPTQ."""

    kind: ClassVar[str] = "gptq"
    worker: ClassVar[str] = "mofang.export.gptq.worker:run"

    bits: Annotated[int, AfterValidator(one_of(2, 3, 4, 8))] = 4
    """Bits of a weight: 2, 3, 4, 8."""
    group_size: Annotated[int, AfterValidator(one_of(-1, 16, 32, 64, 128, 256, 512, 1024))] = 128
    """Weights that share a scale: -1 (a whole row), 16, 32, 64, 128, 256, 512, 1024."""
    sym: bool = True
    """Grids that lie evenly around zero: such a model becomes a GGUF of the same bits."""
    order: Literal["group_aware", "activation", "none"] = "group_aware"
    """In which order a layer's inputs are quantized; "activation" (act-order) scatters groups over the inputs."""
    true_sequential: bool = True
    """Parts of a layer see what the parts before them became."""
    mse: bool = True
    """Search each group's scale for the smallest error instead of taking its largest weight's."""
    refine: bool = True
    """Go through scales and codes once more when all are there: a closer result, some seconds longer."""


class Check(Recipe):
    """Compare a model with another one that it should say the same as: a GGUF with its source, two GGUFs, a GPTQ…"""

    kind: ClassVar[str] = "check"
    command: ClassVar[str] = "export {kind}"
    worker: ClassVar[str] = "mofang.export.check:run"
    extra: ClassVar[str] = ""
    library: ClassVar[str] = ""
    """Two GGUFs need nothing more; a folder asks for torch when it is opened."""

    model: str = Field(min_length=1)
    """The model: a name, a path, or a run's id (what it led to)."""
    reference: str = ""
    """The model to compare with; the one that it was made from when empty."""
    text: list[str] = Field(default_factory=list)
    """Texts to read: files in UTF-8, or text_zh, text_en; these two, which are our own, when empty."""
    n_tokens: int = Field(default=2048, ge=8, le=1_000_000)
    """Tokens of each text that are compared."""
    answers: bool = True
    """Let both answer ten questions."""
    speed: bool = True
    """Measure how fast both are in their engines."""
    max_kl: float | None = Field(default=None, gt=0)
    """Largest mean KL divergence (nats) of any text; beyond it the check fails."""
    min_top1: float | None = Field(default=None, ge=0, le=1)
    """Least share of places (0 to 1) of any text where both hold the same token for the likeliest."""

    @field_validator("text", mode="before")
    @classmethod
    def _one_or_many(cls, value: object) -> object:
        return [value] if isinstance(value, str) and value else value or []

    def title(self) -> str:
        return self.model
