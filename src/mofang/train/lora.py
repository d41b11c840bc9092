"""LoRA: each chosen linear layer W gets a low-rank companion, y = W x + s · B A x; W stays frozen.

s is alpha / r, or alpha / √r with rsLoRA. DoRA trains the length m of each row apart from its direction:
y = m · (W + s B A) x / ‖W + s B A‖, the norm of each row taken as a constant. Modules that are trained whole beside it
are what peft calls modules_to_save.

Files are peft's (adapter_config.json, adapter_model.safetensors), so that others can load what is taught here and
the other way round. Source: Hu et al., arXiv 2106.09685; Kalajdzievski, 2312.03732; Liu et al., 2402.09353; peft's
LoraConfig and its checkpoint format.
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

from mofang.errors import Invalid, Unreadable
from mofang.train.parts import part_of

PREFIX = "base_model.model."
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


class LoraLinear(nn.Module):
    """A frozen linear layer and its companion, whose weights are float32 whatever the base is."""

    parts: tuple[str, ...] = ("lora_A", "lora_B")
    """Names of what is trained; in files with ".weight", as peft."""

    def __init__(self, base: nn.Linear, rank: int, scale: float, dropout: float, generator: torch.Generator) -> None:
        super().__init__()
        self.base = base
        self.scale = scale
        self.off = False
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        bound = 1 / math.sqrt(base.in_features)  # kaiming_uniform(a=√5), as peft
        start = torch.empty(rank, base.in_features).uniform_(-bound, bound, generator=generator)
        self.lora_A = nn.Parameter(start.to(base.weight.device))
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, rank, device=base.weight.device))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        plain = self.base(x)
        return plain if self.off else self.taught(plain, x)

    def taught(self, plain: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """The layer's output, from the frozen layer's `plain`."""
        return plain + self.companion(self.dropout(x))

    def companion(self, x: torch.Tensor) -> torch.Tensor:
        """s · B A x."""
        return F.linear(F.linear(x, self.lora_A.to(x.dtype)), (self.lora_B * self.scale).to(x.dtype))


class DoraLinear(LoraLinear):
    """The same with each row's length trained apart; it begins as the frozen weight's."""

    parts = ("lora_A", "lora_B", "lora_magnitude_vector")

    def __init__(self, base: nn.Linear, rank: int, scale: float, dropout: float, generator: torch.Generator) -> None:
        super().__init__(base, rank, scale, dropout, generator)
        self.lora_magnitude_vector = nn.Parameter(base.weight.detach().float().norm(dim=1))

    def taught(self, plain: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        dropped = self.dropout(x)
        # As peft: dropout is before all that is taught, the row's change of length included.
        turned = F.linear(dropped, self.base.weight) if dropped is not x else plain
        if dropped is x and self.base.bias is not None:
            turned = turned - self.base.bias
        with torch.no_grad():
            norm = (self.base.weight.float() + self.scale * (self.lora_B @ self.lora_A)).norm(dim=1)
        factor = (self.lora_magnitude_vector / norm).to(plain.dtype)
        return plain + (factor - 1) * turned + factor * self.companion(dropped)


def scaling(rank: int, alpha: float, *, rslora: bool = False) -> float:
    """What B A x is multiplied by."""
    return alpha / (math.sqrt(rank) if rslora else rank)


def add(
    model: nn.Module, targets: Sequence[str], *, rank: int, alpha: float, dropout: float, seed: int,
    rslora: bool = False, dora: bool = False,
) -> list[str]:  # fmt: skip
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
    scale = scaling(rank, alpha, rslora=rslora)
    kind = DoraLinear if dora else LoraLinear
    for name in chosen:
        where, _, last = name.rpartition(".")
        setattr(model.get_submodule(where), last, kind(linear[name], rank, scale, dropout, generator))
    return chosen


def layers(model: nn.Module) -> Iterable[tuple[str, LoraLinear]]:
    return ((name, layer) for name, layer in model.named_modules() if isinstance(layer, LoraLinear))


@contextmanager
def off(model: nn.Module) -> Iterator[None]:
    """The model as it is without its companions."""
    for _, layer in layers(model):
        layer.off = True
    try:
        yield
    finally:
        for _, layer in layers(model):
            layer.off = False


def parameters(model: nn.Module) -> list[nn.Parameter]:
    """The companions' weights, in a fixed order."""
    return [getattr(layer, part) for _, layer in layers(model) for part in layer.parts]


def named(model: nn.Module) -> dict[str, nn.Parameter]:
    """All that is trained under peft's names: companions, and what is trained whole."""
    found = {
        # peft writes a magnitude vector without ".weight", as it always did
        f"{PREFIX}{name}.{part}{'' if part == 'lora_magnitude_vector' else '.weight'}": getattr(layer, part)
        for name, layer in layers(model)
        for part in layer.parts
    }
    companions = {id(parameter) for parameter in found.values()}
    whole = {
        PREFIX + name: parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and id(parameter) not in companions
    }
    return found | whole


def twins(model: nn.Module) -> dict[str, str]:
    """Second names of trained parameters → the first: a head that is the embedding."""
    first: dict[int, str] = {id(parameter): name for name, parameter in named(model).items()}
    listed = ((PREFIX + name, id(parameter)) for name, parameter in model.named_parameters(remove_duplicate=False))
    return {name: first[key] for name, key in listed if key in first and ".lora_" not in name and name != first[key]}


def restore(model: nn.Module, tensors: dict[str, torch.Tensor]) -> None:
    """Put an adapter's tensors into `model`. Raises Unreadable when they do not fit one another."""
    found = named(model)
    given = tensors.keys() - twins(model).keys()
    if found.keys() != given:
        odd = sorted(found.keys() ^ given)
        raise Unreadable("train.adapter_misfit", names=", ".join(odd[:3]), n=len(odd))
    with torch.no_grad():
        for name, parameter in found.items():
            if parameter.shape != tensors[name].shape:
                raise Unreadable("train.adapter_misfit", names=name, n=1)
            parameter.copy_(part_of(tensors[name], parameter))


def save(
    model: nn.Module, trained: Mapping[str, torch.Tensor], folder: Path, *, base: str, rank: int, alpha: float,
    dropout: float, rslora: bool = False, dora: bool = False,
) -> None:  # fmt: skip
    """Write the adapter as peft does, then read it back: an adapter that is empty or cut is found now.

    trained: the tensors of `named`, whole.

    An embedding that is also the head is written under both names: whoever loads only one would leave the other as it
    was (peft issue 2777).
    """
    tensors = {**trained, **{twin: trained[name].clone() for twin, name in twins(model).items()}}
    whole = {name.removeprefix(PREFIX).rpartition(".")[0] for name in tensors if ".lora_" not in name}
    config: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": dropout,
        "use_rslora": rslora,
        "use_dora": dora,
        "target_modules": _short(name for name, _ in layers(model)),
        "modules_to_save": _short(whole) or None,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    save_file(tensors, str(folder / WEIGHTS), metadata={"format": "pt"})
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    back = load_file(str(folder / WEIGHTS))
    if back.keys() != tensors.keys() or not all(torch.equal(back[name], value) for name, value in tensors.items()):
        raise Unreadable("train.adapter_not_saved", path=folder / WEIGHTS)


def _short(names: Iterable[str]) -> list[str]:
    return sorted({name.rsplit(".", 1)[-1] for name in names})
