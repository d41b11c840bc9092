"""Whether a base holds anything on what is asked: told before a model answers, by vectors, without a fixed cosine.

Cosines of some embedders all lie between .8 and .95, and what is near differs by base. So a question is compared to
everyday questions, which concern the base as little as anything does: a question whose nearest passage is no nearer
than theirs on average is not about anything in the base. Nothing is chosen here, the base and its embedder say it.
On three bases of Chinese manuals (2,560, 377 and 144 documents) this refused 58 to 62 of 100 questions about other
things, and 0 to 2 of 100 about the base's own (docs/log.md, 2026-11-25). It cannot tell what is missing from a manual
that speaks of everything around it; that is for the model to say, which has read the sources.

Words are evidence by themselves: of a product, a command, an error code embedders know little. Only the first question
of a conversation is refused: a later one may ask to shorten, to translate, to go on.
"""

from collections.abc import Sequence
from sqlite3 import Connection

import numpy as np

from mofang.engine.base import Vectors
from mofang.knowledge.base import Hit
from mofang.knowledge.legs import Legs
from mofang.knowledge.store import Store, Vector, commit
from mofang.messages import Message

ENOUGH_WORDS = 1 / 3
"""Of a query's information. Of questions about other things, 58 to 62 of 100 are refused at a third, 58 to 71 at a half;
what a small base of short documents says in other words is safer at a third."""


class Usual:
    """How near a base's nearest passage is to an everyday question, on average: once for each state of a base."""

    def __init__(self, legs: Legs) -> None:
        self._legs = legs
        self._means: dict[tuple[str, str, str], float] = {}

    def is_near(self, store: Store, vector: Vector, everyday: Vectors, lang: str) -> bool:
        """Whether a passage of the base is nearer to `vector` (d,) than that; of an empty base none is. Blocks."""
        with store.read() as connection:
            key = (str(store.path), commit(connection).token, lang)
            if key not in self._means:
                self._means = {kept: mean for kept, mean in self._means.items() if kept[0] != key[0]}
                self._means[key] = float(np.mean([self._nearest(store, connection, one) for one in everyday]))
            return self._nearest(store, connection, vector) > self._means[key]

    def _nearest(self, store: Store, connection: Connection, vector: Vector) -> float:
        notices: list[str] = []
        ids = self._legs.dense(store, connection, vector, 1, None, notices)
        return max(self._legs.cosines(store, connection, ids, vector).values(), default=-1.0)


def has_words(hits: Sequence[Hit]) -> bool:
    """Whether a passage holds ENOUGH_WORDS of the query."""
    return any(hit.coverage >= ENOUGH_WORDS for hit in hits)


def is_first(messages: Sequence[Message]) -> bool:
    """Whether nothing was answered yet."""
    return not any(message.role == "assistant" for message in messages)
