"""Supervised fine-tuning: the worker of recipes.sft.Sft."""

from collections.abc import Sequence
from typing import Any

from mofang.data.encode import Example
from mofang.data.rows import Conversation
from mofang.recipes.sft import Sft
from mofang.runs import Run
from mofang.tokenizer import Tokenizer
from mofang.train import examples, job
from mofang.train.forward import Forward


def run(recipe: Sft, run: Run) -> dict[str, Any]:
    """Train; the adapter or the model, its tokenizer and chat template, and a manifest with the lineage are left."""
    begin = job.from_base(recipe)
    return learn(recipe, run, begin, examples.load(recipe, begin.tokenizer, run, Conversation))


def learn(recipe: Any, run: Run, begin: job.Begin, found: examples.Examples) -> dict[str, Any]:
    """The mean of -log p over the supervised tokens made smaller."""

    def objective(forward: Forward, learned: Sequence[Example], held_out: Sequence[Example]):
        return lambda row: (forward.loss(row), {}), learned, held_out

    return job.train(
        recipe, run, begin, found, objective, examples=found.learned, held_out=found.held_out,
        weight=lambda example: example.n_supervised, eval_bytes=_bytes(found.held_out, begin.tokenizer),
    )  # fmt: skip


def _bytes(examples: Sequence[Example], tokenizer: Tokenizer) -> int:
    """UTF-8 bytes of what is learned in the examples: losses by it compare across tokenizers.

    A text's first token, predicted from nothing, counts among its bytes: it may be a part of a character.
    """
    texts = []
    for example in examples:
        mask = example.mask.copy()
        mask[0] = mask[1:2].any()
        texts.append(tokenizer.decode(example.ids[mask].tolist(), special=False))
    return sum(len(text.encode()) for text in texts)
