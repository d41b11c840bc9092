"""The models that Mofang offers to bring: catalogue.toml as typed entries. Knows nothing of what is installed."""

import difflib
import tomllib
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from mofang.errors import NotFound
from mofang.models.base import Kind
from mofang.models.memory import compute_bytes

FILE = Path(__file__).with_name("catalogue.toml")

TYPICAL_CONTEXT = 8192
"""Tokens, and TYPICAL_SLOTS conversations at a time: the defaults of settings.py, for `memory_bytes`."""
TYPICAL_SLOTS = 2


@dataclass(frozen=True, slots=True)
class CatalogueEntry:
    """One model. None: no figure with a source is known, it is learnt when the model is pulled."""

    name: str
    title: str
    kind: Kind
    summary: dict[str, str]
    """A sentence in "zh" and "en"."""
    licence: str
    languages: list[str]
    """Codes; "+27": and that many more."""
    good_for: list[str]
    """Short words; `say(f"models.good_for_{word}")` is each one's sentence."""
    sources: list[dict[str, Any]]
    """In order of preference; each has a "kind" of models.sources.SOURCES and what that kind needs."""
    figures_from: str
    parameters: int | None = None
    size_bytes: int | None = None
    n_ctx_train: int | None = None
    kv_bytes_per_token: int | None = None
    n_vocab: int | None = None
    n_embd: int | None = None
    n_ff: int | None = None
    file: str | None = None
    convert: str | None = None

    def memory(self, n_ctx: int, n_slots: int) -> int | None:
        """Bytes when loaded. None where the catalogue does not know enough."""
        return None if self.size_bytes is None or self.kv_bytes_per_token is None else self._at_least(n_ctx, n_slots)

    def _at_least(self, n_ctx: int, n_slots: int) -> int:
        """Memory with what is unknown counted as nothing."""
        tokens = min(n_ctx, self.n_ctx_train or n_ctx) * n_slots
        compute = compute_bytes(
            n_vocab=self.n_vocab or 0,
            n_embd=self.n_embd or 0,
            n_ff=self.n_ff or 0,
            n_slots=n_slots,
            encoder=self.kv_bytes_per_token == 0,
        )
        return (self.size_bytes or 0) + (self.kv_bytes_per_token or 0) * tokens + compute

    @property
    def memory_bytes(self) -> int | None:
        """`memory` at the default context and slots."""
        return self.memory(TYPICAL_CONTEXT, TYPICAL_SLOTS)

    def fits(self, free_bytes: int, n_ctx: int = TYPICAL_CONTEXT, n_slots: int = TYPICAL_SLOTS) -> bool:
        """Whether it can be loaded into the memory that is free now; what we do not know does not speak against it."""
        return self._at_least(n_ctx, n_slots) <= free_bytes


@dataclass(frozen=True, slots=True)
class Catalogue:
    entries: list[CatalogueEntry]
    preferred: dict[str, list[str]] = field(default_factory=dict)

    def find(self, name: str) -> CatalogueEntry | None:
        return next((entry for entry in self.entries if entry.name == name), None)

    def get(self, name: str) -> CatalogueEntry:
        """The entry of that name. Raises NotFound with the nearest name."""
        entry = self.find(name)
        if entry is None:
            near = difflib.get_close_matches(name, [entry.name for entry in self.entries], n=1, cutoff=0.3)
            raise NotFound("models.not_in_catalogue", name=name, near=near[0] if near else "-")
        return entry

    def defaults(self, kind: str) -> list[CatalogueEntry]:
        """What to bring when there is no model of this kind, in order of preference. Empty: nothing is proposed."""
        return [self.get(name) for name in self.preferred.get(kind, [])]


@cache
def load(path: Path = FILE) -> Catalogue:
    """The catalogue that comes with Mofang, or the one in `path`."""
    with path.open("rb") as file:
        data = tomllib.load(file)
    entries = []
    for model in data["model"]:
        sources = [dict(source) for source in model.pop("source")]
        entries.append(CatalogueEntry(sources=sources, **model))
    return Catalogue(entries, data.get("defaults", {}))
