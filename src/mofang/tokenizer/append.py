"""Extend a byte-level BPE: go on learning merges where its makers stopped, and append them.

The base cuts the texts first; new merges join what it left. They rank after every old one and never make an old
token, so a text is cut as before and the new merges join neighbours of that: `parts` of the new tokens, put one after
the other, are exactly the old tokens. Text that holds nothing of the script is cut as before. Names of special tokens
are written into the vocabulary, because a tokenizer.json numbers them by their place after it.
"""

import heapq
import itertools
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import replace

from tokenizers import Tokenizer as Backend

from mofang.tokenizer.base import Tokenizer
from mofang.tokenizer.extend import Extension, Lines, Plan, Tell, fits_bytes
from mofang.tokenizer.fast import Fast, bytes_of, name_of

LEAST = 2
"""A pair that was seen once is no word."""
TELL_EVERY = 100

Pair = tuple[int, int]


def extend(base: Tokenizer, lines: Lines, plan: Plan, tell: Tell) -> Extension:
    """As many merges as the plan's size, or fewer when the texts hold no more."""
    assert isinstance(base.backend, Fast)
    backend, n_old = base.backend.backend, base.n_vocab
    tell("cut", 0, 0)
    words = _words(backend, lines(), plan.script)
    names: list[bytes] = [base.backend.data(token_id) for token_id in range(n_old)]
    taken = {bytes_of(name) for name in backend.get_vocab(with_added_tokens=False)}

    def allowed(data: bytes) -> bool:
        return data not in taken and fits_bytes(data, plan.script)

    merges = learn(words, names, plan.size, allowed, lambda done: tell("learn", done, plan.size))
    state = json.loads(backend.to_str())
    vocab, pairs = state["model"]["vocab"], state["model"]["merges"]
    for token in state["added_tokens"]:
        vocab.setdefault(token["content"], token["id"])
    for number, (left, right) in enumerate(merges):
        spelled = [name_of(names[left]), name_of(names[right])]
        pairs.append(spelled if not pairs or isinstance(pairs[0], list) else " ".join(spelled))
        vocab["".join(spelled)] = n_old + number
    made = replace(base, backend=Fast(Backend.from_str(json.dumps(state))))
    return Extension(made, n_old, "byte-bpe-append", n_short=plan.size - len(merges))


def parts(extension: Tokenizer, n_old: int) -> dict[int, list[int]]:
    """The old tokens that each new token is made of."""
    assert isinstance(extension.backend, Fast)
    model = json.loads(extension.backend.backend.to_str())["model"]
    vocab: dict[str, int] = model["vocab"]
    found: dict[int, list[int]] = {}
    for merge in model["merges"]:
        left, right = merge if isinstance(merge, list) else merge.split(" ")
        token_id = vocab[left + right]
        if token_id >= n_old:
            halves = (vocab[left], vocab[right])
            found[token_id] = [part for half in halves for part in found.get(half, [half])]
    return found


def _words(backend: Backend, lines: Iterable[str], script: str) -> list[tuple[list[int], int]]:
    """What the base cuts text into before its merges, as old tokens, with counts; only where something can be new."""
    counts: Counter[str] = Counter()
    for line in lines:
        text = backend.normalizer.normalize_str(line) if backend.normalizer else line
        counts.update(word for word, _ in backend.pre_tokenizer.pre_tokenize_str(text))
    found = []
    for word, count in counts.items():
        if script == "all" or any(fits_bytes(letter.encode(), script) for letter in set(bytes_of(word).decode())):
            ids = [piece.id for piece in backend.model.tokenize(word)]
            if len(ids) > 1:
                found.append((ids, count))
    return found


def learn(
    words: list[tuple[list[int], int]],
    names: list[bytes],
    size: int,
    allowed: Callable[[bytes], bool],
    tell: Callable[[int], None] = lambda done: None,
) -> list[Pair]:
    """Byte pair encoding from where `words` stand: the most frequent allowed pair, joined everywhere, `size` times.

    `names` are the tokens' bytes; the new tokens' are appended to it. Ties go to the smaller ids. Returns the pairs.
    """
    counts: Counter[Pair] = Counter()
    places: defaultdict[Pair, set[int]] = defaultdict(set)
    verdicts: dict[Pair, bool] = {}

    def may(pair: Pair) -> bool:
        if pair not in verdicts:
            verdicts[pair] = allowed(names[pair[0]] + names[pair[1]])
        return verdicts[pair]

    for number, (ids, count) in enumerate(words):
        for pair in itertools.pairwise(ids):
            if may(pair):
                counts[pair] += count
                places[pair].add(number)
    heap = [(-count, pair) for pair, count in counts.items()]
    heapq.heapify(heap)
    made: list[Pair] = []
    made_names: set[bytes] = set()
    while heap and len(made) < size:
        negative, pair = heapq.heappop(heap)
        if counts[pair] != -negative:  # stale; the pair is in the heap again with its count of now
            continue
        if -negative < LEAST:
            break
        joined = names[pair[0]] + names[pair[1]]
        if joined in made_names:  # the same bytes by another way: one token has one name
            del counts[pair]
            continue
        made_names.add(joined)
        new = len(names)
        names.append(joined)
        made.append(pair)
        changed: set[Pair] = set()
        for number in sorted(places.pop(pair)):
            ids, count = words[number]
            after = _joined(ids, pair, new)
            if len(after) == len(ids):
                continue
            for old in itertools.pairwise(ids):
                if may(old):
                    counts[old] -= count
                    changed.add(old)
            for fresh in itertools.pairwise(after):
                if may(fresh):
                    counts[fresh] += count
                    places[fresh].add(number)
                    changed.add(fresh)
            words[number] = (after, count)
        for each in changed:
            if counts[each] >= LEAST:
                heapq.heappush(heap, (-counts[each], each))
        if len(made) % TELL_EVERY == 0:
            tell(len(made))
    return made


def _joined(ids: list[int], pair: Pair, new: int) -> list[int]:
    out: list[int] = []
    for token_id in ids:
        if out and out[-1] == pair[0] and token_id == pair[1]:
            out[-1] = new
        else:
            out.append(token_id)
    return out
