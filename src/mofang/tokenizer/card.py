"""Whether extending a tokenizer pays: what is gained per token, what the new rows cost, and a verdict with its reasons.

Decoding reads every weight once a token, so a token costs as the weights that are read: new rows of the head are added
to them. That is the expectation behind `speed_up`; only a trained model's measurement is a fact. The model must first
learn the new tokens: until it is trained on, it knows less than before. Perplexities per token do not compare across
vocabularies; bits per character do.
"""

from dataclasses import dataclass
from typing import Any

from mofang.models.base import ModelFacts
from mofang.tokenizer.measure import Report

POOR = 1.0
"""Chinese characters per token above which a base's own vocabulary is good enough: Llama-3 and Qwen lie above it."""
WORTH = 1.3
"""Least expected gain in decoding speed for which training new rows pays (guess, not studied)."""


@dataclass(frozen=True, slots=True)
class Card:
    """characters per token before and after; `speed_up`: expected decoded characters per second, after over before.

    `reasons`: keys of strings/tokenizer (reason_…), each true of these numbers.
    """

    chinese_before: float | None
    chinese_after: float | None
    all_before: float
    all_after: float
    n_added: int
    n_dead: int
    n_unused: int
    row_parameters: int
    share_of_parameters: float | None
    speed_up: float
    pays: bool
    reasons: tuple[str, ...]
    bits_before: float | None = None
    """Bits per character of the base on the same texts, where it was asked."""

    def shape(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}


def card(
    before: Report, after: Report, *, n_old: int, n_vocab: int, n_dead: int, facts: ModelFacts | None = None
) -> Card:
    """From the same texts measured with both tokenizers. Without `facts` of the model, new rows count as free."""
    n_added = n_vocab - n_old
    width = facts.n_embd if facts and facts.n_embd else 0
    parameters = facts.parameters if facts and facts.parameters else 0
    gain = (after.characters_per_token or 0.0) / (before.characters_per_token or 1.0)
    cost = (parameters + n_added * width) / parameters if parameters else 1.0
    speed_up = gain / cost
    poor = before.chinese_per_token is not None and before.chinese_per_token < POOR
    worth = speed_up >= WORTH
    reasons = [
        "reason_poor" if poor else "reason_good" if before.chinese_per_token is not None else "reason_no_chinese",
        "reason_fast" if worth else "reason_slow",
        *(["reason_costs"] if cost > 1.15 else []),
        *(["reason_dead"] if n_dead else []),
    ]
    unused = sum(1 for token_id in range(n_old, n_vocab) if not after.used[token_id])
    return Card(
        chinese_before=before.chinese_per_token,
        chinese_after=after.chinese_per_token,
        all_before=before.characters_per_token or 0.0,
        all_after=after.characters_per_token or 0.0,
        n_added=n_added,
        n_dead=n_dead,
        n_unused=unused,
        row_parameters=n_added * width,
        share_of_parameters=n_added * width / parameters if parameters else None,
        speed_up=speed_up,
        pays=poor and worth,
        reasons=tuple(reasons),
    )
