"""A packed row through the model up to the head: the states from which the supervised tokens are predicted."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch

from mofang.data.encode import Example
from mofang.train import attention
from mofang.train.loss import head_loss, token_logps


@dataclass(frozen=True, slots=True)
class Forward:
    """`mixed`: some trained weights are float32 where `dtype` is computed with, so that autocast joins the two."""

    model: torch.nn.Module
    device: torch.device
    dtype: torch.dtype
    mixed: bool

    def loss(self, examples: Sequence[Example]) -> torch.Tensor:
        """Sum of -log p over the supervised tokens of the examples."""
        hidden, targets, _ = self._states(examples)
        return head_loss(hidden, self._head(), targets)

    def logps(self, examples: Sequence[Example]) -> torch.Tensor:
        """(n,): each example's sum of log p over its supervised tokens, float32."""
        hidden, targets, owners = self._states(examples)
        sums = torch.zeros(len(examples), dtype=torch.float32, device=self.device)
        return sums.index_add(0, owners, token_logps(hidden, self._head(), targets))

    def has_plain_head(self) -> bool:
        """Whether the model's logits are the states times the head's weight: no bias, no scale, no cap."""
        self.model.eval()
        ids = torch.arange(8, device=self.device)[None]
        told = {"input_ids": ids, "position_ids": ids, "segments": [8], "use_cache": False}
        with torch.no_grad(), self._types():
            wanted = self.model(**told).logits.float()
            got = (
                self.model.base_model(**told).last_hidden_state.to(self.dtype) @ self._head().to(self.dtype).t()
            ).float()
        return bool((wanted - got).norm() < 0.02 * wanted.norm())

    def _head(self) -> torch.Tensor:
        weight: torch.Tensor = self.model.get_output_embeddings().weight
        return weight

    def _states(self, examples: Sequence[Example]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Hidden states (n, H), the tokens that follow them (n,), and the number of the example of each (n,)."""
        ids = torch.from_numpy(np.concatenate([example.ids for example in examples])).long().to(self.device)
        segments = [len(example.ids) for example in examples]
        masks = [example.mask.copy() for example in examples]
        for mask in masks:
            mask[0] = False  # nothing stands before the first token of an example
        places = torch.from_numpy(np.concatenate(masks).nonzero()[0]).to(self.device)
        owner = torch.from_numpy(np.repeat(np.arange(len(examples)), segments)).to(self.device)
        with self._types():
            hidden = self.model.base_model(
                input_ids=ids[None],
                position_ids=attention.positions(segments).to(self.device),
                segments=segments,
                use_cache=False,
            ).last_hidden_state[0]
        return hidden[places - 1].to(self.dtype), ids[places], owner[places]

    def _types(self) -> AbstractContextManager[object]:
        return torch.autocast(self.device.type, self.dtype) if self.mixed else nullcontext()
