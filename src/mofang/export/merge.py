"""LoRA adapters added into their base, one after another, then checked: W + w · (alpha / r) · B A.

With DoRA the sum's rows get their trained lengths; what an adapter holds whole takes its tensor's place. The base is
read and the result written tensor by tensor: peak memory is the largest, in float32. The result gets its name only when
its logits agree with those of base and adapters (agree.py). An adapter that a run of ours made names its base by digest;
another base is refused, as the sum of two strangers is noise that still talks. Source: peft's LoRA layers; peft issue
2777 for tied heads that lost what was trained.
"""

import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from transformers import AutoConfig, AutoModelForCausalLM

from mofang.errors import Conflict, Invalid, MofangError, Unreadable
from mofang.export import adapter, agree, folder, shards
from mofang.export.adapter import Adapter
from mofang.export.values import DTYPES, NAMES, raw, tensor
from mofang.models import ancestry
from mofang.models.base import ModelRef
from mofang.models.formats import hf, lora
from mofang.models.formats.hf import Stored
from mofang.models.sources.base import need_disk
from mofang.models.store import MANIFEST, digest, digests, lineage, read_manifest
from mofang.recipes.export import Merge
from mofang.runs import Reporter, Run
from mofang.strings import say

VOCABULARY = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
)
TOKENIZER = (*VOCABULARY, "tokenizer_config.json", "chat_template.jinja")
"""What an adapter may bring of these goes along; one vocabulary takes the other's place whole."""
ROUNDED = 1e-6
"""Largest difference between an embedding and a head that the order of sums explains, against their largest number."""


def run(recipe: Merge, run: Run) -> dict[str, Any]:
    """The worker of `mofang export merge`."""
    names = [recipe.model, *recipe.adapters]
    weights = recipe.weights or [1.0] * len(names)
    adapters = [
        adapter.read(*adapter_folder(name), weight=weight, pickled=recipe.pickle)
        for name, weight in zip(names, weights, strict=True)
    ]
    _check_weights(adapters)
    base = _base(recipe, adapters, run)
    stem = "-".join(_stem(name, each) for name, each in zip(names, adapters, strict=True))
    name = folder.free_name(recipe.name or f"{stem}-hf", overwrite=recipe.overwrite, run=run)
    report = Reporter(run)
    with folder.aside(run) as target:
        dtype, tables = write(base, adapters, target, recipe.dtype, report, run)
        report("check", 0, 1, "")
        found = agree.check(base, adapters, target, dtype, tables)
        if not found["mean_kl"] <= found["bound"]:
            raise MofangError("export.merge_disagrees", **found)
        made = folder.publish(
            target,
            name,
            format="hf",
            kind=base.kind,
            run=run,
            parents=[folder.parent(base, "base"), *map(_parent, adapters)],
            runs=list(
                dict.fromkeys(
                    [*(run_id for each in adapters for run_id in each.manifest.get("runs") or ()), *lineage(base)]
                )
            ),
            overwrite=recipe.overwrite,
            tools=folder.tools("torch", "transformers", "safetensors"),
            recipe=next((each.manifest["recipe"] for each in reversed(adapters) if "recipe" in each.manifest), None),
            data=[row for each in adapters for row in each.manifest.get("data") or ()],
            checks={"merged_equals_adapter": found},
        )
    run.note(say("export.merged", name=made.name, kl=f"{found['mean_kl']:.1e}", bound=f"{found['bound']:.0e}"))
    return {"model": made.name, "path": str(made.path), **found}


def adapter_folder(name: str) -> tuple[Path, dict[str, Any]]:
    """Where an adapter lies, and what is known of it: a run's out folder, a folder of files, or one that was added.

    Raises Conflict for a run without one.
    """
    training = folder.find_run(name)
    if training:
        if not (training.out / lora.CONFIG).is_file():
            raise Conflict("export.no_adapter", id=name, status=training.state().status)
        return training.out, _stated(training.out)
    path = Path(name).expanduser()
    if path.is_absolute() and (path / lora.CONFIG).is_file():
        return path, _stated(path)
    ref = folder.find(name)
    return ref.path, ref.manifest


def _stated(path: Path) -> dict[str, Any]:
    return read_manifest(path) if (path / MANIFEST).is_file() else {}


# ---- what goes together ----


def _check_weights(adapters: Sequence[Adapter]) -> None:
    """Raises Invalid for a weight of what cannot be weighted, or one that is no number."""
    for each in adapters:
        if not math.isfinite(each.weight):
            raise Invalid("export.weight_not_finite", param="weights", weight=each.weight)
        what = each.only_as_trained()
        if what and each.weight != 1.0:
            raise Invalid("export.weight_of_whole", param="weights", path=each.path, weight=each.weight, what=what)


def _base(recipe: Merge, adapters: Sequence[Adapter], run: Run) -> ModelRef:
    """The base, held against the digests that adapters name. Raises Conflict for another one."""
    stated = [folder.base_of(each.manifest) for each in adapters]
    wanted = recipe.base or next((parent["name"] for parent in stated if parent.get("name")), "")
    if not wanted:
        raise Invalid("export.which_base", param="base", path=adapters[0].path)
    base = folder.find(wanted)
    if base.format != "hf":
        raise Invalid("train.base_not_trainable", param="base", name=wanted, format=base.format)
    if hf.read_json(base.path / "config.json").get("quantization_config"):
        raise Invalid("export.base_quantized", param="base", name=wanted)
    found = digest(base)
    for each, parent in zip(adapters, stated, strict=True):
        if not parent.get("sha256"):
            run.note(say("export.base_unchecked", base=base.name, stated=lora.stated_base(each.path) or "-"))
        elif found != parent["sha256"]:
            raise Conflict(
                "export.other_base", adapter=each.path, base=base.name, found=found[:12],
                wanted=parent["sha256"][:12], name=parent.get("name", "-"),
            )  # fmt: skip
    return base


def _check_together(adapters: Sequence[Adapter], names: Sequence[str], base: ModelRef) -> None:
    """Raises Unreadable when an adapter names what the base lacks, Conflict when two want the place of one tensor."""
    for each in adapters:
        left = each.tensors.keys() - {claimed for name in names for claimed in each.claimed(name)}
        if left:
            odd = sorted(left)
            raise Unreadable(
                "export.adapter_misfit", path=each.path, base=base.name, names=", ".join(odd[:3]), n=len(odd)
            )
    for name in names:
        here = [each for each in adapters if each.claimed(name)]
        wholes = [value for each in here if (value := each.whole(name)) is not None]
        same = all(value.shape == wholes[0].shape and torch.equal(value, wholes[0]) for value in wholes)
        replacing = sum(each.replaces(name) for each in here)
        if len(here) > 1 and (not same or 0 < replacing < len(here)):
            raise Conflict("export.adapters_collide", tensor=name, paths=", ".join(str(each.path) for each in here))


def _parent(each: Adapter) -> dict[str, Any]:
    weights = digests(each.path, "lora")
    stated = {
        "role": "adapter",
        "name": str(each.manifest.get("name") or each.path.name),
        "format": "lora",
        "path": str(each.path),
        "sha256": weights[0]["sha256"] if weights else "",
        "weight": each.weight,
    }
    return ancestry.with_history(stated, each.manifest)


def _stem(model: str, each: Adapter) -> str:
    return str(each.manifest.get("name") or Path(model).name)


# ---- the sum ----


def tables_of(path: Path) -> tuple[str, str, bool]:
    """Names of the embedding's and the head's tensor, and whether the configuration makes one of them."""
    with init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(path))
    found = [model.get_input_embeddings(), model.get_output_embeddings()]
    names = {id(module): name for name, module in model.named_modules()}
    embedding, head = (f"{names.get(id(module), '')}.weight" for module in found)
    return embedding, head, bool(model.config.get_text_config().tie_word_embeddings)


def write(
    base: ModelRef, adapters: Sequence[Adapter], target: Path, dtype: str, report: Reporter, run: Run
) -> tuple[torch.dtype, tuple[str, str]]:
    """The merged folder; returns the weights' coarsest type, and the names of embedding and head.

    Raises Unreadable when an adapter does not fit the base, and for what is damaged.
    """
    embedding, head, tied = tables_of(base.path)
    places = shards.places(base.path)

    def source(name: str) -> tuple[torch.Tensor, Path]:
        path, stored = places[name]
        return tensor(shards.read(path, name, stored), stored), path

    def added(name: str, values: torch.Tensor) -> torch.Tensor:
        wholes = (each.whole(name) for each in adapters)
        values = next((whole for whole in wholes if whole is not None), values).float()
        for each in adapters:
            values = each.onto(name, values)
        return values

    if tied and head in places and embedding in places:  # one matrix, written twice
        tied = torch.equal(source(head)[0], source(embedding)[0])
        if tied:
            del places[head]
    if not tied and embedding in places and head not in places:
        raise Unreadable("export.no_tensor", path=base.path, tensor=head)
    tied = tied and embedding in places
    _check_together(adapters, [*places, *([head] if tied else [])], base)
    apart = tied and any(each.claimed(name) for each in adapters for name in (embedding, head))
    if apart:
        # Taught differently, they are two from now on: a head that was trained is no longer the embedding.
        first, second = (added(name, source(embedding)[0]) for name in (embedding, head))
        apart = first.shape != second.shape or float((first - second).abs().max()) > ROUNDED * float(second.abs().max())
        del first, second
        if apart:
            run.note(say("export.head_apart"))
    files: dict[str, dict[str, tuple[str, tuple[int, ...]]]] = {}
    own = {name: (path.name, stored) for name, (path, stored) in places.items()}
    if apart:
        own[head] = (list(own.values())[-1][0], own[embedding][1])
    for name, (file, stored) in own.items():
        files.setdefault(file, {})[name] = (_kind(stored, dtype), _shape(name, stored, adapters, (embedding, head)))
    rows = {plan[name][1][0] for plan in files.values() for name in (embedding, head) if name in plan}
    if len(rows) > 1:
        raise Unreadable("export.rows_differ", path=target, rows=", ".join(map(str, sorted(rows))))
    need_disk(target, sum(map(shards.n_bytes, files.values())))

    done, total = 0, sum(map(shards.n_bytes, files.values()))
    coarsest = torch.float32
    with shards.Writer(target, files) as out:
        for file, plan in files.items():
            for name, (kind, shape) in plan.items():
                values, path = source(embedding if name == head and apart else name)
                if any(each.claimed(name) for each in adapters):
                    values = added(name, values)
                    coarsest = max(coarsest, DTYPES[kind], key=lambda each: agree.BOUNDS.get(each, 0.0))
                fine = values.to(DTYPES[kind]) if values.is_floating_point() else values
                if fine.is_floating_point() and not bool(fine.isfinite().all()):
                    raise Unreadable("export.beyond_float16", path=path, tensor=name)
                out.write(name, raw(fine))
                done += shards.n_bytes({name: (kind, shape)})
                report("merge", done, total, detail=f"{file} {name}")
    _beside(base, adapters, target, coarsest, run, tied=tied and not apart, rows=max(rows, default=0))
    return coarsest, (embedding, head)


def _kind(stored: Stored, dtype: str) -> str:
    """The type that a tensor is written in: numbers that are not floating stay."""
    floating = stored.dtype in DTYPES and DTYPES[stored.dtype].is_floating_point
    return stored.dtype if dtype == "same" or not floating else NAMES[getattr(torch, dtype)]


def _shape(name: str, stored: Stored, adapters: Sequence[Adapter], tables: tuple[str, str]) -> tuple[int, ...]:
    """A tensor's shape; an adapter may bring embedding and head with more rows. Raises Unreadable for another."""
    shape = stored.shape
    for each in adapters:
        whole = each.whole(name)
        if whole is None or tuple(whole.shape) == shape:
            continue
        if name not in tables or whole.shape[1:] != torch.Size(shape[1:]):
            wanted, found = (" × ".join(map(str, one)) for one in (shape, whole.shape))
            raise Unreadable("export.adapter_shape", path=each.path, tensor=name, shape=found, there=wanted)
        shape = tuple(whole.shape)
    return shape


def _beside(
    base: ModelRef, adapters: Sequence[Adapter], target: Path, dtype: torch.dtype, run: Run, *, tied: bool, rows: int
) -> None:
    """Configuration, tokenizer and template: the base's, or what the last adapter brings that brings them.

    Raises Unreadable for a tokenizer with more ids than the embedding has rows.
    """
    for path in shards.beside(base.path):
        shutil.copy(path, target / path.name)
    bring = [each for each in adapters if any((each.path / file).is_file() for file in TOKENIZER)]
    brought = [file for file in TOKENIZER if bring and (bring[-1].path / file).is_file()]
    if "tokenizer.json" in brought or "tokenizer.model" in brought:
        for file in VOCABULARY:
            (target / file).unlink(missing_ok=True)
    for file in brought:
        shutil.copy(bring[-1].path / file, target / file)
    templates = {hf.template(each.path) for each in bring}
    if len(templates) > 1:
        run.note(say("export.templates_differ", path=bring[-1].path))
    config = hf.read_json(base.path / "config.json")
    inner = config.get("text_config")
    text: dict[str, Any] = inner if isinstance(inner, dict) else config
    for part in (config, text):
        for key in ("dtype", "torch_dtype"):
            if key in part or (part is config and key == "torch_dtype"):
                part[key] = str(dtype).removeprefix("torch.")
    config["tie_word_embeddings"] = text["tie_word_embeddings"] = tied
    if rows:
        text["vocab_size"] = rows
    (target / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    shards.check_rows(target)
