"""How well a tokenizer cuts texts: characters and bytes per token, in all and by script, and what goes wrong.

A token that holds characters of several scripts (" 3", "。我") is shared among them by bytes, so the scripts' tokens
add up to all tokens. Characters per token, not tokens per word: Chinese has no words to count.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from mofang.tokenizer.base import Tokenizer
from mofang.tokenizer.scripts import SCRIPTS, script_of

EXAMPLES = 3
"""Lines that do not come back whole, which are kept to be shown."""


@dataclass
class Share:
    """A script's part. `tokens` is a sum of shares, hence no whole number."""

    characters: int = 0
    bytes: int = 0
    tokens: float = 0.0

    def shape(self) -> dict[str, Any]:
        return {**asdict(self), "characters_per_token": self.characters / self.tokens if self.tokens else None}


@dataclass
class Report:
    """What `measure` found. Per-token figures are None where there were no tokens."""

    n_characters: int = 0
    n_bytes: int = 0
    n_tokens: int = 0
    n_lines: int = 0
    n_changed: int = 0
    """Lines whose tokens do not give them back: normalized, or characters without a token."""
    changed: list[dict[str, str]] = field(default_factory=list)
    n_unaligned: int = 0
    """Lines left out of `scripts`: their tokens' bytes are not the line's."""
    scripts: dict[str, Share] = field(default_factory=lambda: {name: Share() for name in SCRIPTS})
    used: Counter[int] = field(default_factory=Counter)

    @property
    def characters_per_token(self) -> float | None:
        return self.n_characters / self.n_tokens if self.n_tokens else None

    @property
    def bytes_per_token(self) -> float | None:
        return self.n_bytes / self.n_tokens if self.n_tokens else None

    @property
    def chinese_per_token(self) -> float | None:
        """On Chinese characters and their marks alone."""
        both = (self.scripts["han"], self.scripts["cjk_marks"])
        tokens = sum(each.tokens for each in both)
        return sum(each.characters for each in both) / tokens if tokens else None

    def shape(self) -> dict[str, Any]:
        return {
            "n_characters": self.n_characters,
            "n_bytes": self.n_bytes,
            "n_tokens": self.n_tokens,
            "n_lines": self.n_lines,
            "characters_per_token": self.characters_per_token,
            "bytes_per_token": self.bytes_per_token,
            "chinese_per_token": self.chinese_per_token,
            "scripts": {name: share.shape() for name, share in self.scripts.items() if share.characters},
            "n_used": len(self.used),
            "n_changed": self.n_changed,
            "changed": self.changed,
            "n_unaligned": self.n_unaligned,
        }


def measure(tokenizer: Tokenizer, lines: Iterable[str]) -> Report:
    """Cut each line by itself. Line ends are not counted: which tokens they take is no matter of language."""
    report = Report()
    data = _Pieces(tokenizer)
    letters: Counter[str] = Counter()
    whole: Counter[int] = Counter()
    for line in lines:
        ids = tokenizer.encode(line)
        raw = line.encode()
        report.n_lines += 1
        report.n_characters += len(line)
        report.n_bytes += len(raw)
        report.n_tokens += len(ids)
        report.used.update(ids)
        back = tokenizer.decode(ids)
        if back != line:
            report.n_changed += 1
            if len(report.changed) < EXAMPLES:
                report.changed.append({"line": line, "back": back})
        joined = b"".join([data[token_id] for token_id in ids])
        before = len(joined) - len(raw)  # the space that SentencePiece puts before a text, or none
        if joined != b" " * before + raw:
            report.n_unaligned += 1
            continue
        letters.update(line)
        broken = [n for n, token_id in enumerate(ids) if token_id in data.broken]
        whole.update(ids)
        if broken:
            whole.subtract([ids[n] for n in broken])
            _share_broken(report, line, [data[token_id] for token_id in ids], set(broken), before)
    for letter, n in letters.items():
        share = report.scripts[script_of(letter)]
        share.characters += n
        share.bytes += n * len(letter.encode())
    for token_id, n in whole.items():
        raw = data[token_id]
        for letter in raw.decode() if n else "":
            report.scripts[script_of(letter)].tokens += n * len(letter.encode()) / len(raw)
    return report


class _Pieces(dict[int, bytes]):
    """A token's bytes, asked for once; `broken` are those that are no whole characters."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__()
        self._cutter = tokenizer.backend
        self.broken: set[int] = set()

    def __missing__(self, token_id: int) -> bytes:
        self[token_id] = data = self._cutter.data(token_id)
        try:
            data.decode()
        except UnicodeDecodeError:
            self.broken.add(token_id)
        return data


def _share_broken(report: Report, line: str, pieces: list[bytes], broken: set[int], before: int) -> None:
    """Share the tokens that hold parts of characters among the scripts of the characters that they are parts of."""
    scripts = ["space"] * before
    for character in line:
        scripts += [script_of(character)] * len(character.encode())
    start = 0
    for number, piece in enumerate(pieces):
        if number in broken:
            for kind, n_bytes in Counter(scripts[start : start + len(piece)]).items():
                report.scripts[kind].tokens += n_bytes / len(piece)
        start += len(piece)


def dead(tokenizer: Tokenizer) -> list[int]:
    """Ids of pieces that no text becomes: rows of the model that are never trained and never read."""
    return tokenizer.backend.dead()
