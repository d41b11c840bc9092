"""LoRA: each chosen linear layer W gets a low-rank companion, y = W x + (alpha / r) · B A x; W stays frozen.

Files are peft's (adapter_config.json, adapter_model.safetensors), so that others can load what is taught here and
the other way round. Source: Hu et al., arXiv 2106.09685; peft's LoraConfig and its checkpoint format.
"""

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

from mofang.errors import Invalid, Unreadable

PREFIX = "base_model.model."
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


class LoraLinear(nn.Module):
    """A frozen linear layer and its companion, whose weights are float32 whatever the base is."""

    def __init__(self, base: nn.Linear, rank: int, alpha: float, dropout: float, generator: torch.Generator) -> None:
        super().__init__()
        self.base = base
        self.scale = alpha / rank
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        bound = 1 / math.sqrt(base.in_features)  # kaiming_uniform(a=√5), as peft
        start = torch.empty(rank, base.in_features).uniform_(-bound, bound, generator=generator)
        self.lora_A = nn.Parameter(start.to(base.weight.device))
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, rank, device=base.weight.device))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        narrow = F.linear(self.dropout(x), self.lora_A.to(x.dtype))
        return self.base(x) + F.linear(narrow, (self.lora_B * self.scale).to(x.dtype))


def add(model: nn.Module, targets: Sequence[str], *, rank: int, alpha: float, dropout: float, seed: int) -> list[str]:
    """Give the chosen layers of `model` a companion and freeze all else. Returns their names.

    Raises Invalid when a target is no linear layer of this model.
    """
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    linear = {
        name: layer for name, layer in model.named_modules() if isinstance(layer, nn.Linear) and layer is not head
    }
    chosen = list(linear) if list(targets) == ["all-linear"] else [
        name for name in linear if any(name == target or name.endswith(f".{target}") for target in targets)
    ]  # fmt: skip
    for target in targets:
        if target != "all-linear" and not any(name == target or name.endswith(f".{target}") for name in chosen):
            known = ", ".join(sorted({name.rsplit(".", 1)[-1] for name in linear}))
            raise Invalid("train.no_such_layer", param="lora_targets", target=target, known=known)
    generator = torch.Generator().manual_seed(seed)
    for name in chosen:
        where, _, last = name.rpartition(".")
        setattr(model.get_submodule(where), last, LoraLinear(linear[name], rank, alpha, dropout, generator))
    return chosen


def layers(model: nn.Module) -> Iterable[tuple[str, LoraLinear]]:
    return ((name, layer) for name, layer in model.named_modules() if isinstance(layer, LoraLinear))


def parameters(model: nn.Module) -> list[nn.Parameter]:
    """What is trained, in a fixed order."""
    return [parameter for _, layer in layers(model) for parameter in (layer.lora_A, layer.lora_B)]


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    """The adapter's tensors under peft's names."""
    return {
        f"{PREFIX}{name}.{part}.weight": getattr(layer, part).detach().contiguous().cpu()
        for name, layer in layers(model)
        for part in ("lora_A", "lora_B")
    }


def restore(model: nn.Module, tensors: dict[str, torch.Tensor]) -> None:
    """Put an adapter's tensors into the companions of `model`. Raises Unreadable when they do not fit one another."""
    parts = ("lora_A", "lora_B")
    found = {f"{PREFIX}{name}.{part}.weight": getattr(layer, part) for name, layer in layers(model) for part in parts}
    if found.keys() != tensors.keys():
        odd = sorted(found.keys() ^ tensors.keys())
        raise Unreadable("train.adapter_misfit", names=", ".join(odd[:3]), n=len(odd))
    with torch.no_grad():
        for name, parameter in found.items():
            if parameter.shape != tensors[name].shape:
                raise Unreadable("train.adapter_misfit", names=name, n=1)
            parameter.copy_(tensors[name])


def save(model: nn.Module, folder: Path, *, base: str, rank: int, alpha: float, dropout: float) -> None:
    """Write the adapter as peft does, then read it back: an adapter that is empty or cut is found now."""
    names = [name for name, _ in layers(model)]
    short = sorted({name.rsplit(".", 1)[-1] for name in names})
    config: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": dropout,
        "target_modules": short,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    tensors = state(model)
    save_file(tensors, str(folder / WEIGHTS), metadata={"format": "pt"})
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    back = load_file(str(folder / WEIGHTS))
    if back.keys() != tensors.keys() or not all(torch.equal(back[name], value) for name, value in tensors.items()):
        raise Unreadable("train.adapter_not_saved", path=folder / WEIGHTS)
