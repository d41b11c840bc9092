"""What every training method shares: base, examples, steps, rates, intervals; and which weights are trained."""

from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator

from mofang.recipes import fields
from mofang.recipes.base import Recipe
from mofang.recipes.fields import refused

Dtype = Literal["auto", "float32", "bfloat16"]


class Training(Recipe):
    """The fields of every method. Defaults that a method changes are repeated there."""

    base: str = Field(min_length=1)
    """The model to teach: a name of `mofang models list`, or a Hugging Face folder. A GGUF is imported first."""
    data: list[str] = Field(min_length=1)
    """Files of examples, or folders of them (JSONL, JSON, CSV, Parquet, text)."""
    format: str = "auto"
    """How they are laid out; "auto" looks at the first record of each file."""
    columns: list[str] = Field(default_factory=list)
    """Which columns stand for which fields, where they have other names: "instruction=question"; or a mapping."""
    weights: list[float] = Field(default_factory=list)
    """How often each of `data` is seen in an epoch, one number each: 2 is twice, 0.5 half of its examples."""
    eval_data: list[str] = Field(default_factory=list)
    """Files of examples that are never trained on; their loss is measured before, between and after."""
    eval_fraction: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    """Share of `data` to hold out for that, where there is no eval_data."""
    name: str = ""
    """Name of the result, and of models made from it; the run's id when empty."""
    system_prompt: str | None = None
    """System message for conversations that bring none, in training and in the exported chat template.
    None: whatever the base's template does."""
    max_length: int = Field(default=1024, ge=16, le=1_048_576)
    """Tokens of one example; what is longer is cut at its end, and reported."""
    epochs: int = Field(default=3, ge=1)
    """How often each example is seen."""
    max_steps: int | None = Field(default=None, ge=1)
    """Stop after so many steps."""
    max_minutes: float | None = Field(default=None, gt=0)
    """Take as many steps as fit into so many minutes, measured before the first one, so that the learning rate goes all
    its way; loading and saving come on top."""
    batch_size: int = Field(default=8, ge=1)
    """Examples of one optimizer step."""
    row_tokens: int = Field(default=2048, ge=16)
    """Examples of a step are packed, each seeing only itself, into rows of at most so many tokens: bounds memory. Where
    that is too much for this machine, rows are shorter."""
    packing: bool = True
    """False: one example a row."""
    learning_rate: float = Field(default=2e-4, gt=0, lt=1)
    """The highest, reached after the warm-up. The default is LoRA's; whole weights want about a tenth."""
    lr_scheduler: Literal["cosine", "linear", "constant"] = "cosine"
    """How it falls after the warm-up: to a tenth along a cosine, to 0 in a line, or not."""
    warmup_ratio: float = Field(default=0.05, ge=0, le=1)
    """Share of all steps in which it rises from 0."""
    weight_decay: float = Field(default=0.0, ge=0)
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Longer gradients are shortened to this."""
    tune: Literal["lora", "full", "layers", "new_rows"] = "lora"
    """What is trained: LoRA adapters, every weight, the chosen `layers`, or the vocabulary's rows from `first_new_row`
    on. All but LoRA end as a model of its own."""
    layers: list[int] = Field(default_factory=list, validate_default=True)
    """Decoder layers for `tune: layers`, from 0; negative numbers count from the last."""
    modules_to_save: list[str] = Field(default_factory=list, validate_default=True)
    """Modules trained whole beside LoRA or layers (embed_tokens, lm_head), under peft's name for them."""
    first_new_row: int | None = Field(default=None, ge=1, validate_default=True)
    """For `tune: new_rows`: the number of the first vocabulary row that is trained; all before it stay as they are."""
    lora_rank: int = Field(default=16, ge=1, le=1024)
    lora_alpha: float = Field(default=32.0, gt=0)
    """The adapter's output is multiplied by lora_alpha / lora_rank."""
    lora_dropout: float = Field(default=0.0, ge=0, lt=1)
    lora_targets: list[str] = Field(default_factory=lambda: ["all-linear"], min_length=1)
    """Names of the linear layers that get an adapter; "all-linear": all but the output head."""
    lora_rslora: bool = False
    """Multiply by lora_alpha / √lora_rank instead, which keeps large ranks learning (arXiv 2312.03732)."""
    lora_dora: bool = False
    """Train each weight row's length apart from its direction (DoRA, arXiv 2402.09353): slower, often a little better."""
    quantize_base: Literal["none", "nf4"] = Field(default="none", validate_default=True)
    """How the frozen base lies in memory beneath LoRA: as it is, or in 4 bits by bitsandbytes, which needs a CUDA GPU and
    `pip install 'mofang[qlora]'`."""
    dtype: Dtype = "auto"
    """Of what is computed and of frozen weights; "auto": bfloat16 where the processor computes with it, else float32.
    Trained weights are float32 always."""
    seed: int = 42
    save_every: int = Field(default=50, ge=1)
    """Steps between checkpoints."""
    keep_checkpoints: int = Field(default=2, ge=1)
    eval_every: int = Field(default=0, ge=0)
    """Steps between measurements of the eval loss; 0: after each epoch."""
    early_stopping_patience: int = Field(default=0, ge=0, validate_default=True)
    """Stop after so many measurements of the eval loss in a row without a new lowest; 0: never."""
    load_best_model_at_end: bool = Field(default=False, validate_default=True)
    """Keep the weights of the lowest eval loss and end with them, rather than with the last."""
    sample_every: int = Field(default=0, ge=0)
    """Steps between samples of what the model says (samples.jsonl in the run's folder); 0: none."""
    sample_prompts: list[str] = Field(default_factory=list)
    """What it is asked, or where it goes on from; empty: the beginnings of the first two held-out examples."""
    sample_tokens: int = Field(default=64, ge=1)
    """Tokens of a sample at most."""
    tensorboard: bool = False
    """Write the metrics for TensorBoard too, into the run's folder; needs `pip install 'mofang[tensorboard]'`."""
    export: str = ""
    """A GGUF type (q8_0, f16…) to merge and export to when training ends; empty: leave that to `mofang export`."""

    @field_validator("data", "eval_data", "lora_targets", "layers", "modules_to_save", "sample_prompts", mode="before")
    @classmethod
    def _one_or_many(cls, value: object) -> object:
        return [value] if isinstance(value, str | int) else value

    _columns = field_validator("columns", mode="before")(fields.columns)
    _named = field_validator("columns")(fields.named)
    _weights = field_validator("weights")(fields.as_many_as_data)

    @field_validator("layers")
    @classmethod
    def _layers_are_tuned(cls, value: list[int], info: ValidationInfo) -> list[int]:
        if value and info.data.get("tune") != "layers":
            raise refused("only_with_tune_layers")
        return value

    @field_validator("modules_to_save")
    @classmethod
    def _something_is_tuned(cls, value: list[str], info: ValidationInfo) -> list[str]:
        tune = info.data.get("tune")
        if value and tune not in ("lora", "layers"):
            raise refused("only_with_lora_or_layers")
        if tune == "layers" and not value and not info.data.get("layers"):
            raise refused("layers_or_modules")
        return value

    @field_validator("first_new_row")
    @classmethod
    def _rows_are_tuned(cls, value: int | None, info: ValidationInfo) -> int | None:
        if (value is not None) != (info.data.get("tune") == "new_rows"):
            raise refused("only_with_tune_new_rows")
        if value is not None and info.data.get("weight_decay"):
            raise refused("no_decay_of_old_rows")
        return value

    @field_validator("quantize_base")
    @classmethod
    def _only_what_is_frozen(cls, value: str, info: ValidationInfo) -> str:
        if value != "none" and (info.data.get("tune") != "lora" or info.data.get("lora_dora")):
            raise refused("only_with_plain_lora")
        return value

    @field_validator("early_stopping_patience", "load_best_model_at_end")
    @classmethod
    def _something_is_measured(cls, value: int | bool, info: ValidationInfo) -> int | bool:
        if value and not info.data.get("eval_data") and not info.data.get("eval_fraction"):
            raise refused("only_with_eval_data")
        return value

    @property
    def layout(self) -> dict[str, str]:
        """Field → column."""
        return dict(each.split("=", 1) for each in self.columns)

    def title(self) -> str:
        return self.name or self.base


class Preference(Training):
    """What the methods that learn from pairs share."""

    learning_rate: float = Field(default=5e-5, gt=0, lt=1)
    """The highest, reached after the warm-up. The default is for LoRA, a guess that was not studied; whole weights want
    about a tenth."""
    epochs: int = Field(default=1, ge=1)
    """How often each pair is seen."""
