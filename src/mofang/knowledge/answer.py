"""From passages to a prompt that a small model can follow, and from its answer to the sources that it cites.

Documents are data. Their text stands in one delimited block of the last user turn, never in the system's, and what
could close that block or be read as a chat template's control token is defused: an order in a document is a sentence to
be quoted, not to be followed. Passages go in whole; what does not fit the budget is left out and said.
"""

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace

from mofang.engine.base import ChatEngine
from mofang.knowledge.base import Hit
from mofang.knowledge.marks import marks
from mofang.messages import Message, Source
from mofang.strings import say, where
from mofang.text.languages import language_of

MAX_SOURCES = 4
"""More than these confuse a small model, and cost it time to read."""
MAX_MERGED = 1_400
"""Characters that neighbouring passages are joined up to: about 900 tokens."""
MAX_GAP = 2
"""Characters of white space between neighbours: an empty line."""
_CONTROL = re.compile(
    r"""
      </?\s*(?:资料|sources?)\b[^>\n]{0,80}>?                     # our own block, also left open
    | <\|[^<>|\n]{1,40}\|> | <｜[^<>｜\n]{1,40}｜>               # ChatML, Llama 3, Phi, GLM; DeepSeek
    | </?(?:s|bos|eos|unk|pad|think|start_of_turn|end_of_turn|tool_call|tool_response)>  # Llama 2, Gemma, Qwen
    | \[/?(?:INST|SYS|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS|gMASK)\] | <</?SYS>>  # Mistral, Llama 2
    """,
    re.VERBOSE | re.IGNORECASE,
)
_WEAKER = str.maketrans("<>[]|｜", "‹›［］¦¦")
_FOOTNOTE = re.compile(r"(?<![A-Za-z0-9_)\]])[\[【]\s*(\d{1,3})\s*[\]】]")
"""A document's own [3], which is not our source 3; an index in code (a[3]) stays."""

_NOT_FOUND = re.compile(
    r"(?:资料|来源|文档)[里中]?(?:没有|未|并未|并没有)(?:找到|提及|提到|说明|相关)|not found in the sources", re.I
)


@dataclass(frozen=True, slots=True)
class Grounding:
    """What to send to the model, and what it was given."""

    messages: list[Message]
    sources: list[Source]
    query: str
    """What was searched for."""
    notices: list[str] = field(default_factory=list)
    answer: str = ""
    """The answer itself: with its mark where one is stored (knowledge/stored.py), or that there is none
    (knowledge/evidence.py); "": the model is to write it."""
    refused: bool = False


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
    lang = language_of(query)
    found = _merged(_distinct(hits))[:MAX_SOURCES]
    if not found:
        said = say("knowledge.nothing_found", names="、".join(names), query=query, lang=lang)
        return Grounding(_prompt(messages, [], lang), [], query, [said])
    sources: list[Source] = []
    for hit in found:
        trial = [*sources, source_of(len(sources) + 1, hit)]
        if await engine.count_tokens(_prompt(messages, trial, lang)) <= max_prompt_tokens:
            sources = trial
    if not sources:
        return Grounding(list(messages), [], query, [say("knowledge.no_room", lang=lang)])
    notices = []
    if len(sources) < len(found):
        notices.append(say("knowledge.sources_left_out", found=len(found), used=len(sources), lang=lang))
    return Grounding(_prompt(messages, sources, lang), sources, query, notices)


def refused(grounding: Grounding, names: Sequence[str]) -> Grounding:
    """The same with the answer that the bases hold nothing on it. The nearest passages stay, for a person to judge."""
    lang = language_of(grounding.query)
    said = say("knowledge.refused", query=grounding.query, names="、".join(names), lang=lang)
    return replace(grounding, answer=said, refused=True)


def says_not_found(answer: str) -> bool:
    """Whether an answer says, as the rules ask it to, that the sources do not hold what was asked."""
    return bool(_NOT_FOUND.search(answer))


def mark_cited(answer: str, sources: Sequence[Source]) -> list[Source]:
    """The sources, those whose number the answer carries marked."""
    numbers = marks(answer)
    return [replace(source, cited=source.number in numbers) for source in sources]


def _distinct(hits: Sequence[Hit]) -> list[Hit]:
    """The same words in two documents are worth the room of one."""
    seen: dict[str, Hit] = {}
    for hit in hits:
        seen.setdefault(" ".join(hit.text.split()), hit)
    return list(seen.values())


def _merged(hits: Sequence[Hit]) -> list[Hit]:
    """Neighbouring passages of one document as one, at the place of the best of them, as long as it stays short enough
    to leave room for others."""
    merged: list[Hit] = []
    for hit in hits:
        swallowed: list[int] = []  # two, when it closes the gap between them
        for place, other in enumerate(merged):
            if _touch(other, hit):
                hit = _joined(hit, other) if swallowed else _joined(other, hit)
                swallowed.append(place)
        if swallowed:
            merged[swallowed[0]] = hit
            merged = [other for place, other in enumerate(merged) if place not in swallowed[1:]]
        else:
            merged.append(hit)
    return merged


def _touch(one: Hit, other: Hit) -> bool:
    """Whether two passages stand under the same headings with nothing but white space between them, and are not too long
    together."""
    same = (one.knowledge, one.document_id, one.headings) == (other.knowledge, other.document_id, other.headings)
    short = max(one.end, other.end) - min(one.start, other.start) <= MAX_MERGED
    return same and short and 0 <= max(one.start, other.start) - min(one.end, other.end) <= MAX_GAP


def _joined(best: Hit, other: Hit) -> Hit:
    first, second = sorted((best, other), key=lambda hit: hit.start)
    between = "\n" * min(2, second.start - first.end)
    return replace(
        best,
        text=first.text + between + second.text,
        start=first.start,
        end=second.end,
        page=first.page,
        box=first.box,
        place=first.place,
        lead=first.lead,
    )


def source_of(number: int, hit: Hit) -> Source:
    """A hit as a numbered source."""
    return Source(
        number=number,
        knowledge=hit.knowledge,
        document_id=hit.document_id,
        title=hit.title,
        text=hit.text,
        start=hit.start,
        end=hit.end,
        page=hit.page,
        box=hit.box,
        place=hit.place,
        lead=hit.lead,
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
        turns[last] = _asked(turns[last], say("knowledge.question", sources=block, lang=lang))
    # One worked example: without it a 0.5B model answers with bare numbers or not at all (docs/log.md, 2026-11-24).
    asked, told = say("knowledge.example_question", lang=lang), say("knowledge.example_answer", lang=lang)
    example = [Message("user", asked), Message("assistant", told)] if sources else []
    return [Message("system", "\n\n".join([*system, rules])), *example, *turns]


def _asked(turn: Message, before: str) -> Message:
    """The question with the sources before it; pictures and other parts stay where they are."""
    if isinstance(turn.content, list):
        return replace(turn, content=[{"type": "text", "text": before}, *turn.content])
    return replace(turn, content=before + turn.text)


def _shown(source: Source, lang: str) -> str:
    numbered = replace(source, place=replace(source.place, paragraph=None)) if source.place else source
    place = " > ".join((source.title, *where(asdict(numbered), lang, joint=" > ")))
    body = "\n".join(part for part in (source.lead, source.text.strip()) if part)
    return f"[{source.number}] {defuse(' '.join(place.split()))}\n{defuse(body)}"


def defuse(text: str) -> str:
    """A source's text in which nothing closes its block, is a template's control token, or passes for our number."""
    return _FOOTNOTE.sub(r"(\1)", harmless(text))


def harmless(text: str) -> str:
    """A text of others in which nothing is a template's control token."""
    return _CONTROL.sub(lambda match: match.group().translate(_WEAKER), text)
