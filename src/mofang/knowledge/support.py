"""Which source an unmarked answer rests on: for small models, which answer from a source and forget to name it.

A sentence rests on the source that holds most of its character pairs, when that is most of them. This finds quotation
and near-quotation, which is what a small model does with its sources; it says nothing about a free rendering, whose
sentence stays without a mark. Measured on 12 questions about Mofang's own documents, see docs/log.md.
"""

from collections.abc import Sequence

from mofang.messages import Source
from mofang.text.pairs import pairs_of
from mofang.text.sentences import sentences

MIN_SHARE = 0.6
"""Of a sentence's character pairs; unrelated Chinese sentences on one subject share a fifth to a third."""
MIN_PAIRS = 4
"""A sentence of fewer ("不会。") could come from anywhere."""
MAX_MARKS = 3


def supporting(answer: str, sources: Sequence[Source]) -> list[int]:
    """Numbers of the sources that sentences of `answer` rest on, in the answer's order, each once."""
    held = {source.number: pairs_of(source.text) for source in sources}
    found: list[int] = []
    for start, end in sentences(answer):
        pairs = pairs_of(answer[start:end])
        if len(pairs) < MIN_PAIRS or not held:
            continue
        best = max(held, key=lambda number: len(pairs & held[number]))
        if len(pairs & held[best]) >= MIN_SHARE * len(pairs) and best not in found:
            found.append(best)
    return found[:MAX_MARKS]
