"""From bytes to text when nobody says which encoding: BOM, UTF-8, UTF-16, GB18030 (with GBK and GB2312), Big5.

An encoding is taken when the bytes are valid in it and the text it gives is plausible. GB18030 and Big5 accept nearly
the same byte pairs, so plausibility decides between them: the right one yields common characters and punctuation, the
wrong one rare ones. What was guessed is said in the result. Knows nothing of files or formats.
"""

import codecs
from collections import Counter
from dataclasses import dataclass

from mofang.errors import Unreadable

SAMPLE = 200_000
"""Bytes that are judged; the decision then holds for all of them."""

_BOMS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
# The most frequent characters of modern Chinese, both scripts: about a third of any running text.
_COMMON = frozenset(
    "的一是不了在人有我他这个们中来上大为和国地到以说时要就出会可也你对生能而子那得于着下自之年过发后作里用道行所然家种事成方多经么去"
    "法学如都同现当没动面起看定天分还进好小部其些主样理心她本前开但因只从想实日军者意无力它与长把机十民第公此已工使情明性知全三又关点"
    "正业外将两高间由问很最重并物手应战向头文体政美相见被利什二等产或新己制身果加西斯月话合回特代内信表化老给世位次度门任常先海通教儿"
    "這個們來為國說時會對於後過發裡經麼學現當沒動進樣開從實軍無與長機關點業將兩間問應戰頭體見產製話給門兒電資訊設"
    "請使用者檔案系統網頁軟體及各據點選項"
)
# The first level of each standard holds its common characters: charset, first and last lead byte.
_LEVEL_1 = {"gb18030": ("gb2312", 0xB0, 0xD7), "big5hkscs": ("big5", 0xA4, 0xC6)}
_PUNCTUATION = frozenset("，。、；：？！“”‘’「」『』《》（）【】…—　·")


@dataclass(frozen=True, slots=True)
class Decoded:
    """The text, its encoding as Python names it, and whether that was a guess from plausibility."""

    text: str
    encoding: str
    guessed: bool
    replaced: int = 0
    """Invalid bytes that became U+FFFD; 0 for nearly every file."""


def decode(data: bytes, declared: str = "") -> Decoded:
    """Text of `data`. `declared` is what the file itself says (an HTML meta tag); it is believed when it is valid.

    Line ends become "\\n", a byte order mark is dropped. Raises Unreadable: text.binary (NUL bytes, control
    characters) or text.unknown_encoding (valid in none of ours).
    """
    for bom, encoding in _BOMS:
        if data.startswith(bom):
            return _accept(data[len(bom) :], encoding, guessed=False)
    wide = _utf16_without_bom(data)
    if wide:
        return _accept(data, wide, guessed=True)
    if b"\0" in data[:SAMPLE] or _control_share(data[:SAMPLE]) > 0.02:
        raise Unreadable("text.binary")
    if _valid(data, "utf-8"):
        return _accept(data, "utf-8", guessed=False)
    if declared and _known(declared) and _valid(data, declared):
        return _accept(data, codecs.lookup(declared).name, guessed=False)
    # Of equals the first wins.
    scores = {name: _implausibility(data[:SAMPLE], name) for name in ("gb18030", "big5hkscs", "utf-8")}
    encoding, strangeness = min(scores.items(), key=lambda item: item[1])
    if strangeness > 0.9:
        raise Unreadable("text.unknown_encoding")
    return _accept(data, encoding, guessed=encoding != "utf-8")


def normalize_newlines(text: str) -> str:
    """CR LF and CR become LF."""
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


def _accept(data: bytes, encoding: str, *, guessed: bool) -> Decoded:
    text = data.decode(encoding, errors="replace")
    replaced = text.count("\ufffd")
    if replaced > max(3, len(text) // 20) or "\0" in text[:SAMPLE]:
        raise Unreadable("text.binary")
    return Decoded(normalize_newlines(text).removeprefix("\ufeff"), encoding, guessed, replaced)


def _known(name: str) -> bool:
    try:
        return codecs.lookup(name).name not in ("hex", "base64", "rot13", "zlib", "bz2", "uu", "quopri")
    except LookupError:
        return False


def _valid(data: bytes, encoding: str) -> bool:
    try:
        data.decode(encoding)
    except (UnicodeDecodeError, LookupError):
        return False
    return True


def _utf16_without_bom(data: bytes) -> str:
    """UTF-16 of either order, known by zero bytes on one side (Latin letters, line feeds) or by common characters."""
    sample = data[: SAMPLE & ~1]
    if len(sample) < 4 or len(data) % 2:
        return ""
    zeros_low, zeros_high = sample[0::2].count(0), sample[1::2].count(0)
    if not zeros_low and not zeros_high and not _control_share(sample) > 0:
        return ""
    scores = {name: _implausibility(sample, name) for name in ("utf-16-le", "utf-16-be")}
    encoding, strangeness = min(scores.items(), key=lambda item: item[1])
    controls = _control_share(sample.decode(encoding, errors="replace").encode())
    return encoding if strangeness < 0.5 and controls < 0.02 else ""


def _control_share(sample: bytes) -> float:
    controls = sum(sample.count(byte) for byte in range(32) if byte not in b"\t\n\r\f\x1b")
    return controls / max(1, len(sample))


def _implausibility(sample: bytes, encoding: str) -> float:
    """0: surely this encoding; 1: surely not. A character that the end of the sample cuts in two does not count."""
    whole = len(sample) < SAMPLE
    text = codecs.getincrementaldecoder(encoding)(errors="replace").decode(sample, final=whole)
    invalid = text.count("\ufffd") / max(1, len(text))
    if invalid > 0.05:
        return 1.0
    return min(1.0, _strangeness(text, encoding) + 10 * invalid)


def _strangeness(text: str, encoding: str) -> float:
    """How little the characters beyond ASCII look like Chinese, 0…1."""
    beyond = [character for character in text if character > "\x7f"]
    if not beyond:
        return 0.0
    counted = Counter(beyond)
    level_1 = _LEVEL_1.get(encoding, _LEVEL_1["gb18030"])
    familiar = sum(n * _familiarity(character, *level_1) for character, n in counted.items())
    return max(0.0, min(1.0, 1 - familiar / len(beyond)))


def _familiarity(character: str, charset: str, first: int, last: int) -> float:
    if character in _COMMON or character in _PUNCTUATION:
        return 1.0
    # Private use and control characters tell against an encoding more than a rare character does.
    if "\ue000" <= character <= "\uf8ff" or "\x80" <= character <= "\x9f":
        return -1.0
    if character > "\uffff":
        return 0.5 if character >= "\U0001f000" else 0.0
    code = character.encode(charset, errors="ignore")
    return 0.7 if len(code) == 2 and first <= code[0] <= last else 0.0
