"""A model's tokenizer, and what belongs to it: special tokens and the chat template.

The work is done by Hugging Face's `tokenizers` (fast.py) or Google's `sentencepiece` (sentence.py), each behind the
same few questions (Cutter). What lies here is what a bare vocabulary does not say: which token ends an answer, whether
a text begins with BOS, and how a conversation is written.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from mofang.messages import Message
from mofang.models import templates


class Cutter(Protocol):
    """What cuts a text into tokens."""

    @property
    def tokenizer_class(self) -> str:
        """transformers' name for it."""

    @property
    def n_vocab(self) -> int:
        """Highest id that has a name, plus one."""

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, special tokens in it recognized, nothing put before or after."""

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """The same for many texts, on all cores where the library can."""

    def decode(self, ids: Sequence[int], *, special: bool) -> str:
        """Text of `ids`; without special tokens' names when `special` is False."""

    def token(self, token_id: int) -> str:
        """A token as its vocabulary spells it; "" for none."""

    def token_id(self, name: str) -> int | None:
        """The reverse of `token`."""

    def data(self, token_id: int) -> bytes:
        """The bytes that a token stands for, which may be part of a character; a special token's are its name."""

    def spell(self, data: bytes) -> list[int]:
        """Ids that those bytes become amid a text, special tokens not recognized; they may be part of a character."""

    def added(self) -> set[int]:
        """Special tokens, and those that are found in a text before it is cut."""

    def kind(self) -> str:
        """ "byte-bpe", "sp-bpe", "sp-unigram", or the model of a tokenizer.json ("bpe", "unigram", "wordpiece")."""

    def state(self) -> str:
        """Everything that decides which ids a text becomes."""

    def save(self, folder: Path) -> None:
        """Write the vocabulary as its own makers do."""

    def dead(self) -> list[int]:
        """Pieces that no text becomes."""

    def cut_name(self) -> str | None:
        """llama.cpp's name for how a byte-level BPE cuts text before its merges, where it is known."""


@dataclass(frozen=True, slots=True)
class Tokenizer:
    """Token ids are those of the model's embedding rows."""

    backend: Cutter
    eos_id: int | None
    bos_id: int | None
    pad_id: int | None
    add_bos: bool
    """Texts of this model begin with BOS; engines add it, and so must training."""
    chat_template: str | None
    end_ids: frozenset[int] = field(default_factory=frozenset)
    """Every token that ends an answer."""

    @property
    def n_vocab(self) -> int:
        """Tokens that have a name; a model may have more rows, for padding."""
        return self.backend.n_vocab

    def encode(self, text: str) -> list[int]:
        """Ids of `text`. Special tokens written in it are recognized, as engines do with a rendered prompt."""
        return self.backend.encode(text)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """The same for many texts."""
        return self.backend.encode_batch(texts)

    def decode(self, ids: Sequence[int], *, special: bool = True) -> str:
        """The text of `ids`; without the special tokens' names when `special` is False."""
        return self.backend.decode(ids, special=special)

    def token(self, token_id: int | None) -> str:
        """The name of a token; "" for none."""
        return self.backend.token(token_id) if token_id is not None else ""

    def render(
        self, messages: Sequence[Message], *, add_generation_prompt: bool, tools: Sequence[dict[str, Any]] = ()
    ) -> str:
        """A conversation as this model reads it, with the functions that may be called.

        Raises Unreadable, Invalid as models.templates.render.
        """
        text = templates.render(
            self.chat_template or "",
            messages,
            bos=self.token(self.bos_id),
            eos=self.token(self.eos_id),
            add_generation_prompt=add_generation_prompt,
            **({"tools": list(tools)} if tools else {}),
        )
        bos = self.token(self.bos_id)
        return text.removeprefix(bos) if self.add_bos and bos else text  # `begin` puts it there

    def begin(self) -> list[int]:
        """The ids that stand before every text."""
        return [self.bos_id] if self.add_bos and self.bos_id is not None else []

    def cut_name(self) -> str | None:
        """llama.cpp's name for how text is cut before the merges of a byte-level BPE; None where it is not known."""
        return self.backend.cut_name()

    def sha256(self) -> str:
        """Of everything that decides which ids a text becomes."""
        return hashlib.sha256(self.backend.state().encode()).hexdigest()

    def save(self, folder: Path, *, n_ctx: int | None = None) -> None:
        """Write the files that Hugging Face's tools read."""
        self.backend.save(folder)
        config: dict[str, Any] = {
            "tokenizer_class": self.backend.tokenizer_class,
            "add_bos_token": self.add_bos,
            "clean_up_tokenization_spaces": False,
            **{
                name: self.token(token_id)
                for name, token_id in (
                    ("eos_token", self.eos_id),
                    ("bos_token", self.bos_id),
                    ("pad_token", self.pad_id),
                )
                if token_id is not None
            },
            **({"model_max_length": n_ctx} if n_ctx else {}),
        }
        (folder / "tokenizer_config.json").write_text(
            json.dumps(config, ensure_ascii=False, indent=2) + "\n", encoding="utf-8"
        )
        if self.chat_template:
            (folder / "chat_template.jinja").write_text(self.chat_template, encoding="utf-8")
