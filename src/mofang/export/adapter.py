"""A peft adapter's files, and what they make of a base's tensors: W + w · s · B A, or a tensor that it holds whole.

s is alpha / r, or alpha / √r with rsLoRA, for each layer by alpha_pattern where there is one. DoRA gives the rows of the
sum their trained lengths. Weights of adapters act on what is added; what takes a tensor's place, or sets lengths, is
taken as it was trained or not at all. Source: peft's LoraConfig, its layers and its checkpoint format.
"""

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from mofang.errors import Unreadable
from mofang.models.formats import lora

PREFIX = lora.PREFIX
PICKLED = "adapter_model.bin"
"""What peft wrote before it wrote safetensors."""


@dataclass(frozen=True, slots=True)
class Pair:
    """The low-rank matrices of one layer, and what their product is multiplied by."""

    low: torch.Tensor
    """A, (r, n_in); of an embedding (r, n_rows)."""
    high: torch.Tensor
    """B, (n_out, r); of an embedding (width, r)."""
    scale: float
    turned: bool
    """The layer's weight is (n_in, n_out): an embedding, or a Conv1D as GPT-2 has it."""
    embedding: bool

    def product(self) -> torch.Tensor:
        """s · B A as the layer's weight lies, float32."""
        found = (self.high @ self.low) * self.scale
        return found.t() if self.turned else found

    def of(self, x: torch.Tensor) -> torch.Tensor:
        """s · B A x; of an embedding for ids x."""
        inner = self.low.t()[x] if self.embedding else x @ self.low.t()
        return (inner @ self.high.t()) * self.scale


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter's files, read."""

    path: Path
    config: dict[str, Any]
    tensors: dict[str, torch.Tensor]
    """Under peft's names: "….lora_A.weight", "….lora_B.weight", or a whole tensor."""
    manifest: dict[str, Any]
    weight: float = 1.0
    """What is added is multiplied by it."""

    def pair(self, name: str) -> Pair | None:
        """What belongs to the base's tensor `name`; None for nothing."""
        module = name.removesuffix(".weight")
        stem = PREFIX + module
        for low, high in (("lora_A.weight", "lora_B.weight"), ("lora_embedding_A", "lora_embedding_B")):
            a, b = self.tensors.get(f"{stem}.{low}"), self.tensors.get(f"{stem}.{high}")
            if a is not None and b is not None:
                embedding = low.startswith("lora_embedding")
                turned = embedding or bool(self.config.get("fan_in_fan_out"))
                return Pair(a.float(), b.float(), self._scale(module, len(a)), turned, embedding)
        return None

    def _scale(self, module: str, rank: int) -> float:
        patterns = self.config.get("alpha_pattern") or {}
        key = next((key for key in patterns if re.match(rf"(.*\.)?({key})$", module)), None)
        alpha = float(patterns[key] if key is not None else self.config["lora_alpha"])
        return alpha / (math.sqrt(rank) if self.config.get("use_rslora") else rank)

    def lengths(self, name: str) -> torch.Tensor | None:
        """Lengths of the rows of the tensor `name`, where DoRA trained them."""
        found = self.tensors.get(f"{PREFIX}{name.removesuffix('.weight')}.lora_magnitude_vector")
        return None if found is None else found.float()

    def whole(self, name: str) -> torch.Tensor | None:
        """A tensor that the adapter holds whole: one of modules_to_save, or one that lies under a pair."""
        found = self.tensors.get(PREFIX + name)
        return self.tensors.get(_under(name)) if found is None else found

    def replaces(self, name: str) -> bool:
        """Whether it holds a tensor that was trained whole; one under a pair is the base's own, which peft writes along."""
        return PREFIX + name in self.tensors

    def claimed(self, name: str) -> set[str]:
        """Its tensors that belong to the base's tensor `name`."""
        stem = PREFIX + name.removesuffix(".weight")
        parts = (
            "lora_A.weight", "lora_B.weight", "lora_embedding_A", "lora_embedding_B", "lora_magnitude_vector",
        )  # fmt: skip
        return self.tensors.keys() & {PREFIX + name, _under(name), *(f"{stem}.{part}" for part in parts)}

    def onto(self, name: str, weight: torch.Tensor) -> torch.Tensor:
        """What its pair makes of a float32 `weight`. Raises Unreadable when the two are not of one shape."""
        pair = self.pair(name)
        if pair is None:
            return weight
        product = pair.product()
        if product.shape != weight.shape:
            shape, there = (" × ".join(map(str, each.shape)) for each in (product, weight))
            raise Unreadable("export.adapter_shape", path=self.path, tensor=name, shape=shape, there=there)
        weight = weight + product * self.weight
        lengths = self.lengths(name)
        return weight if lengths is None else weight * (lengths / weight.norm(dim=1))[:, None]

    def only_as_trained(self) -> str:
        """What of it cannot be weighted; "" for nothing."""
        if self.config.get("use_dora"):
            return "DoRA"
        return next(
            (
                name.removeprefix(PREFIX)
                for name in sorted(self.tensors)
                if ".lora_" not in name and ".base_layer." not in name
            ),
            "",
        )


def _under(name: str) -> str:
    module, _, own = name.rpartition(".")
    return f"{PREFIX}{module}.base_layer.{own}"


def read(path: Path, manifest: dict[str, Any], *, weight: float = 1.0, pickled: bool = False) -> Adapter:
    """An adapter's files; `manifest` is what is known of it.

    Raises Unreadable for what is no LoRA adapter, one of a kind that cannot be added, one with NaN or infinity, and for
    a pickle unless `pickled`.
    """
    try:
        config = json.loads((path / lora.CONFIG).read_text(encoding="utf-8"))
        float(config["lora_alpha"]), int(config["r"])
        tensors = _tensors(path, pickled)
    except Unreadable:
        raise
    except Exception as error:  # safetensors has an error of its own
        raise Unreadable("export.adapter_broken", path=path, why=error) from error
    odd = next((name for name, is_odd in lora.UNKNOWN if is_odd(config)), None)
    dora = bool(config.get("use_dora"))
    if dora != any(name.endswith(".lora_magnitude_vector") for name in tensors):
        odd = "use_dora"
    if dora and (config.get("fan_in_fan_out") or any(".lora_embedding_" in name for name in tensors)):
        odd = "use_dora, " + ("fan_in_fan_out" if config.get("fan_in_fan_out") else "embed_tokens")
    if odd:
        raise Unreadable("export.adapter_kind", path=path, kind=odd)
    if not tensors:
        raise Unreadable("export.adapter_broken", path=path, why="0 tensors")
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise Unreadable("export.not_finite", path=path / lora.WEIGHTS, tensor=name)
    return Adapter(path, config, tensors, manifest, weight)


def _tensors(path: Path, pickled: bool) -> dict[str, torch.Tensor]:
    if (path / lora.WEIGHTS).is_file() or not (path / PICKLED).is_file():
        return dict(load_file(str(path / lora.WEIGHTS)))
    if not pickled:
        raise Unreadable("export.adapter_pickled", path=path / PICKLED)
    from mofang.export import pickles

    return pickles.load(path / PICKLED)
