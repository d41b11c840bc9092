"""A training's state on disk, enough to go on bit for bit: trained weights, optimizer, position.

Random numbers are no part of it: the loop draws them anew for each step, from the seed.

    checkpoints/step-000050/{adapter_model.safetensors, optimizer.safetensors, state.json}

Tensors only, no pickle. A checkpoint is written aside and renamed, so a killed process leaves the one before.
"""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from mofang.errors import Unreadable
from mofang.train import lora

BEST = "best.safetensors"


def save(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, step: int, *, keep: int) -> Path:
    """Write the state after `step` steps, and drop all but the newest `keep`."""
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"step-{step:06d}"
    aside = folder / f".{target.name}.part"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    save_file(lora.state(model), str(aside / lora.WEIGHTS), metadata={"format": "pt"})
    tensors: dict[str, torch.Tensor] = {}
    for number, values in optimizer.state_dict()["state"].items():
        tensors |= {f"{number}.{name}": value for name, value in values.items()}
    save_file(tensors, str(aside / "optimizer.safetensors"))
    (aside / "state.json").write_text(json.dumps({"step": step}), encoding="utf-8")
    shutil.rmtree(target, ignore_errors=True)
    aside.rename(target)
    for old in found(folder)[:-keep]:
        shutil.rmtree(old)
    return target


def save_best(folder: Path, model: nn.Module, step: int) -> None:
    """Keep the trained weights as they are now, in place of those kept before."""
    folder.mkdir(parents=True, exist_ok=True)
    aside = folder / f".{BEST}.part"
    save_file(lora.state(model), str(aside), metadata={"format": "pt", "step": str(step)})
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


def load(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Put a checkpoint back; returns its step. Raises Unreadable for a damaged one."""
    try:
        step = int(json.loads((path / "state.json").read_text(encoding="utf-8"))["step"])
        adapter = load_file(str(path / lora.WEIGHTS))
        tensors = load_file(str(path / "optimizer.safetensors"))
    except Exception as error:  # safetensors has an error of its own
        raise Unreadable("train.checkpoint_broken", path=path, why=error) from error
    lora.restore(model, adapter)
    values: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in tensors.items():
        number, dot, name = key.partition(".")
        if dot:  # else a state of random numbers, as an earlier version kept
            values.setdefault(int(number), {})[name] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": values})
    return step
