"""What each matrix of a model would lose as each type of blocks, measured on a text: the KL divergence that it adds.

A matrix that is off by E moves its layer's answers by E x, and with them the model's probabilities. To second order the
divergence (nats a token) is ½ E[(gᵀ E x)²], x the input of the matrix at a token and g the gradient of log p(y) at its
output, y drawn from the model's own probabilities: the Fisher information, with what the tokens of a text do together left
out. One reading forwards and one backwards serve all matrices and all types; the layers of the network go by one at a time.
Against
the divergence of models that were really computed, matrix by matrix: docs/log.md.

Shapes: n_sequences, length of the texts; T = sequences kept · length tokens are read backwards.
Source: Martens, New insights and perspectives on the natural gradient method (https://arxiv.org/abs/1412.1193), 9.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from mofang.export.layers import BATCH_TOKENS, Decoder, linears
from mofang.export.mixed.blocks import Blocks, fits

KEPT_TOKENS = 2048
"""Tokens that are also read backwards."""
ROWS = 256
"""Of a layer's matrix: so many stand for all, as the errors of its rows have nothing to do with one another."""
HEAD_ROWS = 4096
"""Of the head: those of the likeliest tokens, which stand for the others by their share of the probability."""
STAGES = ("watch", "weigh")
Tell = Callable[[str, int, int], None]
"""(stage, done, total) layers."""


@dataclass(frozen=True, slots=True)
class Matrix:
    """A linear module, or the embedding."""

    name: str
    shape: tuple[int, int]
    """(n_out, n_in)."""
    importance: NDArray[np.float32] | None
    """(n_in,) mean square of each input; None where nothing is multiplied by it (an embedding apart from its head)."""
    losses: dict[str, float]
    """Type → nats a token."""


@dataclass(slots=True)
class _Seen:
    """What the forward reading leaves."""

    states: list[Tensor]
    """Before each layer and behind the last, (n_kept, length, width)."""
    squares: dict[str, Tensor]
    """Module → sums of its inputs' squares, (n_in,) float32."""


def importances(decoder: Decoder, ids: NDArray[np.int64], place: Path, tell: Tell) -> list[Matrix]:
    """Matrices with their inputs' mean squares alone: what llama.cpp calls an importance matrix."""
    seen = _watch(decoder, torch.from_numpy(ids), 0, place, tell)
    return [
        Matrix(name, (0, len(sums)), (sums / ids.size).numpy(), {}) for name, sums in seen.squares.items()
    ]  # fmt: skip


def weigh(
    decoder: Decoder, ids: NDArray[np.int64], types: Sequence[str], blocks: Blocks, place: Path, seed: int, tell: Tell
) -> list[Matrix]:
    """Every linear module of the layers, the head and the embedding, with what each type that fits would cost.

    ids (n_sequences, length); `place`: a folder for the states between layers. Raises as Decoder.
    """
    texts = torch.from_numpy(ids)
    n_kept = max(1, min(len(texts), KEPT_TOKENS // texts.shape[1]))
    seen = _watch(decoder, texts, n_kept, place, tell)
    n = len(decoder)
    found: list[Matrix] = []
    tell(STAGES[1], 0, n + 2)
    head, gradients = _head(decoder, seen.states.pop(), types, blocks, seed)
    for index in reversed(range(n)):
        tell(STAGES[1], n - index, n + 2)
        layer, gradients = _layer(decoder, index, seen, gradients, types, blocks, ids.size)
        found[:0] = layer
    tell(STAGES[1], n + 1, n + 2)
    entry = _embedding(decoder, texts[:n_kept], seen.states[0], gradients, types, blocks)
    if decoder.tied:  # one matrix in two places, whose errors have little to do with one another
        both = {type: loss + entry.losses[type] for type, loss in head.losses.items()}
        return [Matrix(head.name, head.shape, head.importance, both), *found]
    return [entry, *found, head]


@torch.no_grad()
def _watch(decoder: Decoder, ids: Tensor, n_kept: int, place: Path, tell: Tell) -> _Seen:
    place.mkdir(parents=True, exist_ok=True)
    hidden = decoder.begin(ids, place / "states-0.bin")
    seen = _Seen([hidden.values[:n_kept].clone()], {})
    for index in range(len(decoder)):
        tell(STAGES[0], index, len(decoder))
        layer = decoder.load(index)
        with _squares(decoder, index, layer, seen.squares):
            after = decoder.advance(index, hidden, place / f"states-{index + 1}.bin", lambda row: None)
        decoder.unload(index)
        hidden.path.unlink()
        hidden = after
        seen.states.append(hidden.values[:n_kept].clone())
    hidden.path.unlink()
    return seen


@contextmanager
def _squares(decoder: Decoder, index: int, layer: nn.Module, squares: dict[str, Tensor]) -> Iterator[None]:
    """Add up the squares of the inputs of a layer's linear modules. Modules often share an input: it is squared once."""
    last: dict[int, tuple[Tensor, Tensor]] = {}

    def watch(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(module: nn.Module, given: tuple[Tensor, ...]) -> None:
            x = given[0]
            if last.get(0, (None,))[0] is not x:
                last[0] = (x, x.reshape(-1, x.shape[-1]).float().square().sum(0).cpu())
            squares[name] = squares[name] + last[0][1] if name in squares else last[0][1]

        return hook

    hooks = [
        module.register_forward_pre_hook(watch(f"{decoder.prefix}.{index}.{name}")) for name, module in linears(layer)
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _head(
    decoder: Decoder, states: Tensor, types: Sequence[str], blocks: Blocks, seed: int
) -> tuple[Matrix, Tensor]:  # fmt: skip
    """The head's matrix, and the gradients at `states` (n_kept, length, width), by which the layers are read back.

    Its logits move by d = E x, and the divergence is half the variance of d under the model's probabilities.
    """
    generator = torch.Generator().manual_seed(seed)
    gradients = torch.empty_like(states)
    whole, given = decoder.tensor(f"{decoder.head_name}.weight"), list[Tensor]()
    mass = torch.zeros(len(whole))
    head = decoder.model.get_output_embeddings()
    with decoder.head() as to_logits:
        hook = head.register_forward_pre_hook(lambda module, inputs: given.append(inputs[0].detach()[0]))
        for row in range(len(states)):
            own = states[row : row + 1].to(decoder.on).requires_grad_(True)
            logits = to_logits(own)[0].float()
            expected = logits.detach().softmax(-1).cpu()
            mass += expected.sum(0)
            drawn = torch.multinomial(expected, 1, generator=generator)[:, 0].to(decoder.on)
            cross_entropy(logits, drawn, reduction="sum").backward()
            assert own.grad is not None
            gradients[row] = own.grad[0]
        hook.remove()
        rows = mass.topk(min(HEAD_ROWS, len(mass))).indices
        with torch.no_grad():
            likely = torch.cat([head(each).float().softmax(-1)[:, rows.to(decoder.on)] for each in given])
    x, share = torch.cat(given).float(), float(mass[rows].sum() / mass.sum())
    importance, weight = x.square().mean(0).cpu().numpy(), whole[rows].float()
    losses = {}
    for type in types:
        if fits(type, weight.shape[1]):
            moved = x @ _error(type, weight, importance, blocks).t().to(x)
            variance = (likely * moved.square()).sum(-1) - (likely * moved).sum(-1).square()
            losses[type] = 0.5 * float(variance.mean()) / share
    return Matrix(decoder.head_name, _shape(whole), importance, losses), gradients


def _layer(
    decoder: Decoder, index: int, seen: _Seen, gradients: Tensor, types: Sequence[str], blocks: Blocks, n_tokens: int
) -> tuple[list[Matrix], Tensor]:
    """The matrices of a layer, and the gradients before it, given those behind it."""
    states = seen.states.pop() if index else seen.states[0]
    layer = decoder.load(index)
    inputs: dict[str, list[Tensor]] = {}
    outputs: dict[str, list[Tensor]] = {}

    def watch(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(module: nn.Module, given: tuple[Tensor, ...], made: Tensor) -> None:
            inputs.setdefault(name, []).append(given[0].detach().reshape(-1, given[0].shape[-1]))
            made.register_hook(lambda g: outputs.setdefault(name, []).append(g.reshape(-1, g.shape[-1])))

        return hook

    hooks = [module.register_forward_hook(watch(name)) for name, module in linears(layer)]
    before = torch.empty_like(gradients)
    count = max(1, BATCH_TOKENS // 4 // states.shape[1])
    for begin in range(0, len(states), count):
        part = slice(begin, begin + count)
        own = states[part].to(decoder.on).requires_grad_(True)
        decoder.run(index, own, begin).backward(gradients[part].to(decoder.on))
        assert own.grad is not None
        before[part] = own.grad
    for hook in hooks:
        hook.remove()
    found = []
    for name, _ in linears(layer):
        whole = f"{decoder.prefix}.{index}.{name}"
        weight = decoder.tensor(f"{whole}.weight")
        rows = torch.arange(0, len(weight), max(1, len(weight) // ROWS))
        some, share = weight[rows].float(), len(weight) / len(rows)
        importance = (seen.squares[whole] / n_tokens).numpy()
        x, g = torch.cat(inputs[name]).float(), torch.cat(outputs[name]).float()[:, rows]
        losses = {}
        for type in types:
            if fits(type, weight.shape[1]):
                error = _error(type, some, importance, blocks).to(x)
                losses[type] = 0.5 * share * float(((x @ error.t()) * g).sum(-1).square().mean())
        found.append(Matrix(whole, _shape(weight), importance, losses))
    decoder.unload(index)
    return found, before


def _embedding(
    decoder: Decoder, ids: Tensor, states: Tensor, gradients: Tensor, types: Sequence[str], blocks: Blocks
) -> Matrix:
    """The embedding as what layers are given: each token's row is off, and so are the states."""
    weight = decoder.tensor(f"{decoder.embedding_name}.weight")
    used, places = ids.unique(return_inverse=True)
    known = weight[used].float()
    rows, flat = known[places.flatten()], states.reshape(-1, states.shape[-1]).float()
    scale = float(
        (flat * rows).sum() / rows.square().sum().clamp(min=1e-30)
    )  # some families multiply what they look up
    g = gradients.reshape(-1, gradients.shape[-1]).float()
    losses = {}
    for type in types:
        if fits(type, weight.shape[1]):
            error = _error(type, known, None, blocks)[places.flatten()] * scale
            losses[type] = 0.5 * float((error * g).sum(-1).square().mean())
    return Matrix(decoder.embedding_name, _shape(weight), None, losses)


def _error(type: str, weight: Tensor, importance: NDArray[np.float32] | None, blocks: Blocks) -> Tensor:
    exact = weight.numpy()
    return torch.from_numpy(blocks.decode(type, blocks.encode(type, exact, importance), exact.shape[1])) - weight


def _shape(weight: Tensor) -> tuple[int, int]:
    n_out, n_in = weight.shape
    return n_out, n_in
