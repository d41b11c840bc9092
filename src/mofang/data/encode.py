"""A row as token ids, with a mask: the loss is on what the assistant says, and on the token that ends it.

The text is rendered with the very template that serving uses, and cut where a generation would begin; what stands
before is tokenized as a prompt is, what comes after as an answer: so training sees the ids that serving will see.
A template that writes a turn otherwise once another follows (as those that drop earlier reasoning do) makes one
example of each answer instead; in both cases every answer is learned once, in the context that it will have.
A document is learned whole, in stretches of max_length, with the end of text at its end.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mofang.data.rows import Conversation, Document, Pair, Row
from mofang.errors import Invalid
from mofang.messages import Message
from mofang.tokenizer import Tokenizer

Ids = NDArray[np.int32]
Mask = NDArray[np.bool_]
BATCH_CHARACTERS, BATCH_ROWS = 1_000_000, 2_000
"""What is tokenized at a time, on all cores; bounds memory."""


@dataclass(frozen=True, slots=True)
class Example:
    """ids (n,) int32, and mask (n,): True for those that are learned (predicted from all before them)."""

    ids: Ids
    mask: Mask
    file: Path
    row: int
    cut: bool
    """It was longer than allowed."""
    digest: int = 0
    """64 bits of the row that it comes from."""

    @property
    def n_supervised(self) -> int:
        """Tokens that count in the loss; the first token of all is predicted from nothing, and never counts."""
        return int(self.mask[1:].sum())


@dataclass(frozen=True, slots=True)
class Encoded:
    """Examples, and what was done to the rest."""

    examples: list[Example]
    n_cut: int
    dropped: list[Example]
    """Nothing of their answer was left within max_length."""


def encode(rows: Iterable[Row], tokenizer: Tokenizer, *, max_length: int) -> Encoded:
    """All rows as examples of at most `max_length` tokens, in memory. Raises as `examples`."""
    kept: list[Example] = []
    dropped: list[Example] = []
    for found in examples(rows, tokenizer, max_length=max_length):
        (kept if is_usable(found) else dropped).extend(found)
    return Encoded(kept, sum(example.cut for example in kept), dropped)


def is_usable(found: Sequence[Example]) -> bool:
    """Whether something is learned from each of the examples that belong together."""
    return all(example.n_supervised for example in found)


def examples(rows: Iterable[Row], tokenizer: Tokenizer, *, max_length: int) -> Iterator[list[Example]]:
    """Examples that belong together, in the order of the rows: the two of a pair (chosen, rejected), else one alone.

    Raises Invalid when there is no chat template, or one that does not say what is learned.
    """
    plans: list[_Plan] = []
    n_characters = 0
    for row in rows:
        plan = _Plan(row, list(_texts(row, tokenizer)))
        plans.append(plan)
        n_characters += sum(len(text) for pieces in plan.texts for text, _ in pieces)
        if n_characters > BATCH_CHARACTERS or len(plans) == BATCH_ROWS:
            yield from _encoded(plans, tokenizer, max_length)
            plans, n_characters = [], 0
    yield from _encoded(plans, tokenizer, max_length)


Pieces = list[tuple[str, bool]]
"""(text, whether it is learned) one after the other."""


@dataclass(frozen=True, slots=True)
class _Plan:
    row: Row
    texts: list[Pieces]


def _texts(row: Row, tokenizer: Tokenizer) -> Iterator[Pieces]:
    if isinstance(row, Document):
        yield [(row.text, True)]
        return
    if not tokenizer.chat_template:
        raise Invalid("data.no_template", param="base")
    if isinstance(row, Conversation):
        yield from _conversation(row.messages, _answers(row.messages, 0), row, tokenizer)
        return
    for answer in (row.chosen, row.rejected):
        messages = [*row.prompt, *answer]
        *_, last = _conversation(messages, _answers(messages, len(row.prompt)), row, tokenizer)
        yield last


def _answers(messages: Sequence[Message], start: int) -> list[int]:
    return [number for number in range(start, len(messages)) if messages[number].role == "assistant"]


def _conversation(
    messages: list[Message], answers: list[int], row: Conversation | Pair, tokenizer: Tokenizer
) -> Iterator[Pieces]:
    pieces = _pieces(messages, answers, row.tools, tokenizer)
    if pieces is not None:
        yield pieces
        return
    for number in answers:
        alone = _pieces(messages[: number + 1], [number], row.tools, tokenizer)
        if alone is None:
            raise Invalid("data.template_rewrites", param="base", path=row.file, row=row.row)
        yield alone


def _pieces(
    messages: list[Message], answers: list[int], tools: list[dict[str, Any]], tokenizer: Tokenizer
) -> Pieces | None:
    """None when the template does not write turn after turn."""
    pieces: Pieces = []
    done = ""
    for number in answers:
        prompt = tokenizer.render(messages[:number], add_generation_prompt=True, tools=tools)
        whole = tokenizer.render(messages[: number + 1], add_generation_prompt=False, tools=tools)
        if not prompt.startswith(done) or not whole.startswith(prompt):
            return None
        pieces += [(prompt[len(done) :], False), (whole[len(prompt) :], True)]
        done = whole
    return pieces


def _encoded(plans: list[_Plan], tokenizer: Tokenizer, max_length: int) -> Iterator[list[Example]]:
    texts = [text for plan in plans for pieces in plan.texts for text, _ in pieces]
    ids = iter(tokenizer.encode_batch(texts))
    for plan in plans:
        row, digest = plan.row, plan.row.digest()
        if isinstance(row, Document):
            found = [
                Example(part, mask, row.file, row.row, False, digest)
                for part, mask in _stretches(next(ids), row.more, tokenizer, max_length)
            ]
        else:
            parts = [
                _talk([(next(ids), learned) for _, learned in pieces], tokenizer, max_length) for pieces in plan.texts
            ]
            found = [Example(part, mask, row.file, row.row, cut, digest) for part, mask, cut in parts]
        if isinstance(row, Pair):
            yield found
        else:
            yield from ([example] for example in found)


def _talk(pieces: list[tuple[list[int], bool]], tokenizer: Tokenizer, max_length: int) -> tuple[Ids, Mask, bool]:
    """ids, mask, whether it was cut. A cut answer ends as a whole one does, or it would teach never to end; one that
    has no room for more than its end is not learned."""
    ids = tokenizer.begin()
    mask = [False] * len(ids)
    for piece, learned in pieces:
        start = len(ids)
        n_learned = 0
        if learned:
            ends = [at for at, token in enumerate(piece) if token in tokenizer.end_ids]
            if not ends and tokenizer.eos_id is not None:  # a template that forgets to end a turn
                piece, ends = [*piece, tokenizer.eos_id], [len(piece)]
            n_learned = ends[0] + 1 if ends else len(piece)  # what the template writes after the end is not the model's
        ids += piece
        mask += [at < n_learned for at in range(len(piece))]
        if start < max_length < start + n_learned:
            ids[max_length - 1] = piece[n_learned - 1]
            if start == max_length - 1:
                mask[start] = False
        if len(ids) > max_length:
            break  # all that follows is cut away
    cut = len(ids) > max_length
    return np.array(ids[:max_length], np.int32), np.array(mask[:max_length], np.bool_), cut


def _stretches(ids: list[int], more: bool, tokenizer: Tokenizer, max_length: int) -> Iterator[tuple[Ids, Mask]]:
    """A document in stretches, each beginning with the last token of the one before: every token but the first is
    predicted exactly once."""
    begin = tokenizer.begin()
    end = [tokenizer.eos_id] if tokenizer.eos_id is not None and not more else []
    whole = np.fromiter(chain(begin, ids, end), np.int32, len(begin) + len(ids) + len(end))
    for start in range(0, max(1, len(whole) - 1), max_length - 1):
        part = whole[start : start + max_length]
        mask = np.ones(len(part), np.bool_)
        mask[0] = False
        yield part, mask
