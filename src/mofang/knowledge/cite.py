"""Marks of an answer, judged while it is written: a mark stays when its sentence rests on that source.

A small model puts [1] behind what source 1 never said. So a mark is held back until it is whole, its sentence is looked
for in the source that it names, and a mark without support is not let through; where another source holds the sentence,
the mark names that one. It also answers from a source and forgets to name it: a sentence that ends without a mark gets
that of the source that holds most of it. What is kept tells the span of the source that it rests on, which pages
highlight. Support is the share of the sentence's character pairs that stand in a few neighbouring sentences of the
source, those of the question left out: a small model begins with its words, and they are no claim. This finds quotation
and near-quotation, which is what a small model does with its sources; a free rendering stays without an added mark.

Between languages there are no shared characters: there a mark goes to the source with the sentence nearest by vectors,
and stays where its own is as near. Within a language vectors do not tell: a sentence of another help page on the
subject was nearer than the page's own next sentences 64 times in 100; an English page's own sentence was the nearest of
400 pages 88 times (docs/log.md, 2026-11-25). So vectors decide nothing where characters can.
"""

import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from mofang.knowledge.marks import BEGUN, LONGEST, MARK, OPENS, numbers
from mofang.messages import Source
from mofang.text.languages import language_of
from mofang.text.pairs import Pairs, pairs_of
from mofang.text.sentences import sentences

MIN_PAIRS = 4
"""A sentence of fewer character pairs ("不会。") could come from anywhere."""
KEEP = 0.4
"""Share of a sentence's character pairs that its source must hold: below it, a mark is dropped. Chinese sentences on one
subject that do not say the same share a fifth to a third."""
MOVE = 0.6
"""Share at which another source takes over a mark that its own does not support, and at which a forgotten one is added."""
AS_NEAR = 0.01
"""Of a cosine: what a source may be farther than the nearest one and keep its mark."""
WINDOW = 3
"""Neighbouring sentences of a source that may together support one sentence."""
WORTH = 0.12
"""What a further sentence has to add to the share."""
_INDEXED = re.compile(r"[A-Za-z0-9_)\]]$")
_NO_PROSE = ("|", "#", "```")
"""How lines begin that a mark would break: a table's row, a heading, a fence."""


Vectors = Callable[[str, Sequence[str]], Awaitable[NDArray[np.float32]]]
"""(base, texts) → (n, d), each of length 1, by that base's embedder; a base without vectors gives (n, 0)."""


@dataclass(frozen=True, slots=True)
class Citation:
    """A mark that was let through."""

    number: int
    share: float
    """Of the sentence's character pairs, those found in the span; 1.0 for sentences too short to be judged. Between
    languages the cosine."""
    start: int
    end: int
    """The span of the document that supports the sentence, end exclusive."""


@dataclass
class Citing:
    """One answer's text as it comes. `push` and `close` return what may be shown."""

    sources: Sequence[Source]
    vectors: Vectors | None = None
    """None: what the sources say in another language is not judged."""
    question: str = ""
    citations: list[Citation] = field(default_factory=list)
    dropped: int = 0
    moved: int = 0
    added: int = 0

    def __post_init__(self) -> None:
        self._asked = pairs_of(self.question)
        self._by_number = {source.number: _Searchable(source) for source in self.sources}
        self._said = ""
        """What was let through, without marks: sentences are looked for here."""
        self._shown = 0
        """Characters of it that were shown: white space waits, since a mark may still have to come before it."""
        self._under_way = 0
        """Where in it the sentence begins that has not been followed by another."""
        self._judged_at = -1
        """Where in it the last mark stood, kept or not."""
        self._held = ""
        self._marked: set[int] = set()
        """Numbers that the sentence under way carries already."""

    async def push(self, text: str) -> str:
        self._held += text
        shown: list[str] = []
        while self._held:
            opening = next((place for place, one in enumerate(self._held) if one in OPENS), None)
            if opening is None:
                shown.append(self._let(self._held))
                self._held = ""
                break
            shown.append(self._let(self._held[:opening]))
            self._held = self._held[opening:]
            if self._is_index():
                shown.append(self._let(self._held[0]))
                self._held = self._held[1:]
                continue
            whole = MARK.match(self._held)
            if whole:
                shown.append(await self._judge(whole[0], numbers(whole[1])))
                self._held = self._held[whole.end() :]
            elif len(self._held) < LONGEST and BEGUN.fullmatch(self._held):
                break  # it may become one
            else:
                shown.append(self._let(self._held[0]))
                self._held = self._held[1:]
        return "".join(shown)

    def close(self) -> str:
        """What was held back when the answer ended: half a mark is text."""
        rest = self._let(self._held)
        if self._held:
            self._judged_at = len(self._said)
        self._held = ""
        return rest + self._finish([*sentences(self._said, self._under_way)]) + self._show(len(self._said))

    def spans(self, number: int) -> tuple[tuple[int, int], ...]:
        """Where in its document a source supports the answer: ascending, apart from each other."""
        merged: list[tuple[int, int]] = []
        for start, end in sorted({(one.start, one.end) for one in self.citations if one.number == number}):
            if merged and start <= merged[-1][1]:
                merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
            else:
                merged.append((start, end))
        return tuple(merged)

    def _let(self, text: str) -> str:
        """Text that is no mark: it, and before it the marks that the sentences which it completes should have had."""
        if not text:
            return ""
        self._said += text
        self._marked.clear()
        *complete, _ = [*sentences(self._said, self._under_way)] or [(0, 0)]
        return self._finish(complete) + self._show(len(self._said.rstrip()))

    def _show(self, until: int) -> str:
        """What of the text has not been shown yet."""
        start, self._shown = self._shown, max(self._shown, until)
        return self._said[start : self._shown]

    def _finish(self, complete: Sequence[tuple[int, int]]) -> str:
        """Sentences of the text that another follows, each with the mark that it lacks."""
        shown: list[str] = []
        for start, end in complete:
            self._under_way = end
            if self._judged_at <= start and (found := self._forgotten(start, end)):
                self.added += 1
                self.citations.append(found)
                shown += [self._show(end), " " * self._said[end - 1].isascii(), f"[{found.number}]"]
        return "".join(shown)

    def _forgotten(self, start: int, end: int) -> Citation | None:
        """The source that holds most of a sentence of the text."""
        pairs = self._claim(self._said[start:end])
        if len(pairs) < MIN_PAIRS or self._said.startswith(_NO_PROSE, start) or self._in_code(start):
            return None
        best = max((one.best(pairs) for one in self._by_number.values()), key=lambda one: one.share, default=None)
        return best if best and best.share >= MOVE else None

    def _is_index(self) -> bool:
        """Whether a bracket at this place is one of code: a[1], or within a block of it."""
        return bool(_INDEXED.search(self._said)) or self._in_code(len(self._said))

    def _in_code(self, place: int) -> bool:
        return self._said.count("```", 0, place) % 2 == 1

    async def _judge(self, mark: str, numbers: Sequence[int]) -> str:
        """The mark as it may stand: itself, with fewer or other numbers, or nothing."""
        sentence = _last_sentence(self._said)
        pairs = self._claim(sentence)
        kept: list[int] = []
        for number in numbers:
            found = await self._supported(number, sentence, pairs)
            if found is None:
                self.dropped += 1
            elif found.number not in kept and found.number not in self._marked:
                self.moved += found.number != number
                self.citations.append(found)
                kept.append(found.number)
        self._marked.update(kept)
        self._judged_at = len(self._said)
        let = mark if kept == list(numbers) else "".join(f"[{number}]" for number in kept)
        return self._show(len(self._said)) + let

    def _claim(self, sentence: str) -> Pairs:
        """The pairs that support is counted in; all of them, where the question leaves hardly any."""
        pairs = pairs_of(sentence)
        own = pairs - self._asked
        return own if len(own) >= MIN_PAIRS else pairs

    async def _supported(self, number: int, sentence: str, pairs: Pairs) -> Citation | None:
        named = self._by_number.get(number)
        if len(pairs) < MIN_PAIRS:
            return Citation(number, 1.0, named.source.start, named.source.end) if named else None
        lang = language_of(sentence)
        if named and named.lang != lang:
            return await self._nearest(named, sentence)
        own = named.best(pairs) if named else None
        if own and own.share >= KEEP:
            return own
        others = [other.best(pairs) for other in self._by_number.values() if other is not named]
        best = max(others, key=lambda found: found.share, default=None)
        return best if best and best.share >= MOVE else None

    async def _nearest(self, named: "_Searchable", sentence: str) -> Citation:
        """The source of `named`'s language with the nearest sentence; `named` itself where it is as near."""
        if self.vectors is None:
            return Citation(named.source.number, 1.0, named.source.start, named.source.end)
        of_its_kind = [one for one in self._by_number.values() if one.lang == named.lang]
        bases = dict.fromkeys(one.source.knowledge for one in of_its_kind)
        said = {base: (await self.vectors(base, [sentence]))[0] for base in bases}
        found = {one.source.number: await one.nearest(said[one.source.knowledge], self.vectors) for one in of_its_kind}
        own, best = found[named.source.number], max(found.values(), key=lambda one: one.share)
        return own if own.share >= best.share - AS_NEAR else best


class _Searchable:
    """A source's sentences as character pairs."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self._spans = list(sentences(source.text)) or [(0, len(source.text))]
        self._pairs = [pairs_of(source.text[start:end]) for start, end in self._spans]
        self._vectors: NDArray[np.float32] | None = None
        self.lang = language_of(source.text)

    async def nearest(self, said: NDArray[np.float32], vectors: Vectors) -> Citation:
        """The sentence of the source with the highest cosine to `said` (d,); the whole source without vectors."""
        if self._vectors is None:
            texts = [self.source.text[start:end] for start, end in self._spans]
            self._vectors = await vectors(self.source.knowledge, texts)
        if not self._vectors.size:
            return Citation(self.source.number, 0.0, self.source.start, self.source.end)
        cosines = self._vectors @ said
        place = int(cosines.argmax())
        start, end = self._spans[place]
        return Citation(self.source.number, float(cosines[place]), self.source.start + start, self.source.start + end)

    def best(self, pairs: Pairs) -> Citation:
        """The shortest run of sentences, WINDOW at most, that holds most of the pairs."""
        runs: list[tuple[float, float, int, int]] = []
        for first in range(len(self._spans)):
            held: set[tuple[str, str]] = set()
            for last in range(first, min(first + WINDOW, len(self._spans))):
                held |= self._pairs[last]
                share = len(pairs & held) / max(1, len(pairs))
                runs.append((share - WORTH * (last - first), share, first, last))
        _, share, first, last = max(runs, key=lambda run: run[0])
        start, end = self._spans[first][0], self._spans[last][1]
        return Citation(self.source.number, share, self.source.start + start, self.source.start + end)


def _last_sentence(said: str) -> str:
    """The sentence that a mark behind `said` belongs to: the one that is under way, else the one that has just ended."""
    spans = list(sentences(said[-1000:]))
    return said[-1000:][slice(*spans[-1])] if spans else ""
