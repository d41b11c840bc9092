"""A training's state on disk, enough to go on bit for bit: trained weights, optimizer, position.

Random numbers are no part of it: the loop draws them anew for each step, from the seed.

    checkpoints/step-000050/{adapter_model.safetensors, optimizer.safetensors, state.json}

Tensors only, no pickle. A checkpoint is written aside and renamed, so a killed process leaves the one before.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from mofang.errors import Unreadable
from mofang.train import lora
from mofang.train.parts import part_of
from mofang.train.world import ALONE, World

BEST = "best.safetensors"
OPTIMIZER = "optimizer.safetensors"


@dataclass(frozen=True, slots=True)
class State:
    """What of a training is to be kept, whole; of several processes the first one alone has it."""

    weights: dict[str, torch.Tensor]
    optimizer: dict[str, torch.Tensor]

    @classmethod
    def of(cls, model: nn.Module, optimizer: torch.optim.Optimizer, world: World = ALONE) -> "State":
        """As it is now. All processes must ask for it."""
        kept = {
            f"{number}.{name}": value
            for number, values in optimizer.state_dict()["state"].items()
            for name, value in values.items()
        }
        return cls(world.whole(lora.named(model)), world.whole(kept))


def save(folder: Path, state: State, step: int, *, keep: int) -> Path:
    """Write the state after `step` steps, and drop all but the newest `keep`."""
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"step-{step:06d}"
    aside = folder / f".{target.name}.part"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    save_file(state.weights, str(aside / lora.WEIGHTS), metadata={"format": "pt"})
    save_file(state.optimizer, str(aside / OPTIMIZER))
    (aside / "state.json").write_text(json.dumps({"step": step}), encoding="utf-8")
    shutil.rmtree(target, ignore_errors=True)
    aside.rename(target)
    for old in found(folder)[:-keep]:
        shutil.rmtree(old)
    return target


def save_best(folder: Path, weights: dict[str, torch.Tensor], step: int) -> None:
    """Keep the trained weights, whole, in place of those kept before."""
    folder.mkdir(parents=True, exist_ok=True)
    aside = folder / f".{BEST}.part"
    save_file(weights, str(aside), metadata={"format": "pt", "step": str(step)})
    aside.replace(folder / BEST)


def load_best(folder: Path, model: nn.Module) -> None:
    """Put them back. Raises Unreadable for a damaged file."""
    try:
        tensors = load_file(str(folder / BEST))
    except Exception as error:  # safetensors has an error of its own
        raise Unreadable("train.checkpoint_broken", path=folder / BEST, why=error) from error
    lora.restore(model, tensors)


def found(folder: Path) -> list[Path]:
    """Complete checkpoints, the oldest first."""
    return sorted(path for path in folder.glob("step-*") if (path / "state.json").is_file())


def check(path: Path) -> None:
    """Raises Unreadable for a checkpoint that is cut off or empty; no tensor is read."""
    try:
        json.loads((path / "state.json").read_text(encoding="utf-8"))["step"]
        for name in (lora.WEIGHTS, OPTIMIZER):
            with safe_open(str(path / name), framework="pt"):  # says where it ends before it should
                pass
    except Exception as error:  # safetensors has an error of its own
        raise Unreadable("train.checkpoint_broken", path=path, why=error) from error


def load(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Put a checkpoint back; returns its step. Raises Unreadable for a damaged one."""
    try:
        step = int(json.loads((path / "state.json").read_text(encoding="utf-8"))["step"])
        adapter = load_file(str(path / lora.WEIGHTS))
        tensors = load_file(str(path / OPTIMIZER))
    except Exception as error:  # safetensors has an error of its own
        raise Unreadable("train.checkpoint_broken", path=path, why=error) from error
    lora.restore(model, adapter)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    values: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in tensors.items():
        number, dot, name = key.partition(".")
        if dot:  # else a state of random numbers, as an earlier version kept
            like = parameters[int(number)]
            values.setdefault(int(number), {})[name] = part_of(value, like) if value.shape == like.shape else value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": values})
    return step
