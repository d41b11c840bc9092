"""One example as training sees it: its text with what is learned marked, for people who check before they wait."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, groupby
from pathlib import Path
from typing import Any

from mofang.data.encode import Example, examples, is_usable
from mofang.data.readers import Layout, files_of, rows
from mofang.data.rows import Row
from mofang.errors import Unreadable
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
    paths: Sequence[Path], tokenizer: Tokenizer, *, max_length: int, n: int, layout: Layout | None = None
) -> tuple[dict[str, Any], list[Example]]:
    """What files of examples become: counts of all with the first `n` for programs, and these `n` themselves.

    Read one batch at a time, whatever the size of the files. Raises as readers and encode.
    """
    named = [files_of(path) for path in paths]
    counts = dict.fromkeys(("n_rows", "n_examples", "n_tokens", "n_supervised", "n_cut", "n_dropped"), 0)
    lengths: Counter[int] = Counter()
    first: list[Example] = []

    def counted() -> Iterator[Row]:
        for row in chain.from_iterable(rows(file, layout or Layout()) for files, _ in named for file in files):
            counts["n_rows"] += 1
            yield row

    for together in examples(counted(), tokenizer, max_length=max_length):
        if not is_usable(together):
            counts["n_dropped"] += len(together)
            continue
        for one in together:
            counts["n_examples"] += 1
            counts["n_tokens"] += len(one.ids)
            counts["n_supervised"] += one.n_supervised
            counts["n_cut"] += one.cut
            lengths[len(one.ids)] += 1
            if len(first) < n:
                first.append(one)
    if not counts["n_rows"]:
        raise Unreadable("data.empty", path=", ".join(map(str, paths)))
    found = {
        **counts,
        "share_supervised": counts["n_supervised"] / max(1, counts["n_tokens"]),
        "lengths": histogram(lengths, max_length),
        "skipped": [str(path) for _, others in named for path in others],
        "examples": [shape(example, tokenizer) for example in first],
    }
    return found, first


def histogram(lengths: Mapping[int, int], longest: int) -> list[dict[str, int]]:
    """{"from", "to", "n"} of each range of lengths: doubling from 16, the last one ends at `longest`. Empty ends are
    left out."""
    bars = []
    low = 1
    while low <= longest:
        high = min(longest, max(16, 2 * (low - 1)))
        bars.append({"from": low, "to": high, "n": sum(n for length, n in lengths.items() if low <= length <= high)})
        low = high + 1
    full = [number for number, bar in enumerate(bars) if bar["n"]]
    return bars[full[0] : full[-1] + 1] if full else []


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
