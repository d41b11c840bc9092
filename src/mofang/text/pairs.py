"""A text's neighbouring characters in pairs: how much of one text stands in another, without cutting words."""

from itertools import pairwise

from mofang.text.fold import fold

Pairs = frozenset[tuple[str, str]]


def bare(text: str) -> str:
    """Folded, its letters, digits and Han characters alone."""
    return "".join(character for character in fold(text) if character.isalnum())


def pairs_of(text: str) -> Pairs:
    """Each two that follow each other in `bare`."""
    return frozenset(pairwise(bare(text)))
