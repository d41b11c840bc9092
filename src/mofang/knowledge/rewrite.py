"""A follow-up question made to stand by itself, by the local model: "那第二年呢" is nothing that can be searched for.

The model may lose what was asked, or put in what nobody said, so its sentence is taken only with guard rails: it holds
no word that the conversation does not hold, and where it lost a word of the question, the question is searched with it.
What is searched for is always shown. Without a usable sentence the previous question is put before this one.
"""

import re
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Literal

from mofang.engine.base import ChatEngine
from mofang.messages import Message, Sampling
from mofang.strings import say
from mofang.text.fold import fold
from mofang.text.languages import HAN, language_of
from mofang.text.words import query_words

SHORT_QUESTION = 10
"""Characters; a question that short may lean on the one before it."""
MAX_TOKENS = 64
TURNS = 4
"""Of the conversation that the model is shown, the newest."""
MAX_TURN = 200
"""Characters of each of them."""
PRONOUN = re.compile(
    r"(?:它|他|她|这|那|此|其中|该|上述|上面|前面|刚才|还有|另外|然后|所以|为什么呢|怎么做"
    r"|(?:it|its|this|that|these|those|they|them|and|but|so|then|also|what about|how about|why)\b)",
    re.IGNORECASE,
)
_LABEL = re.compile(r"^\s*(?:改写(?:后)?(?:的问题)?|问题|rewritten(?: question)?|question)\s*[:：]\s*", re.IGNORECASE)
_QUOTES = "\"'“”‘’「」《》 \n"


@dataclass(frozen=True, slots=True)
class Query:
    """What to search for."""

    text: str
    how: Literal["asked", "rewritten", "joined"] = "asked"


async def query_of(messages: Sequence[Message], engine: ChatEngine | None) -> Query:
    """The last question, made to stand by itself when it leans on what was said before.

    engine: what rewrites it; None: the question before is put in front of it.
    """
    turns = [message for message in messages if message.role in ("user", "assistant") and message.text.strip()]
    questions = [turn.text.strip() for turn in turns if turn.role == "user"]
    if not questions:
        return Query("")
    last = questions[-1]
    if len(questions) == 1 or not (len(last) <= SHORT_QUESTION or PRONOUN.match(fold(last))):
        return Query(last)
    joined = Query(f"{questions[-2]} {last}", "joined")
    if engine is None:
        return joined
    before = turns[: max(place for place, turn in enumerate(turns) if turn.role == "user")]
    found = _sentence(await _written(before, last, engine))
    return checked(found, last, [turn.text for turn in before]) or joined


def checked(sentence: str, question: str, said: Sequence[str]) -> Query | None:
    """The model's sentence as a query; None for one that cannot be used."""
    if not sentence or len(sentence) > len(question) + max(map(len, said), default=0) + 10:
        return None
    written, told = fold(sentence), fold("\n".join([*said, question]))
    if any(not _held(word, told) for word in query_words(sentence)):
        return None  # invented
    if all(_held(word, fold(question)) for word in query_words(sentence)):
        return None  # nothing added
    lost = [word for word in query_words(question) if word not in written and not PRONOUN.match(word)]
    return Query(f"{sentence} {question}" if lost else sentence, "rewritten")


def _held(word: str, text: str) -> bool:
    """Whether a text says a word: a Han word by its characters, since in other company it is cut otherwise."""
    return word in text or (HAN.fullmatch(word) is not None and all(character in text for character in word))


async def _written(before: Sequence[Message], question: str, engine: ChatEngine) -> str:
    lang = language_of(question)
    shown = "\n".join(
        say(f"knowledge.rewrite_{turn.role}", text=" ".join(turn.text.split())[:MAX_TURN], lang=lang)
        for turn in before[-TURNS:]
    )
    prompt = [
        Message("system", say("knowledge.rewrite_rules", lang=lang)),
        Message("user", say("knowledge.rewrite_example_question", lang=lang)),
        Message("assistant", say("knowledge.rewrite_example_answer", lang=lang)),
        Message("user", say("knowledge.rewrite_question", history=shown, question=question, lang=lang)),
    ]
    sampling = Sampling(max_tokens=MAX_TOKENS, temperature=0.0, stop=("\n",))
    async with aclosing(engine.chat(prompt, sampling)) as deltas:  # type: ignore[type-var]
        return "".join([delta.content async for delta in deltas])


def _sentence(text: str) -> str:
    """The first line of what the model wrote, without a label or quotes around it."""
    line = next((line for line in text.splitlines() if line.strip()), "")
    return _LABEL.sub("", line).strip(_QUOTES)
