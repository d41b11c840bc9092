"""A training whose processes each keep a part of every weight, gradient and optimizer state: PyTorch's FSDP2.

    a layer computes, forward or backward     its weights are put together from all processes' parts, and let go behind it
    a layer's gradients                       are summed, and each process keeps what belongs to its parts
    a checkpoint, the result                  are whole: put together tensor by tensor, written by the first process

Frozen weights lie in parts, too. All processes must go through the model equally often, since each needs the others'
parts: one that has fewer rows computes one more for nothing. The weights are at hand only while the model's own modules
compute (or within `parts.at_hand`), so the fast path, which reads them itself, is not taken.

Source: torch.distributed.fsdp.fully_shard. Only gloo between CPUs was run: no GPU was at hand.
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.distributed_c10d import _set_pg_timeout
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

from mofang.errors import Invalid
from mofang.train import machine, parts, tuning
from mofang.train.world import Ranks

T = TypeVar("T")


class Sharded(Ranks):
    """One of several processes, each with its part of the model."""

    in_parts = True

    def __init__(self, hang: timedelta) -> None:
        super().__init__(hang)
        self.mesh = init_device_mesh(machine.device(self.local_rank).type, (self.size,))

    def check(self, recipe: Any) -> None:
        if recipe.tune == "new_rows":  # keeps old rows by a hook on the weight, of which a process has other rows
            raise Invalid("train.not_in_parts", param="tune", name="tune", value=recipe.tune)
        if recipe.quantize_base != "none":
            raise Invalid("train.not_in_parts", param="quantize_base", name="quantize_base", value=recipe.quantize_base)

    def load(self, make: Callable[[], nn.Module], device: torch.device, dtype: torch.dtype) -> nn.Module:
        """The processes of a machine read the model one after the other: its memory holds it whole only once."""
        sizes: list[Any] = [None] * self.size
        dist.all_gather_object(sizes, self.local_size)
        found: list[nn.Module] = []
        for turn in range(max(sizes)):
            if turn == self.local_rank:
                found.append(self._shared_out(make(), dtype))
            dist.barrier()
        return found[0]

    def _shared_out(self, model: Any, dtype: torch.dtype) -> nn.Module:
        policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
        told: dict[str, Any] = {"mesh": self.mesh, "mp_policy": policy, "reshard_after_forward": True}
        for block in tuning.blocks(model):
            fully_shard(block, **told)
        fully_shard(model, **told)
        for part in model.modules():
            if isinstance(part, FSDPModule):  # sums, as the loop divides by what the whole step weighs
                part.set_gradient_divide_factor(1.0)
                part.set_force_sum_reduction_for_comms(True)
        model.at_hand = lambda work: work()
        register_fsdp_forward_method(model, "at_hand")
        return model

    def begin_steps(self) -> None:
        super().begin_steps()
        _set_pg_timeout(self.hang, self.mesh.get_group())

    def evenly(self, rows: Sequence[T], filler: T) -> list[tuple[T, bool]]:
        counts: list[Any] = [None] * self.size
        dist.all_gather_object(counts, len(rows))
        return [*((row, True) for row in rows), *[(filler, False)] * (max(counts) - len(rows))]

    def add_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Summed already, in the backward pass."""

    def align(self, tensors: Sequence[torch.Tensor]) -> None:
        """Every part is in one process only."""

    def clip(self, parameters: Sequence[nn.Parameter], longest: float) -> float:
        norm: Any = nn.utils.clip_grad_norm_(parameters, longest)
        return float(parts.whole(norm).item())

    def whole(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        found: dict[str, torch.Tensor] = {}
        for name, tensor in tensors.items():
            together = parts.whole(tensor.detach())
            if self.rank == 0:
                found[name] = together.contiguous().cpu()
        return found
