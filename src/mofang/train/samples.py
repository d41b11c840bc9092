"""What the model says at intervals while it is trained: a loss does not show that it repeats itself or never ends.

Greedy, so that no random number is drawn: a run that is resumed goes on bit for bit. Each is a line of the run's
samples.jsonl and is printed in its log.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import GenerationConfig

from mofang.data.encode import encode
from mofang.data.rows import Conversation, Document
from mofang.messages import Message
from mofang.runs import Run
from mofang.tokenizer import Tokenizer
from mofang.train.examples import Examples
from mofang.train.forward import Forward

DEFAULT = 2
"""Prompts that are taken from the examples where the recipe names none."""
BEGINNING = 32
"""Tokens of a text without a question that the model goes on from."""


@dataclass(frozen=True, slots=True)
class Samples:
    """prompts: token ids, as the model reads them."""

    forward: Forward
    tokenizer: Tokenizer
    prompts: Sequence[Sequence[int]]
    max_new_tokens: int
    run: Run

    @torch.no_grad()
    def write(self, step: int) -> None:
        """Answer every prompt, once a step: a run that is resumed does not write a step's samples again."""
        rows = [{"prompt": self.tokenizer.decode(prompt), "text": self._answer(prompt)} for prompt in self.prompts]
        for row in rows:
            print(f"--- step {step}\n{row['prompt']}⟶{row['text']}", flush=True)
        self.run.keep_samples(step, rows)

    def _answer(self, prompt: Sequence[int]) -> str:
        ends = sorted(self.tokenizer.end_ids)
        told = GenerationConfig(
            max_new_tokens=self.max_new_tokens, do_sample=False, eos_token_id=ends or None, pad_token_id=(ends or [0])[0]
        )  # fmt: skip
        ids = torch.tensor([list(prompt)], device=self.forward.device)
        with self.forward.as_it_is() as model:
            found = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=told)
        return self.tokenizer.decode(found[0, len(prompt) :].tolist())


def prompts(wanted: Sequence[str], found: Examples, tokenizer: Tokenizer) -> list[list[int]]:
    """Those that the recipe names, as its method lays them out, or the beginnings of held-out (else learned) examples."""
    first = found.learned[0]
    talks = bool(first.mask.argmax() > 1)  # a text is learned from its start
    if wanted:
        rows = [
            Conversation([Message("user", text), Message("assistant", "…")]) if talks else Document(text, more=True)
            for text in wanted
        ]
        shown = encode(rows, tokenizer, max_length=1_000_000).examples
    else:
        source = found.held_out or found.learned
        shown = [source[number] for number in range(min(DEFAULT, len(source)))]
    cut = [int(example.mask.argmax()) if talks else len(example.ids) if wanted else BEGINNING for example in shown]
    return [example.ids[:until].tolist() for example, until in zip(shown, cut, strict=True)]
