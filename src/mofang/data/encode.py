"""A conversation as token ids, with a mask: the loss is on what the assistant says, and on the token that ends it.

The text is rendered with the very template that serving uses, and cut where a generation would begin; what stands
before is tokenized as a prompt is, what comes after as an answer: so training sees the ids that serving will see.
A template that writes a turn otherwise once another follows (as those that drop earlier reasoning do) makes one
example of each answer instead; in both cases every answer is learned once, in the context that it will have.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mofang.data.rows import Conversation
from mofang.errors import Invalid
from mofang.messages import Message
from mofang.tokenizer import Tokenizer

Ids = NDArray[np.int32]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Example:
    """ids (n,) int32, and mask (n,): True for those that are learned (predicted from all before them)."""

    ids: Ids
    mask: Mask
    file: Path
    row: int
    cut: bool
    """It was longer than allowed."""

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


def encode(conversations: Sequence[Conversation], tokenizer: Tokenizer, *, max_length: int) -> Encoded:
    """All conversations as examples of at most `max_length` tokens. Raises Invalid when there is no chat template."""
    if not tokenizer.chat_template:
        raise Invalid("data.no_template", param="base")
    examples: list[Example] = []
    dropped: list[Example] = []
    for conversation in conversations:
        for example in _one(conversation, tokenizer, max_length):
            (examples if example.n_supervised else dropped).append(example)
    return Encoded(examples, sum(example.cut for example in examples), dropped)


def _one(conversation: Conversation, tokenizer: Tokenizer, max_length: int) -> list[Example]:
    messages = conversation.messages
    answers = [number for number, message in enumerate(messages) if message.role == "assistant"]
    pieces = _pieces(messages, answers, tokenizer)
    if pieces is not None:
        return [_example(pieces, tokenizer, conversation, max_length)]
    examples = []
    for number in answers:
        alone = _pieces(messages[: number + 1], [number], tokenizer)
        if alone is None:
            raise Invalid("data.template_rewrites", param="base", path=conversation.file, row=conversation.row)
        examples.append(_example(alone, tokenizer, conversation, max_length))
    return examples


def _pieces(messages: list[Message], answers: list[int], tokenizer: Tokenizer) -> list[tuple[str, bool]] | None:
    """(text, whether it is learned) one after the other; None when the template does not write turn after turn."""
    pieces: list[tuple[str, bool]] = []
    done = ""
    for number in answers:
        prompt = tokenizer.render(messages[:number], add_generation_prompt=True)
        whole = tokenizer.render(messages[: number + 1], add_generation_prompt=False)
        if not prompt.startswith(done) or not whole.startswith(prompt):
            return None
        pieces += [(prompt[len(done) :], False), (whole[len(prompt) :], True)]
        done = whole
    return pieces


def _example(pieces: list[tuple[str, bool]], tokenizer: Tokenizer, where: Conversation, max_length: int) -> Example:
    ids = tokenizer.begin()
    mask = [False] * len(ids)
    for text, learned in pieces:
        piece = tokenizer.encode(text)
        if not learned:
            marks = [False] * len(piece)
        else:
            ends = [at for at, token in enumerate(piece) if token in tokenizer.end_ids]
            if not ends and tokenizer.eos_id is not None:  # a template that forgets to end a turn
                piece, ends = [*piece, tokenizer.eos_id], [len(piece)]
            last = ends[0] if ends else len(piece) - 1  # what the template writes after the end is not the model's
            marks = [at <= last for at in range(len(piece))]
        ids += piece
        mask += marks
    cut = len(ids) > max_length
    return Example(
        np.array(ids[:max_length], np.int32), np.array(mask[:max_length], np.bool_), where.file, where.row, cut
    )
