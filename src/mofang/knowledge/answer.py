"""From passages to a prompt that a small model can follow, and from its answer to the sources that it cites.

Documents are data. What stands in a source cannot end the block that it is put into, and the block stands in the last
user turn, after the rules: an order in a document is a sentence to be quoted, not to be followed.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from mofang.engine.base import ChatEngine
from mofang.knowledge.base import Hit
from mofang.messages import Message, Source
from mofang.strings import say

MAX_SOURCES = 4
"""More than these confuse a small model, and cost it time to read."""
SHORT_QUESTION = 10
"""Characters; a question that short may lean on the one before it."""
_PRONOUN = re.compile(
    r"^(那|它|他|她|这|其|还有|然后|为什么呢|怎么做|\b(it|that|this|they|and|then|why)\b)", re.IGNORECASE
)
_HAN = re.compile(r"[\u4e00-\u9fff]")
_MARK = re.compile(r"[\[【［]\s*(\d{1,3}(?:\s*[,，、]\s*\d{1,3})*)\s*[\]】］]")
_CLOSING = re.compile(r"</?\s*(资料|sources?)\b[^>]*>", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Grounding:
    """What to send to the model, and what it was given."""

    messages: list[Message]
    sources: list[Source]
    query: str
    """What was searched for."""
    notices: list[str] = field(default_factory=list)


def query_of(messages: Sequence[Message]) -> tuple[str, bool]:
    """What to search for, and whether the previous question was joined because the last one leans on it."""
    questions = [message.text.strip() for message in messages if message.role == "user" and message.text.strip()]
    if not questions:
        return "", False
    last = questions[-1]
    if len(questions) > 1 and (len(last) <= SHORT_QUESTION or _PRONOUN.match(last)):
        return f"{questions[-2]} {last}", True
    return last, False


async def compose(
    messages: Sequence[Message],
    hits: Sequence[Hit],
    *,
    query: str,
    names: Sequence[str],
    engine: ChatEngine,
    max_prompt_tokens: int,
) -> Grounding:
    """The messages with as many numbered sources as fit, best first, each whole."""
    lang = "zh" if _HAN.search(query) or not query else "en"
    sources = [_source(number, hit) for number, hit in enumerate(_merged(hits)[:MAX_SOURCES], start=1)]
    if not sources:
        said = say("knowledge.nothing_found", names="、".join(names), query=query, lang=lang)
        return Grounding(_prompt(messages, [], lang), [], query, [said])
    found = len(sources)
    while sources:
        prompt = _prompt(messages, sources, lang)
        if await engine.count_tokens(prompt) <= max_prompt_tokens:
            break
        sources.pop()
    else:
        return Grounding(list(messages), [], query, [say("knowledge.no_room", lang=lang)])
    notices = []
    if len(sources) < found:
        notices.append(say("knowledge.sources_left_out", found=found, used=len(sources), lang=lang))
    return Grounding(prompt, sources, query, notices)


def mark_cited(answer: str, sources: Sequence[Source]) -> list[Source]:
    """The sources, those whose number the answer carries marked: [1], 【1】, [1,2], [1][2]."""
    numbers = {int(number) for group in _MARK.findall(answer) for number in re.findall(r"\d+", group)}
    return [replace(source, cited=source.number in numbers) for source in sources]


def _merged(hits: Sequence[Hit]) -> list[Hit]:
    """Neighbouring passages of one document as one, at the place of the better one."""
    merged: list[Hit] = []
    for hit in hits:
        for place, other in enumerate(merged):
            same = (other.knowledge, other.document_id) == (hit.knowledge, hit.document_id)
            if same and other.headings == hit.headings and 0 <= _gap(other, hit) <= 2:
                first, second = sorted((other, hit), key=lambda one: one.start)
                between = "\n" if second.start > first.end else ""
                text = first.text + between + second.text[max(0, first.end - second.start) :]
                merged[place] = replace(other, text=text, start=first.start, end=max(first.end, second.end))
                break
        else:
            merged.append(hit)
    return merged


def _gap(one: Hit, other: Hit) -> int:
    """Characters between two spans; 0 when they touch or overlap, negative never."""
    return max(0, max(one.start, other.start) - min(one.end, other.end))


def _source(number: int, hit: Hit) -> Source:
    return Source(
        number=number,
        knowledge=hit.knowledge,
        document_id=hit.document_id,
        title=hit.title,
        text=hit.text,
        start=hit.start,
        end=hit.end,
        page=hit.page,
        headings=hit.headings,
        score=hit.score,
    )


def _prompt(messages: Sequence[Message], sources: Sequence[Source], lang: str) -> list[Message]:
    """The conversation with the rules before it and the sources in its last user turn."""
    system = [message.text for message in messages if message.role in ("system", "developer")]
    turns = [message for message in messages if message.role not in ("system", "developer")]
    rules = say("knowledge.rules" if sources else "knowledge.rules_without_sources", lang=lang)
    last = max((place for place, turn in enumerate(turns) if turn.role == "user"), default=None)
    if last is not None and sources:
        block = "\n\n".join(_shown(source, lang) for source in sources)
        question = say("knowledge.question", sources=block, question=turns[last].text, lang=lang)
        turns[last] = replace(turns[last], content=question)
    # One worked example: without it a 0.5B model answers with bare numbers or not at all (docs/log.md, 2026-11-24).
    asked, told = say("knowledge.example_question", lang=lang), say("knowledge.example_answer", lang=lang)
    example = [Message("user", asked), Message("assistant", told)] if sources else []
    return [Message("system", "\n\n".join([*system, rules])), *example, *turns]


def _shown(source: Source, lang: str) -> str:
    where = " > ".join((source.title, *source.headings))
    return f"[{source.number}] {_harmless(where)}\n{_harmless(source.text.strip())}"


def _harmless(text: str) -> str:
    """A source's text without anything that could close the block it stands in, or pass for a number of ours."""
    return _CLOSING.sub("", text)
