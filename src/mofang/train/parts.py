"""Tensors of which each process keeps a part (see sharded.py), beside those that a process has whole."""

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor

T = TypeVar("T")


def at_hand(model: Any, work: Callable[[], T]) -> T:
    """What `work` returns, which may read weights of `model` outside of its modules' own calls."""
    found: T = model.at_hand(work) if isinstance(model, FSDPModule) else work()
    return found


def give_up_pass(model: Any) -> None:
    """A pass through the model was left by an error: what was at hand for it is let go."""
    if isinstance(model, FSDPModule):
        model.reset_iter_state()


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor put together; every process must call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def part_of(tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """What this process keeps of a tensor that every process has, beside `like`, which has its shape."""
    if not isinstance(like, DTensor):
        return tensor
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def held_bytes(tensors: Iterable[torch.Tensor]) -> int:
    """Bytes that this process holds of the tensors."""
    kept = [(each.to_local() if isinstance(each, DTensor) else each).untyped_storage() for each in tensors]
    return sum({storage.data_ptr(): storage.nbytes() for storage in kept}.values())
