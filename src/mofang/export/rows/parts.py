"""The mean of the old tokens that spell the new one. Source: NVIDIA NeMo's tokenizer extension ("subword/uniform"),
without its norm correction; Chinese-LLaMA-2 does the same."""

from mofang.export.rows.blend import Blend, Lines, Tell, evenly
from mofang.tokenizer import Tokenizer


def blends(old: Tokenizer, new: Tokenizer, lines: Lines, tell: Tell) -> list[Blend | None]:
    found = (old.backend.spell(new.backend.data(token_id)) for token_id in range(old.n_vocab, new.n_vocab))
    return [evenly(parts) if parts else None for parts in found]
