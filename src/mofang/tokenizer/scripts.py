"""Which script a character belongs to, coarsely: what a vocabulary is good at differs between these."""

import re
from functools import lru_cache

SCRIPTS: dict[str, "re.Pattern[str]"] = {
    "han": re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\u3007\U00020000-\U000323af]"),
    "cjk_marks": re.compile(r"[\u3000-\u303f\uff00-\uffef\u2014\u2018\u2019\u201c\u201d\u2026]"),
    "latin": re.compile(r"[A-Za-z\u00c0-\u024f]"),
    "digits": re.compile(r"[0-9]"),
    "space": re.compile(r"\s"),
    "other": re.compile(r"."),
}
"""In the order that they are asked. Chinese marks include the dashes and quotation marks that Chinese shares."""


@lru_cache(maxsize=1 << 17)
def script_of(character: str) -> str:
    """A name of SCRIPTS."""
    return next((name for name, pattern in SCRIPTS.items() if pattern.match(character)), "other")
