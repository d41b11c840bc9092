"""Texts to measure or learn from: a file, or all text files below a folder, in any usual encoding."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from mofang.errors import Invalid, Unreadable
from mofang.text.encodings import decode

SUFFIXES = (".txt", ".md", ".jsonl")
LINE = 2_000
"""Longest stretch, in characters, that is cut at once: pairs across stretches are not counted."""

HELD_OUT = 20
"""Of so many lines one is kept to measure on, and not learned from."""


def files(paths: Iterable[Path]) -> list[Path]:
    """The files meant, in order. Raises Invalid for no path, one that is not there, a folder without texts, and where
    not a word stands in any; Unreadable as `lines`."""
    found: list[Path] = []
    named = list(paths)
    suffixes = " ".join(SUFFIXES)
    if not named:
        raise Invalid("tokenizer.no_text_named", param="texts", suffixes=suffixes)
    for given in named:
        path = given.expanduser()
        if not path.exists():
            raise Invalid("tokenizer.no_such_text", param="texts", path=given)
        below = sorted(each for each in path.rglob("*") if each.suffix.lower() in SUFFIXES) if path.is_dir() else [path]
        found += [each for each in below if each.is_file()]
    if next(lines(found), None) is None:
        raise Invalid("tokenizer.no_text", param="texts", path=", ".join(map(str, named)), suffixes=suffixes)
    return found


def lines(found: Iterable[Path]) -> Iterator[str]:
    """Their lines without ends, none empty or longer than LINE. Of a .jsonl, each line's strings.

    Raises Unreadable for a file that is no text.
    """
    for path in found:
        try:
            text = decode(path.read_bytes()).text
        except OSError as error:
            raise Unreadable("tokenizer.broken_text", path=path, why=error) from error
        except Unreadable as error:
            raise Unreadable("tokenizer.not_a_text", path=path, why=error.message()) from error
        for number, line in enumerate(text.splitlines(), start=1):
            for part in _strings(path, number, line) if path.suffix.lower() == ".jsonl" else [line]:
                for start in range(0, len(part), LINE):
                    if part[start : start + LINE].strip():
                        yield part[start : start + LINE]


def held_out(found: Iterable[Path]) -> Iterator[str]:
    """Every HELD_OUT-th line."""
    return (line for number, line in enumerate(lines(found)) if number % HELD_OUT == HELD_OUT - 1)


def learned(found: Iterable[Path]) -> Iterator[str]:
    """The other lines."""
    return (line for number, line in enumerate(lines(found)) if number % HELD_OUT != HELD_OUT - 1)


def _strings(path: Path, number: int, line: str) -> Iterator[str]:
    """Every string value of a JSON line, but for those below "role" and "from", which are names and no text."""
    if not line.strip():
        return
    try:
        waiting = [json.loads(line)]
    except ValueError as error:
        raise Unreadable("tokenizer.broken_text", path=f"{path}:{number}", why=error) from error
    while waiting:
        value = waiting.pop(0)
        if isinstance(value, str):
            yield from value.splitlines()
        elif isinstance(value, dict):
            waiting = [each for key, each in value.items() if key not in ("role", "from")] + waiting
        elif isinstance(value, list):
            waiting = value + waiting
