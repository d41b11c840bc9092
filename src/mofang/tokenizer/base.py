"""A model's tokenizer, and what belongs to it: special tokens and the chat template.

The work is done by Hugging Face's `tokenizers` (Rust). What lies here is what a bare tokenizer.json does not say: which
token ends an answer, whether a text begins with BOS, and how a conversation is written.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Backend

from mofang.messages import Message
from mofang.models import templates


@dataclass(frozen=True, slots=True)
class Tokenizer:
    """Token ids are those of the model's embedding rows."""

    backend: Backend
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
        return int(self.backend.get_vocab_size(with_added_tokens=True))

    def encode(self, text: str) -> list[int]:
        """Ids of `text`. Special tokens written in it are recognized, as engines do with a rendered prompt."""
        ids: list[int] = self.backend.encode(text, add_special_tokens=False).ids
        return ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """The same for many texts, on all cores."""
        return [found.ids for found in self.backend.encode_batch_fast(list(texts), add_special_tokens=False)]

    def decode(self, ids: Sequence[int], *, special: bool = True) -> str:
        """The text of `ids`; without the special tokens' names when `special` is False."""
        text: str = self.backend.decode(list(ids), skip_special_tokens=not special)
        return text

    def token(self, token_id: int | None) -> str:
        """The name of a token; "" for none."""
        return (self.backend.id_to_token(token_id) or "") if token_id is not None else ""

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

    def sha256(self) -> str:
        """Of everything that decides which ids a text becomes."""
        return hashlib.sha256(json.dumps(json.loads(self.backend.to_str()), sort_keys=True).encode()).hexdigest()

    def save(self, folder: Path, *, n_ctx: int | None = None) -> None:
        """Write the files that Hugging Face's tools read."""
        self.backend.save(str(folder / "tokenizer.json"))
        config: dict[str, Any] = {
            "tokenizer_class": "PreTrainedTokenizerFast",
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
