"""The choice of the next token from raw logits, by llama.cpp's names and in its order, so that a name means the same in
every engine: bias, penalties, top_k, top_p, min_p, temperature. numpy only.

Source: llama.cpp common/common.h (the order of samplers), src/llama-sampler.cpp; Keskar et al. 2019, section 4.1
(repeat_penalty); OpenAI API reference (presence_penalty, frequency_penalty, logit_bias).
"""

import secrets
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mofang.engine.worker.core import Logits
from mofang.errors import Invalid


@dataclass(frozen=True, slots=True)
class Choices:
    """How one answer is sampled. The defaults are llama.cpp's."""

    max_tokens: int = 2048
    temperature: float = 0.8
    """0: always the likeliest."""
    top_k: int = 40
    """0: all."""
    top_p: float = 0.95
    min_p: float = 0.05
    repeat_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repeat_last_n: int = 64
    """Tokens that the penalties look back at, the prompt's too; -1: all, 0: none."""
    seed: int = -1
    """Negative: another one each time."""
    ignore_eos: bool = False
    cache_prompt: bool = True
    """Begin where the prompt begins like one that is still in the cache."""
    n_top: int = 0
    """Candidates that are reported with each token."""
    logprobs: bool = False
    bias: tuple[tuple[int, float], ...] = ()
    stop: tuple[str, ...] = field(default=())


PLAIN = frozenset(entry.name for entry in fields(Choices)) - {"n_top", "logprobs", "bias"}
"""Requests carry these under the same name."""


def choices(request: Mapping[str, Any], defaults: Mapping[str, Any], tokens_of: Any, engine: str) -> Choices:
    """A request's words as Choices. Raises Invalid that names what this engine does not know.

    `tokens_of(text)` gives the ids of a text, for a bias on text.
    """
    wanted = {**defaults, **{name: value for name, value in request.items() if name in PLAIN}}
    rest = {name: value for name, value in request.items() if name not in PLAIN}
    if wanted.get("stop"):
        wanted["stop"] = tuple(stop for stop in wanted["stop"] if stop)
    if rest.pop("n", 1) != 1:
        raise Invalid("engine.option_unknown", param="n", engine=engine, name="n")
    if rest.get("response_format") == {"type": "text"}:
        del rest["response_format"]
    asked, n_top = rest.pop("logprobs", None), rest.pop("top_logprobs", None)
    if asked is not None and asked is not False:
        wanted |= {"logprobs": True, "n_top": int(n_top if n_top is not None else 0 if asked is True else asked)}
    if bias := rest.pop("logit_bias", None):
        wanted["bias"] = tuple(_biases(bias, tokens_of))
    for name in rest:
        raise Invalid("engine.option_unknown", param=name, engine=engine, name=name)
    return Choices(**wanted)


def _biases(stated: Any, tokens_of: Any) -> list[tuple[int, float]]:
    """OpenAI's {"id": bias}, llama.cpp's [[id or text, bias or false]]."""
    pairs = stated.items() if isinstance(stated, dict) else stated
    found = []
    try:
        for what, value in pairs:
            amount = -np.inf if value is False else float(value)
            numeric = isinstance(what, int) or str(what).isdigit()
            found += [(token, amount) for token in ([int(what)] if numeric else tokens_of(str(what)))]
    except (TypeError, ValueError) as error:
        raise Invalid("engine.bad_logit_bias", param="logit_bias", value=str(stated)[:80]) from error
    return found


class Sampler:
    """Chooses the tokens of one answer. The same seed chooses the same from the same logits."""

    def __init__(self, wanted: Choices, end_ids: frozenset[int]) -> None:
        self._wanted = wanted
        self._bias = [*wanted.bias, *((token, -np.inf) for token in end_ids if wanted.ignore_eos)]
        self._random = np.random.default_rng(wanted.seed if wanted.seed >= 0 else secrets.randbits(64))

    def choose(self, logits: Logits, before: Sequence[int]) -> int:
        """The next token after the tokens `before`."""
        scores = np.array(logits, np.float32)
        for token, amount in self._bias:
            if token < scores.size:
                scores[token] += amount
        self._penalise(scores, before)
        kept, odds = chances(scores, self._wanted)
        drawn = int(np.searchsorted(odds.cumsum(), self._random.random()))
        return int(kept[min(drawn, kept.size - 1)])

    def _penalise(self, scores: Logits, before: Sequence[int]) -> None:
        wanted = self._wanted
        if not wanted.repeat_last_n or (wanted.repeat_penalty, wanted.presence_penalty, wanted.frequency_penalty) == (
            1.0,
            0.0,
            0.0,
        ):
            return
        seen = Counter(before if wanted.repeat_last_n < 0 else before[-wanted.repeat_last_n :])
        tokens, times = np.fromiter(seen.keys(), np.int64), np.fromiter(seen.values(), np.float32)
        found = scores[tokens]
        found = np.where(found > 0, found / wanted.repeat_penalty, found * wanted.repeat_penalty)
        scores[tokens] = found - times * wanted.frequency_penalty - wanted.presence_penalty


def chances(scores: Logits, wanted: Choices, *, rest: float = 0.0) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The ids that can be drawn, the likeliest first, and with which probability: what top_k, top_p and min_p leave, at
    the temperature. `rest` is the probability of tokens that are not among `scores`; with a top_k, they do not count."""
    if wanted.temperature <= 0:
        return np.array([scores.argmax()], np.int64), np.ones(1)
    n_kept = min(wanted.top_k or scores.size, scores.size)
    kept = np.argpartition(-scores, n_kept - 1)[:n_kept] if n_kept < scores.size else np.arange(scores.size)
    kept = kept[np.lexsort((kept, -scores[kept]))]
    before = _softmax(scores[kept]) * (1.0 - rest)
    n_within: int = int(np.searchsorted(before.cumsum(), wanted.top_p)) + 1 if wanted.top_p < 1 else len(kept)
    n_likely = int((before >= wanted.min_p * before[0]).sum())
    kept = np.asarray(kept[: max(1, min(n_within, n_likely))], np.int64)
    return kept, _softmax(scores[kept] / np.float32(wanted.temperature))


def log_softmax(logits: Logits) -> NDArray[np.float64]:
    """Natural logarithms of the probabilities."""
    shifted = logits.astype(np.float64) - logits.max()
    result: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum())
    return result


def _softmax(logits: Logits) -> NDArray[np.float64]:
    return np.exp(log_softmax(logits))
