"""What is done to a tokenizer."""

from typing import ClassVar, Literal

from pydantic import Field, field_validator

from mofang.recipes.base import Recipe
from mofang.recipes.fields import one_or_many


class Extend(Recipe):
    """A model's tokenizer with tokens learned from texts, and whether that pays."""

    kind: ClassVar[str] = "extend"
    command: ClassVar[str] = "tokenizer {kind}"
    worker: ClassVar[str] = "mofang.tokenizer.extension:run"
    extra: ClassVar[str] = ""
    library: ClassVar[str] = ""
    """A byte-level BPE needs nothing more; SentencePiece is asked for when it is read."""

    model: str = Field(min_length=1)
    """The model whose tokenizer is extended: a name or a path."""
    texts: list[str] = Field(min_length=1)
    """What is learned from: files of text, or folders of .txt, .md and .jsonl. Every 20th line is held out to measure on."""
    new_tokens: int = Field(default=10_000, ge=1, le=1_000_000)
    """Tokens to learn; fewer are added where the texts hold no more, or the base has some."""
    script: Literal["han", "all"] = "han"
    """ "han": Chinese alone is let in, and other text is cut as before; "all": whatever is frequent."""
    unreachable: Literal["drop", "complete", "keep"] = "drop"
    """SentencePiece: pieces that no text becomes are dropped, completed (their beginnings are added too), or kept."""
    name: str = ""
    """What the run is called by; the model that gets rows for it can have that name too."""

    _one_or_many = field_validator("texts", mode="before")(one_or_many)

    def title(self) -> str:
        return self.name or self.model


class Measure(Recipe):
    """How well a model's tokenizer cuts texts, beside another one where it is named."""

    kind: ClassVar[str] = "measure"
    command: ClassVar[str] = "tokenizer {kind}"
    worker: ClassVar[str] = "mofang.tokenizer.comparison:run"
    extra: ClassVar[str] = ""
    library: ClassVar[str] = ""

    model: str = Field(min_length=1)
    """The model whose tokenizer is measured: a name or a path."""
    against: str = ""
    """The model or tokenizer beside it."""
    texts: list[str] = Field(min_length=1)
    """What is cut: files of text, or folders of .txt, .md and .jsonl."""

    _one_or_many = field_validator("texts", mode="before")(one_or_many)

    def title(self) -> str:
        return " / ".join(name for name in (self.model, self.against) if name)
