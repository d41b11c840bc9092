"""Folding: texts that a reader takes for the same compare equal. For search only; what is shown is never folded.

NFKC makes full-width letters, digits and punctuation half-width (Ｇ→G, ：→:) and takes ligatures apart; case is
folded; traditional characters become simplified ones by OpenCC's tables of phrases and characters (頭髮→头发 and
發財→发财, 乾燥→干燥 and 乾隆→乾隆). A word of Taiwan's stays that word (軟體→软体).
"""

import unicodedata
from functools import cache
from typing import Any


def fold(text: str) -> str:
    """NFKC, case folding, 繁→简. Lengths may change: offsets into the result are not offsets into `text`."""
    if text.isascii():
        return text.lower()
    return simplified(unicodedata.normalize("NFKC", text).casefold())


def simplified(text: str) -> str:
    """繁→简 alone; simplified text stays as it is but for the few words that a phrase of the table is also."""
    if text.isascii():
        return text
    try:
        return str(_converter().convert(text))
    except UnicodeEncodeError:  # half of a surrogate pair, which is no text: nothing to convert by
        return text


@cache
def _converter() -> Any:
    from opencc import OpenCC  # 30 ms, for who folds nothing but ASCII too much

    return OpenCC("t2s")
