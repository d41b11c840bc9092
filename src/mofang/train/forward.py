"""A packed row through the model up to the head: the states from which the supervised tokens are predicted."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mofang.data.encode import Example
from mofang.train import attention
from mofang.train.decoder import Decoder, alike, fitting, probe
from mofang.train.kernels import PLAIN, Kernels
from mofang.train.loss import head_loss, token_logps
from mofang.train.parts import at_hand, give_up_pass


@dataclass(frozen=True, slots=True)
class Forward:
    """`mixed`: some trained weights are float32 where `dtype` is computed with, so that autocast joins the two.
    `decoder`: the fast path, where the model has one. `packs`: whether a row may hold several examples and the head is
    ours to compute; else each example goes through the whole model alone, as transformers has it."""

    model: Any
    device: torch.device
    dtype: torch.dtype
    mixed: bool
    decoder: Decoder | None = None
    kernels: Kernels = PLAIN
    packs: bool = True

    @classmethod
    def of(
        cls, model: Any, device: torch.device, dtype: torch.dtype, mixed: bool, kernels: Kernels, longest: int
    ) -> "Forward":
        """The fastest way that gives what the model itself gives, for examples of at most `longest` tokens."""
        apart = cls(model, device, dtype, mixed, kernels=kernels, packs=False)
        if not at_hand(model, lambda: apart._may_pack(longest)) or not apart._has_plain_head():
            model.set_attn_implementation("sdpa" if model._supports_sdpa else "eager")
            return apart
        return cls(model, device, dtype, mixed, fitting(model, dtype, kernels), kernels)

    @property
    def path(self) -> str:
        """Which way it goes: "fast", "plain" or "apart"."""
        return "fast" if self.decoder else "plain" if self.packs else "apart"

    def loss(self, examples: Sequence[Example]) -> torch.Tensor:
        """Sum of -log p over the supervised tokens of the examples."""

        def work() -> torch.Tensor:
            hidden, targets, _ = self._states(examples)
            return head_loss(hidden, self._head(), targets, self.kernels)

        return at_hand(self.model, work) if self.packs else -self._apart(examples).sum()

    def logps(self, examples: Sequence[Example]) -> torch.Tensor:
        """(n,): each example's sum of log p over its supervised tokens, float32."""

        def work() -> torch.Tensor:
            hidden, targets, owners = self._states(examples)
            sums = torch.zeros(len(examples), dtype=torch.float32, device=self.device)
            return sums.index_add(0, owners, token_logps(hidden, self._head(), targets, self.kernels))

        return at_hand(self.model, work) if self.packs else self._apart(examples)

    def _apart(self, examples: Sequence[Example]) -> torch.Tensor:
        """What `logps` gives, by the model alone."""
        sums = []
        for example in examples:
            ids = torch.from_numpy(example.ids.astype(np.int64)).to(self.device)
            places = torch.from_numpy(example.mask[1:].nonzero()[0]).to(self.device)
            with self._types():
                logits = self.model(input_ids=ids[None], use_cache=False).logits[0]
            logps = logits[places].float().log_softmax(dim=-1)
            sums.append(logps.gather(1, ids[places + 1, None]).sum())
        return torch.stack(sums)

    @torch.no_grad()
    def _may_pack(self, longest: int) -> bool:
        """Whether two examples in one row have the states that each has alone.

        It is not so where a model numbers positions itself, or where its attention does more than attend (Gemma 2's
        cap); and a window that is shorter than an example is not ours either.
        """
        window = getattr(self.model.config, "sliding_window", None)
        if window and longest > window:
            return False
        ids = probe(self.model, self.device)
        self.model.eval()
        with self._types():
            self.model.set_attn_implementation("eager")
            alone = [self.model.base_model(input_ids=part[None], use_cache=False) for part in ids.split([9, 15])]
            self.model.set_attn_implementation(attention.install())
            try:
                got = self._body(ids, [9, 15])
            except attention.Unknown:
                give_up_pass(self.model)
                return False
        return alike(torch.cat([each.last_hidden_state[0] for each in alone]), got, self.dtype)

    @torch.no_grad()
    def _has_plain_head(self) -> bool:
        """Whether the model's logits are the states times the head's weight: no bias, no scale, no cap."""
        ids = torch.arange(8, device=self.device)[None]
        with self._types():
            wanted = self.model(input_ids=ids, position_ids=ids, segments=[8], use_cache=False).logits[0].float()
            got = at_hand(
                self.model, lambda: (self._body(ids[0], [8]).to(self.dtype) @ self._head().to(self.dtype).t()).float()
            )
        return bool((wanted - got).norm() < 0.02 * wanted.norm())

    @contextmanager
    def as_it_is(self) -> Iterator[Any]:
        """The model with transformers' own attention, evaluating: to generate with."""
        before, training = self.model.config._attn_implementation, self.model.training
        self.model.set_attn_implementation("sdpa" if self.model._supports_sdpa else "eager")
        self.model.eval()
        try:
            with self._types():
                yield self.model
        finally:
            self.model.set_attn_implementation(before)
            self.model.train(training)

    def _head(self) -> torch.Tensor:
        weight: torch.Tensor = self.model.get_output_embeddings().weight
        return weight

    def _states(self, examples: Sequence[Example]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Hidden states (n, H), the tokens that follow them (n,), and the number of the example of each (n,)."""
        parts = _laid(examples, share=self.device.type == "cpu")
        segments, parents = [len(part.ids) for part in parts], [part.parent for part in parts]
        ids = torch.from_numpy(np.concatenate([part.ids for part in parts])).long().to(self.device)
        places = torch.from_numpy(np.concatenate([part.mask for part in parts]).nonzero()[0]).to(self.device)
        owner = torch.from_numpy(np.repeat([part.owner for part in parts], segments)).to(self.device)
        if self.decoder:
            return self.decoder(ids, segments, places - 1, parents).to(self.dtype), ids[places], owner[places]
        with self._types():
            hidden = self._body(ids, segments, parents)
        return hidden[places - 1].to(self.dtype), ids[places], owner[places]

    def _body(self, ids: torch.Tensor, segments: list[int], parents: Sequence[int] = ()) -> torch.Tensor:
        """(n, H): the final states of a packed row."""
        places = attention.positions(segments, parents).to(self.device)
        told = {"position_ids": places, "segments": segments, "parents": parents}
        states: torch.Tensor = self.model.base_model(input_ids=ids[None], use_cache=False, **told).last_hidden_state[0]
        return states

    def _types(self) -> AbstractContextManager[object]:
        return torch.autocast(self.device.type, self.dtype) if self.mixed else nullcontext()


WORTH_SHARING = 8
"""Tokens."""


@dataclass(frozen=True, slots=True)
class _Part:
    """A segment of a row: what the example `owner` has for itself, or a beginning that several share, of which nothing
    is learned. `parent`: the number of the part that it continues, -1 for none."""

    ids: NDArray[Any]
    mask: NDArray[np.bool_]
    parent: int
    owner: int


def _laid(examples: Sequence[Example], *, share: bool) -> list[_Part]:
    """The examples as a row, each beginning that neighbours share once: that of all, and again within those, of a pair."""
    parts: list[_Part] = []

    def lay(numbers: Sequence[int], start: int, parent: int) -> None:
        group = [examples[number] for number in numbers]
        shared = _shared(group, start) if share else 0
        if shared:
            parts.append(_Part(group[0].ids[start : start + shared], np.zeros(shared, np.bool_), parent, numbers[0]))
            start, parent = start + shared, len(parts) - 1
        ahead = groupby(numbers, lambda number: examples[number].ids[start : start + WORTH_SHARING].tobytes())
        alike = [list(each) for _, each in ahead]
        if len(numbers) == 1 or not share or (len(alike) == 1 and not shared):
            alike = [[number] for number in numbers]
        for each in alike:
            if len(each) > 1:
                lay(each, start, parent)
                continue
            own = examples[each[0]]
            mask = own.mask[start:].copy()
            mask[0] = False  # nothing stands before the first token of an example; of a shared beginning's, see _shared
            parts.append(_Part(own.ids[start:], mask, parent, each[0]))

    lay(range(len(examples)), 0, -1)
    return parts


def _shared(examples: Sequence[Example], start: int = 0) -> int:
    """Tokens from `start` on that all examples have in common, before what is learned of any; 0 where they are too few to
    gain by."""
    if len(examples) < 2:
        return 0
    # The state that foretells an example's first learned token must be its own.
    until = min(int(example.mask.argmax()) - 1 for example in examples)
    if until - start < WORTH_SHARING:
        return 0
    first = examples[0].ids[start:until]
    same = np.logical_and.reduce([example.ids[start:until] == first for example in examples])
    shared = until - start if same.all() else int(same.argmin())
    return shared if shared >= WORTH_SHARING else 0
