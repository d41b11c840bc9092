"""Old tokens that stand in like places of a text, the likest the most: after FOCUS (Dobler and de Melo, 2305.14481).

As in the paper, each token of the new tokenizer gets an auxiliary vector learned from texts of the language, and a new
row is the mixture of old rows whose shares are the sparsemax of the cosine similarities between those vectors. What
differs: the vectors come from counts instead of fastText, which would be a dependency of its own (window 5, positive
pointwise mutual information with contexts smoothed by 0.75, truncated SVD with the singular values' roots; Levy,
Goldberg and Dagan, TACL 2015); and a token that the texts hold too rarely is left to the next way, its parts, instead
of being drawn at random.
"""

from collections.abc import Iterator
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray

from mofang.errors import Invalid
from mofang.export.rows.blend import Blend, Lines, Tell
from mofang.tokenizer import Tokenizer

LEAST = 5
"""A token that the texts hold less often has no vector: its neighbours are chance."""
WINDOW = 5
"""Tokens to each side that are its context."""
WIDTH = 100
"""Of the vectors."""
SMOOTHING = 0.75
SEED = 0
TOGETHER = 1_000
"""Lines that are cut and counted at once."""
BLOCK = 256
"""New tokens that are compared at once."""


def blends(old: Tokenizer, new: Tokenizer, lines: Lines, tell: Tell) -> list[Blend | None]:
    """Raises Invalid for texts that hold no new token often enough, or no old one."""
    ids, vectors = auxiliary(*counted(new, lines, tell))
    is_old = ids < old.n_vocab
    if is_old.all() or not is_old.any():
        raise Invalid("export.texts_say_nothing", param="texts", least=LEAST)
    near, fresh = torch.from_numpy(ids[is_old]), ids[~is_old]
    of_old, of_new = vectors[torch.from_numpy(is_old)], vectors[torch.from_numpy(~is_old)]
    found: list[Blend | None] = [None] * (new.n_vocab - old.n_vocab)
    for start in range(0, len(fresh), BLOCK):
        shares = sparsemax(of_new[start : start + BLOCK] @ of_old.t())
        for token_id, row in zip(fresh[start : start + BLOCK].tolist(), shares, strict=True):
            some = row.nonzero()[:, 0]
            found[token_id - old.n_vocab] = Blend(near[some].tolist(), row[some])
    return found


def counted(
    tokenizer: Tokenizer, lines: Lines, tell: Tell
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """How often each token stands there (n_vocab,); pairs of tokens within WINDOW as left · n_vocab + right, sorted,
    and how often each stands there."""
    n = tokenizer.n_vocab
    times = np.zeros(n, np.int64)
    pairs, counts = np.empty(0, np.int64), np.empty(0, np.int64)
    done = 0
    for texts in _batches(lines()):
        cut = [np.asarray(one, np.int64) for one in tokenizer.encode_batch(texts)]
        ids = np.concatenate(cut)
        line = np.repeat(np.arange(len(cut)), [len(one) for one in cut])
        times += np.bincount(ids, minlength=n)
        keys = [pairs]
        for apart in range(1, WINDOW + 1):
            within = line[:-apart] == line[apart:]
            keys.append((ids[:-apart] * n + ids[apart:])[within])
        ones = np.ones(sum(map(len, keys)) - len(pairs), np.int64)
        pairs, place = np.unique(np.concatenate(keys), return_inverse=True)
        counts = np.bincount(place, np.concatenate([counts, ones]), len(pairs)).astype(np.int64)
        done += len(texts)
        tell(done)
    return times, pairs, counts


def auxiliary(
    times: NDArray[np.int64], pairs: NDArray[np.int64], counts: NDArray[np.int64]
) -> tuple[NDArray[np.int64], torch.Tensor]:
    """Tokens that were seen LEAST times in company, and their vectors of length 1, (n, at most WIDTH) float32."""
    place = np.full(len(times), -1)
    often = np.flatnonzero(times >= LEAST)
    place[often] = np.arange(len(often))
    left, right = place[pairs // len(times)], place[pairs % len(times)]
    both = (left >= 0) & (right >= 0)
    left, right, counts = left[both], right[both], counts[both]
    if not len(counts):
        return often[:0], torch.empty(0, 0)
    where = torch.from_numpy(np.stack([np.concatenate([left, right]), np.concatenate([right, left])]))
    beside = torch.from_numpy(np.concatenate([counts, counts])).double()
    seen = torch.sparse_coo_tensor(where, beside, (len(often),) * 2, check_invariants=False).coalesce()
    (rows, columns), values = seen.indices(), seen.values()
    marginal = torch.zeros(len(often), dtype=torch.double).index_add(0, rows, values)
    smoothed = marginal**SMOOTHING
    shares = smoothed[columns] / smoothed.sum()
    information = (values / (marginal[rows] * shares)).log()
    kept = information > 0
    matrix = torch.sparse_coo_tensor(
        torch.stack([rows[kept], columns[kept]]), information[kept].float(), seen.shape, check_invariants=False
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        u, s, _ = torch.svd_lowrank(matrix, q=min(WIDTH, len(often)), niter=4)
    vectors = u * s.clamp(min=0).sqrt()
    length = vectors.norm(dim=1)
    told = length > 1e-6  # others met nobody more often than by chance
    return often[told.numpy()], vectors[told] / length[told, None]


def sparsemax(scores: torch.Tensor) -> torch.Tensor:
    """Each row's nearest point among those of parts that are not negative and add up to 1 (Martins and Astudillo,
    arXiv 1602.02068): what scores much less than the best gets nothing. scores (m, n)."""
    ranked = scores.sort(dim=1, descending=True).values
    above = ranked.cumsum(dim=1) - 1
    number = torch.arange(1, scores.shape[1] + 1)
    n_kept = (ranked * number > above).sum(dim=1, keepdim=True)
    return (scores - above.gather(1, n_kept - 1) / n_kept).clamp(min=0)


def _batches(lines: Iterator[str]) -> Iterator[list[str]]:
    while texts := list(islice(lines, TOGETHER)):
        yield texts
