"""One example as training sees it: its text with what is learned marked, for people who check before they wait."""

from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from mofang.data.encode import Example, encode
from mofang.data.readers import read
from mofang.strings import say
from mofang.tokenizer import Tokenizer


def segments(example: Example, tokenizer: Tokenizer) -> Iterator[tuple[str, bool, int]]:
    """(text, whether it is learned, tokens) of each stretch, in order."""
    at = 0
    for learned, stretch in groupby(example.mask.tolist()):
        count = sum(1 for _ in stretch)
        yield tokenizer.decode(example.ids[at : at + count].tolist()), bool(learned), count
        at += count


def preview(example: Example, tokenizer: Tokenizer) -> str:
    """The example as text: 【…】 around what is learned."""
    parts = [f"【{text}】" if learned else text for text, learned, _ in segments(example, tokenizer)]
    head = say(
        "data.preview", path=example.file.name, row=example.row, n=len(example.ids), learned=example.n_supervised
    )
    return f"{head}\n{''.join(parts)}"


def survey(
    paths: Sequence[Path], tokenizer: Tokenizer, *, max_length: int, n: int
) -> tuple[dict[str, Any], list[Example]]:
    """What files of examples become: counts of all with the first `n` for programs, and these `n` themselves."""
    conversations = read(paths)
    encoded = encode(conversations, tokenizer, max_length=max_length)
    first = encoded.examples[:n]
    counts = {
        "n_rows": len(conversations),
        "n_examples": len(encoded.examples),
        "n_tokens": sum(len(example.ids) for example in encoded.examples),
        "n_supervised": sum(example.n_supervised for example in encoded.examples),
        "n_cut": encoded.n_cut,
        "n_dropped": len(encoded.dropped),
        "examples": [shape(example, tokenizer) for example in first],
    }
    return counts, first


def shape(example: Example, tokenizer: Tokenizer) -> dict[str, Any]:
    """The same for programs."""
    return {
        "file": str(example.file),
        "row": example.row,
        "n_tokens": len(example.ids),
        "n_supervised": example.n_supervised,
        "cut": example.cut,
        "segments": [
            {"text": text, "learned": learned, "n_tokens": count}
            for text, learned, count in segments(example, tokenizer)
        ],
        "ids": example.ids.tolist(),
    }
