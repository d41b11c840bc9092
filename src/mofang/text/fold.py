"""Folding: texts that a reader takes for the same compare equal. For search only; what is shown is never folded.

NFKC makes full-width letters, digits and punctuation half-width (Ｇ→G, ：→:) and takes ligatures apart; case is
folded. Traditional characters stay as they are: good 繁→简 needs a phrase table (OpenCC's), not single characters.
"""

import unicodedata


def fold(text: str) -> str:
    """NFKC and case folding. Lengths change: offsets into the result are not offsets into `text`."""
    if text.isascii():
        return text.lower()
    return unicodedata.normalize("NFKC", text).casefold()
