"""What a training needs of being one of several processes; a process alone is the case in which there is nothing to do.

The examples of a step are shared out, each process adds up the gradients of its share, and the sums of all are what
every process steps by: rank and size change nothing that is learned. Decisions (stop, measure, end) are the first
process's, and the others hear them: two that read one file at different moments would wait for each other for ever.

All processes go through the same calls in the same order. Nothing here knows who started them (mofang.launch).
"""

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import _set_pg_timeout

from mofang.platform import loopback
from mofang.recipes.launchers import Several
from mofang.runs import Run, State, Stopped
from mofang.train import STRATEGIES

T = TypeVar("T")

PATIENCE = timedelta(days=1)
"""How long the others wait for one before training begins: the first may have a large corpus to tokenize. That one ended
is known at once."""
PARTED = re.compile(r"gloo|nccl|connection (was )?(closed|reset)|broken pipe|timed? ?out", re.IGNORECASE)
"""In what gloo says when another process is gone or silent: it has no class of its own for it."""
BUCKET = 1 << 23
"""Numbers that are summed in one go, 32 MB: fewer messages for many small tensors, and no second copy of large ones."""


class Lost(Exception):
    """Another process is gone, or does not answer."""


def is_loss(error: BaseException) -> bool:
    """Whether an error only says that another process is gone, or silent: that one knows the reason."""
    known = isinstance(error, Lost | dist.DistError)
    return known or (isinstance(error, RuntimeError) and bool(PARTED.search(str(error))))


class World:
    """A process alone."""

    rank, size = 0, 1
    local_rank, local_size = 0, 1
    """Among the processes of this machine."""
    in_parts: ClassVar[bool] = False
    """Whether each process keeps only a part of the model; see mofang.train.sharded."""

    def first(self, make: Callable[[], T]) -> T:
        """What the first process's `make` returns; the others wait for it and call nothing."""
        return make()

    def share(self, items: Sequence[T], cost: Callable[[T], int]) -> list[T]:
        """This process's part of `items`: each is in one part, and the parts cost about the same."""
        return list(items)

    def total(self, numbers: Mapping[str, float]) -> dict[str, float]:
        """The sums over all processes, each name of any of them."""
        return dict(numbers)

    def add(self, tensor: torch.Tensor) -> None:
        """Put the sum over all processes in its place."""

    def add_gradients(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        """The sums over all processes in the place of each's gradients; one that nobody has stays none."""

    def align(self, tensors: Sequence[torch.Tensor]) -> None:
        """The first process's values in the place of everybody's."""

    def check(self, recipe: Any) -> None:
        """Raises Invalid for a training that cannot be computed so."""

    def load(self, make: Callable[[], torch.nn.Module], device: torch.device, dtype: torch.dtype) -> torch.nn.Module:
        """The model that `make` reads, as this process keeps it; it computes in `dtype`."""
        return make().to(device)

    def begin_steps(self) -> None:
        """From here on no process has much to do that the others have not."""

    def evenly(self, rows: Sequence[T], filler: T) -> list[tuple[T, bool]]:
        """The rows that this process puts through the model, and whether each counts: where all must go through it
        equally often, one that has fewer computes `filler` for nothing."""
        return [(row, True) for row in rows]

    def clip(self, parameters: Sequence[torch.nn.Parameter], longest: float) -> float:
        """Shorten the gradient to `longest`. Returns its length before."""
        return torch.nn.utils.clip_grad_norm_(parameters, longest).item()

    def whole(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The tensors, whole, in the first process's main memory; nothing on the others, which must call it, too."""
        return {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}


ALONE = World()


class Ranks(World):
    """One of several processes, joined by torch.distributed: over gloo on CPUs, over NCCL between GPUs; each with the
    whole model.

    hang: how long one may keep the others waiting between two steps.
    """

    def __init__(self, hang: timedelta) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self.local_rank, self.local_size = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
        self.hang = hang

    def first(self, make: Callable[[], T]) -> T:
        told = [make() if self.rank == 0 else None]
        dist.broadcast_object_list(told, src=0)
        found: Any = told[0]
        return found

    def share(self, items: Sequence[T], cost: Callable[[T], int]) -> list[T]:
        parts: list[list[int]] = [[] for _ in range(self.size)]
        costs = [0] * self.size
        for number in sorted(range(len(items)), key=lambda number: -cost(items[number])):
            cheapest = costs.index(min(costs))
            parts[cheapest].append(number)
            costs[cheapest] += cost(items[number])
        return [items[number] for number in sorted(parts[self.rank])]

    def total(self, numbers: Mapping[str, float]) -> dict[str, float]:
        gathered: list[Any] = [None] * self.size
        dist.all_gather_object(gathered, dict(numbers))
        names = dict.fromkeys(name for each in gathered for name in each)
        return {name: sum(each.get(name, 0) for each in gathered) for name in names}

    def add(self, tensor: torch.Tensor) -> None:
        dist.all_reduce(tensor)

    def add_gradients(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        having = torch.tensor([parameter.grad is not None for parameter in parameters], dtype=torch.int32)
        having = having.to(parameters[0].device)
        dist.all_reduce(having)
        wanted = [each for each, count in zip(parameters, having.tolist(), strict=True) if count]
        for parameter in wanted:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        for bucket in _buckets([parameter.grad for parameter in wanted if parameter.grad is not None]):
            if len(bucket) == 1:
                dist.all_reduce(bucket[0])
                continue
            flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
            dist.all_reduce(flat)
            for gradient, summed in zip(bucket, flat.split([each.numel() for each in bucket]), strict=True):
                gradient.copy_(summed.view_as(gradient))

    def align(self, tensors: Sequence[torch.Tensor]) -> None:
        for tensor in tensors:
            dist.broadcast(tensor.data, src=0)

    def begin_steps(self) -> None:
        _set_pg_timeout(self.hang)

    def whole(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {} if self.rank else super().whole(tensors)


def _buckets(tensors: Sequence[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    """In order, as many together as are BUCKET numbers at most, or one that is larger."""
    bucket: list[torch.Tensor] = []
    for tensor in tensors:
        if bucket and sum(each.numel() for each in bucket) + tensor.numel() > BUCKET:
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket


def join(meeting: Path, launcher: Several) -> World:
    """Meet the others, as torchrun's variables in the environment say: by the file `meeting` on one machine, which opens
    no port to others; over TCP between several. (NCCL was never run: no GPU was at hand.)"""
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    told: dict[str, Any] = {}
    if size == int(os.environ["LOCAL_WORLD_SIZE"]):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback())
        told = {"store": dist.FileStore(str(meeting), size), "rank": rank, "world_size": size}
    backend = "gloo"
    if torch.cuda.is_available():
        # Ray lets a process see its own GPU alone, torchrun all of the machine's.
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
        backend = "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend, timeout=PATIENCE, **told)
    world: World = STRATEGIES.get(launcher.strategy)(timedelta(minutes=launcher.hang_minutes))
    return world


def leave() -> None:
    """Part in peace, when all have done what they came for."""
    dist.destroy_process_group()


# ---- a run that several processes work at ----


class Shared(Run):
    """A run's folder as each of several processes sees it: the first reads and writes, and the others hear what it read."""

    def __init__(self, folder: Path, world: World) -> None:
        super().__init__(folder)
        self.world = world
        self.own = Run(folder) if world.rank == 0 else _Reader(folder)

    def metrics(self, after: int = -1) -> list[dict[str, Any]]:
        return self.world.first(lambda: self.own.metrics(after))

    def samples(self) -> list[dict[str, Any]]:
        return self.world.first(self.own.samples)

    def stop_asked(self) -> bool:
        return self.world.first(self.own.stop_asked)

    def update(self, **changes: Any) -> State:
        return self.own.update(**changes)

    def note(self, text: str) -> None:
        self.own.note(text)

    def record(self, row: dict[str, Any]) -> None:
        self.own.record(row)

    def forget_metrics(self, beyond: int) -> None:
        self.own.forget_metrics(beyond)

    def keep_samples(self, step: int, rows: Sequence[dict[str, Any]]) -> None:
        self.own.keep_samples(step, rows)


class _Reader(Run):
    """A run's folder for a process that has nothing to say of it."""

    def update(self, **changes: Any) -> State:
        return self.state()

    def note(self, text: str) -> None: ...

    def record(self, row: dict[str, Any]) -> None: ...

    def forget_metrics(self, beyond: int) -> None: ...

    def keep_samples(self, step: int, rows: Sequence[dict[str, Any]]) -> None: ...


def of(run: Run) -> World:
    """The processes that work at `run`."""
    return run.world if isinstance(run, Shared) else ALONE


def in_turn(run: Run, work: Callable[[Run], T]) -> T:
    """`work` on the first process, then on the others, which find what it left; each goes through it alone, so that it
    need not be the same for all. Raises what `work` raises; Stopped, on all of them, when the first was stopped."""
    if not isinstance(run, Shared):
        return work(run)
    result: Any = None
    stopped: Stopped | None = None
    if run.world.rank == 0:
        try:
            result = work(run.own)
        except Stopped as error:
            stopped = error
    if run.world.first(lambda: stopped is not None):
        raise stopped or Stopped
    return result if run.world.rank == 0 else work(run.own)
