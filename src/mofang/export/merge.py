"""A LoRA adapter added into its base, shard by shard, then checked: W + (alpha / r) · B A.

With DoRA its rows get their trained lengths. Peak memory is one shard of the base. The result gets its name only when
its logits agree with those of base and adapter, which are computed apart, in float32. An adapter that a run of ours
made names its base by digest; another base is refused, as the sum of two strangers is noise that still talks. Source:
peft's LoRA layers; peft issue 2777 for tied heads that lost what was trained.
"""

import gc
import json
import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

from mofang.errors import Conflict, Invalid, MofangError, Unreadable
from mofang.export import folder
from mofang.models.base import ModelRef
from mofang.models.sources.base import need_disk
from mofang.models.store import digest, digests, lineage, read_manifest
from mofang.recipes.export import Merge
from mofang.runs import Reporter, Run
from mofang.strings import say
from mofang.tokenizer import load as load_tokenizer

PREFIX = "base_model.model."
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
PROBE = (
    "模坊把开放的语言模型从头用到尾：看、教、合并、量化、服务。床前明月光，疑是地上霜。1 + 1 = 2. The quick brown fox."
)
"""Text on which merged model and adapter are compared."""
BOUNDS = {torch.float32: 1e-6, torch.float16: 1e-4, torch.bfloat16: 5e-3}
"""Largest mean KL divergence, in nats, that rounding the sum to that type explains."""


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter's files, read."""

    path: Path
    tensors: dict[str, torch.Tensor]
    """Module path → low-rank pair under "….lora_A.weight", "….lora_B.weight", or a whole tensor."""
    scale: float
    manifest: dict[str, Any]

    def delta(self, name: str) -> torch.Tensor | None:
        """What is added to the base's tensor `name`, float32; None for nothing."""
        stem = PREFIX + name.removesuffix(".weight")
        low, high = self.tensors.get(f"{stem}.lora_A.weight"), self.tensors.get(f"{stem}.lora_B.weight")
        if low is None or high is None:
            return None
        return (high.float() @ low.float()) * self.scale

    def magnitude(self, name: str) -> torch.Tensor | None:
        """Lengths of the rows of the tensor `name`, where DoRA trained them."""
        return self.tensors.get(f"{PREFIX}{name.removesuffix('.weight')}.lora_magnitude_vector")

    def whole(self, name: str) -> torch.Tensor | None:
        """A tensor that the adapter holds whole (peft's modules_to_save)."""
        return self.tensors.get(PREFIX + name)


def run(recipe: Merge, run: Run) -> dict[str, Any]:
    """The worker of `mofang export merge`."""
    adapter = read_adapter(adapter_folder(recipe.model))
    base = _base(recipe, adapter)
    name = folder.free_name(recipe.name or f"{_stem(recipe.model, adapter)}-hf", overwrite=recipe.overwrite)
    report = Reporter(run)
    with folder.aside(run) as target:
        dtype = write(base, adapter, target, recipe.dtype, report)
        report("check", 0, 1, "")
        found = check(base, adapter, target, dtype)
        if found["mean_kl"] > found["bound"]:
            raise MofangError("export.merge_disagrees", **found)
        made = folder.publish(
            target,
            name,
            format="hf",
            kind=base.kind,
            run=run,
            parents=[
                folder.parent(base, "base"),
                {"role": "adapter", "path": str(adapter.path), "sha256": digests(adapter.path, "lora")[0]["sha256"]},
            ],
            runs=[*(adapter.manifest.get("runs") or ()), *lineage(base)],
            overwrite=recipe.overwrite,
            recipe=adapter.manifest.get("recipe"),
            data=adapter.manifest.get("data"),
            checks={"merged_equals_adapter": found},
        )
    run.note(say("export.merged", name=made.name, kl=f"{found['mean_kl']:.1e}", bound=f"{found['bound']:.0e}"))
    return {"model": made.name, "path": str(made.path), **found}


def adapter_folder(name: str) -> Path:
    """Where an adapter lies: a run's out folder, or a folder of files. Raises Conflict for a run without one."""
    training = folder.find_run(name)
    if training:
        if not (training.out / "adapter_config.json").is_file():
            raise Conflict("export.no_adapter", id=name, status=training.state().status)
        return training.out
    path = Path(name).expanduser()
    if path.is_absolute() and (path / "adapter_config.json").is_file():
        return path
    return folder.find(name).path


def read_adapter(path: Path) -> Adapter:
    """Raises Unreadable for what is no LoRA adapter, or one of a kind that cannot be added."""
    try:
        config = json.loads((path / "adapter_config.json").read_text(encoding="utf-8"))
        tensors = load_file(str(path / "adapter_model.safetensors"))
        rank, alpha = int(config["r"]), float(config["lora_alpha"])
    except Exception as error:  # safetensors has an error of its own
        raise Unreadable("export.adapter_broken", path=path, why=error) from error
    for odd in ("rank_pattern", "alpha_pattern", "lora_bias"):
        if config.get(odd):
            raise Unreadable("export.adapter_kind", path=path, kind=odd)
    if bool(config.get("use_dora")) != any(name.endswith(".lora_magnitude_vector") for name in tensors):
        raise Unreadable("export.adapter_kind", path=path, kind="use_dora")
    if not tensors:
        raise Unreadable("export.adapter_broken", path=path, why="0 tensors")
    manifest = read_manifest(path) if (path / "manifest.json").is_file() else {}
    scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    return Adapter(path, tensors, scale, manifest)


def write(base: ModelRef, adapter: Adapter, target: Path, dtype: str, report: Reporter) -> torch.dtype:
    """The merged folder; returns the weights' type. Raises Unreadable when the adapter names what the base lacks."""
    config = json.loads((base.path / "config.json").read_text(encoding="utf-8"))
    shards = sorted(base.path.glob("*.safetensors"))
    need_disk(target, base.size_bytes)
    left = set(adapter.tensors)
    done, total = 0, sum(shard.stat().st_size for shard in shards)
    kind = torch.float32
    for shard in shards:
        merged: dict[str, torch.Tensor] = {}
        with safe_open(str(shard), framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                tensor = file.get_tensor(name)
                kind = tensor.dtype if dtype == "same" else getattr(torch, dtype)
                merged[name] = _merged(name, tensor, adapter, left).to(kind).contiguous()
                done += tensor.numel() * tensor.element_size()
                report("merge", done, max(total, done), detail=name)
        if shard == shards[-1] and config.get("tie_word_embeddings"):
            # A head that was trained is no longer the embedding: it gets a tensor of its own.
            head = _own_head(base, adapter, left)
            if head is not None:
                merged[HEAD] = head.to(kind).contiguous()
                config["tie_word_embeddings"] = False
        save_file(merged, str(target / shard.name), metadata={"format": "pt"})
    if left:
        odd = sorted(left)
        raise Unreadable(
            "export.adapter_misfit", path=adapter.path, base=base.name, names=", ".join(odd[:3]), n=len(odd)
        )
    for file in base.path.iterdir():
        if file.is_file() and file.suffix in (".json", ".jinja", ".model", ".txt") and file.name != "manifest.json":
            shutil.copy(file, target / file.name)
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        if (adapter.path / file).is_file():
            shutil.copy(adapter.path / file, target / file)
    config["torch_dtype"] = str(kind).removeprefix("torch.")
    (target / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    if HEAD in merged and (target / "model.safetensors.index.json").is_file():
        index = json.loads((target / "model.safetensors.index.json").read_text(encoding="utf-8"))
        index["weight_map"][HEAD] = shards[-1].name
        (target / "model.safetensors.index.json").write_text(json.dumps(index, indent=1), encoding="utf-8")
    return kind


def _merged(name: str, tensor: torch.Tensor, adapter: Adapter, left: set[str]) -> torch.Tensor:
    whole = adapter.whole(name)
    if whole is not None:
        left.discard(PREFIX + name)
        return whole.float()
    delta = adapter.delta(name)
    if delta is None:
        return tensor
    stem = PREFIX + name.removesuffix(".weight")
    left -= {f"{stem}.lora_A.weight", f"{stem}.lora_B.weight", f"{stem}.lora_magnitude_vector"}
    if delta.shape != tensor.shape:
        raise Unreadable("export.adapter_misfit", path=adapter.path, base="", names=name, n=1)
    whole = tensor.float() + delta
    lengths = adapter.magnitude(name)
    return whole if lengths is None else whole * (lengths.float() / whole.norm(dim=1))[:, None]


def _own_head(base: ModelRef, adapter: Adapter, left: set[str]) -> torch.Tensor | None:
    """The head, when the adapter changed it or the embedding apart from the other; None when they stay one."""
    if not _apart(adapter):
        left.discard(PREFIX + HEAD)
        return None
    for shard in base.path.glob("*.safetensors"):
        with safe_open(str(shard), framework="pt") as file:
            if EMBEDDING in file.keys():  # noqa: SIM118
                return _merged(HEAD, file.get_tensor(EMBEDDING), adapter, left)
    raise Unreadable("models.no_weights", path=base.path)


def _apart(adapter: Adapter) -> bool:
    """Whether the adapter makes two of an embedding and a head that were one: not when it holds both, and equal."""
    head, embedding = adapter.whole(HEAD), adapter.whole(EMBEDDING)
    if head is not None and embedding is not None and adapter.delta(HEAD) is None:
        return not torch.equal(head, embedding)
    return head is not None or adapter.delta(HEAD) is not None


def check(base: ModelRef, adapter: Adapter, target: Path, dtype: torch.dtype) -> dict[str, Any]:
    """Mean KL(base and adapter ‖ merged) over a probe text, share of equal likeliest tokens, and the bound."""
    transformers_logging.disable_progress_bar()
    ids = torch.tensor(load_tokenizer(target).encode(PROBE))[None]
    with torch.no_grad():
        apart = _apply(AutoModelForCausalLM.from_pretrained(base.path, dtype=torch.float32), adapter)
        wanted = torch.log_softmax(apart(ids).logits[0], -1)
        del apart
        gc.collect()
        merged = AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32)
        got = torch.log_softmax(merged(ids).logits[0], -1)
    kl = (wanted.exp() * (wanted - got)).sum(-1).mean().item()
    same = (wanted.argmax(-1) == got.argmax(-1)).float().mean().item()
    return {"mean_kl": max(0.0, kl), "same_top": same, "bound": BOUNDS[dtype], "n_tokens": ids.shape[1]}


def _apply(model, adapter: Adapter):
    """Base and adapter apart: each layer keeps its weights, and adds the adapter's product to its output."""
    if _apart(adapter):
        head = model.get_output_embeddings()
        head.weight = torch.nn.Parameter(head.weight.detach().clone(), requires_grad=False)  # no longer the embedding
    for name, layer in model.named_modules():
        whole = adapter.whole(f"{name}.weight")
        if whole is not None:
            layer.weight.data = whole.float()
        low = adapter.tensors.get(f"{PREFIX}{name}.lora_A.weight")
        high = adapter.tensors.get(f"{PREFIX}{name}.lora_B.weight")
        if low is not None and high is not None:
            layer.register_forward_hook(_companion(low.float(), high.float(), adapter, f"{name}.weight"))
    return model


def _companion(low: torch.Tensor, high: torch.Tensor, adapter: Adapter, name: str):
    """What adds the adapter's product to a layer's output, and gives its rows the lengths that DoRA trained."""
    lengths = adapter.magnitude(name)

    def hook(layer, inputs, output):
        product = (inputs[0] @ low.t() @ high.t()) * adapter.scale
        if lengths is None:
            return output + product
        factor = lengths.float() / (layer.weight + adapter.scale * (high @ low)).norm(dim=1)
        bias = 0.0 if layer.bias is None else layer.bias
        return (output - bias + product) * factor + bias

    return hook


def _base(recipe: Merge, adapter: Adapter) -> ModelRef:
    """The base, held against the digest that the adapter names. Raises Conflict for another one."""
    parents = adapter.manifest.get("parents") or [{}]
    stated = parents[0]
    wanted = recipe.base or stated.get("name") or ""
    if not wanted:
        raise Invalid("export.which_base", param="base", path=adapter.path)
    base = folder.find(wanted)
    if base.format != "hf":
        raise Invalid("train.base_not_trainable", param="base", name=wanted, format=base.format)
    found = digest(base)
    if stated.get("sha256") and found != stated["sha256"]:
        raise Conflict(
            "export.other_base", base=base.name, found=found[:12], wanted=stated["sha256"][:12], name=stated["name"]
        )
    return base


def _stem(model: str, adapter: Adapter) -> str:
    return str(adapter.manifest.get("name") or Path(model).name)
