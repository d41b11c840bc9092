"""Supervised fine-tuning with LoRA: the worker of recipes.sft.Sft."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

from mofang import __version__, settings
from mofang.data.encode import Example
from mofang.data.rows import Conversation
from mofang.errors import Conflict, Invalid
from mofang.models import templates
from mofang.models.adapters import parents
from mofang.models.base import ModelRef
from mofang.models.store import ModelStore, digest, lineage, write_manifest
from mofang.platform import peak_memory
from mofang.recipes.sft import Sft
from mofang.runs import Run
from mofang.strings import say
from mofang.tokenizer import Tokenizer, load
from mofang.train import attention, lora, machine
from mofang.train.examples import load as load_examples
from mofang.train.loop import Loop, Plan
from mofang.train.loss import frozen_head_loss


def run(recipe: Sft, run: Run) -> dict[str, Any]:
    """Train; the adapter, its tokenizer and chat template, and a manifest with the lineage end in run.out."""
    base = ModelStore(settings.load()).get_or_path(recipe.base)
    if base.format != "hf":
        raise Invalid("train.base_not_trainable", param="base", name=recipe.base, format=base.format)
    tokenizer = load(base.path)
    if recipe.system_prompt is not None and tokenizer.chat_template:
        template = templates.with_default_system(tokenizer.chat_template, recipe.system_prompt)
        tokenizer = replace(tokenizer, chat_template=template)
    found = load_examples(recipe, tokenizer, run, Conversation)
    examples, held_out = found.learned, found.held_out

    # Everything that can be refused is refused before the weights are loaded.
    device = machine.device()
    dtype = machine.dtype(recipe.dtype, device)
    config = AutoConfig.from_pretrained(base.path)
    longest = found.longest
    step_tokens = longest * recipe.batch_size if recipe.packing else longest
    row = max(longest, min(recipe.row_tokens, step_tokens))
    parameters = ModelStore(settings.load()).facts(base).parameters
    needed = machine.needed_bytes(config, parameters, recipe.lora_rank, row, dtype.itemsize)
    machine.check_memory(needed, recipe.base, row)
    base_sha256 = digest(base)
    _same_base(run, base_sha256)

    torch.manual_seed(recipe.seed)
    transformers_logging.disable_progress_bar()
    run.update(progress={"stage": "load", "done": 0, "total": 0, "unit": "", "rate": 0.0, "detail": base.name})
    model = AutoModelForCausalLM.from_pretrained(base.path, dtype=dtype, attn_implementation=attention.install())
    model.to(device)
    lora.add(
        model, recipe.lora_targets, rank=recipe.lora_rank, alpha=recipe.lora_alpha, dropout=recipe.lora_dropout,
        seed=recipe.seed,
    )  # fmt: skip
    trained = lora.parameters(model)
    run.note(
        say(
            "train.begins",
            n=len(examples),
            held_out=len(held_out),
            trained=sum(parameter.numel() for parameter in trained),
            dtype=str(dtype).removeprefix("torch."),
            device=device.type,
        )
    )

    head = model.get_output_embeddings().weight

    def row_loss(examples: Sequence[Example]) -> torch.Tensor:
        return supervised_loss(model, head, examples, device)

    plan = Plan(len(examples), recipe.epochs, recipe.batch_size, recipe.seed, recipe.max_steps)
    loop = Loop(model, trained, row_loss, examples, held_out, plan, recipe, run)
    loop.resume()
    summary = loop.train()
    _save(recipe, run, model, tokenizer, base, base_sha256, found.files)
    memory = {"estimated_memory_bytes": needed, "peak_memory_bytes": peak_memory()}
    return {"adapter": str(run.out), "base": base.name, **summary, **memory}


def supervised_loss(model, head: torch.Tensor, examples: Sequence[Example], device: torch.device) -> torch.Tensor:
    """Sum of -log p over the supervised tokens of one packed row."""
    ids = torch.from_numpy(np.concatenate([example.ids for example in examples])).long().to(device)
    segments = [len(example.ids) for example in examples]
    masks = [example.mask.copy() for example in examples]
    for mask in masks:
        mask[0] = False  # nothing stands before the first token of an example
    wanted = torch.from_numpy(np.concatenate(masks)).to(device)
    hidden = model.base_model(
        input_ids=ids[None], position_ids=attention.positions(segments).to(device), segments=segments, use_cache=False
    ).last_hidden_state[0]
    places = wanted.nonzero()[:, 0]
    return frozen_head_loss(hidden[places - 1], head, ids[places])


def _same_base(run: Run, sha256: str) -> None:
    """A run that is resumed must go on from the base that it began with. Raises Conflict."""
    note = run.folder / "base.json"
    if note.is_file():
        before = json.loads(note.read_text(encoding="utf-8"))["sha256"]
        if before != sha256:
            raise Conflict("train.base_changed", id=run.id)
    else:
        note.write_text(json.dumps({"sha256": sha256}), encoding="utf-8")


def _save(
    recipe: Sft, run: Run, model, tokenizer: Tokenizer, base: ModelRef, base_sha256: str, files: list[dict[str, Any]]
) -> None:
    aside = run.folder / ".out.part"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    lora.save(
        model, aside, base=str(base.path), rank=recipe.lora_rank, alpha=recipe.lora_alpha, dropout=recipe.lora_dropout
    )
    tokenizer.save(aside)
    write_manifest(
        aside,
        {
            "manifest": 1,
            "name": recipe.name or run.id,
            "kind": "base",
            "format": "lora",
            "parents": [
                {
                    "role": "base",
                    "name": base.name,
                    "format": base.format,
                    "sha256": base_sha256,
                    "parents": parents(base.manifest),
                }
            ],
            "runs": [run.id, *lineage(base)],
            "recipe": recipe.model_dump(mode="json"),
            "data": files,
            "tokenizer_sha256": tokenizer.sha256(),
            "made_by": {
                "run": run.id,
                "kind": recipe.kind,
                "mofang": __version__,
                "torch": torch.__version__,
            },
        },
    )
    if run.out.exists():
        shutil.rmtree(run.out)
    aside.rename(run.out)
