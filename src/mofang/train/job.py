"""What every method does around the loop: find the base, refuse early, load, train, write what came of it.

A method brings examples and an objective. What is trained (recipe.tune) decides the result: an adapter in run.out, or
a model of its own among the models.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

from mofang import __version__, settings
from mofang.errors import Conflict, Invalid
from mofang.models import ancestry, templates
from mofang.models.base import ModelRef
from mofang.models.store import VERSION, ModelStore, digest, digests, lineage, now, write_manifest
from mofang.recipes.training import Training
from mofang.runs import Run
from mofang.strings import say
from mofang.tokenizer import Tokenizer, load
from mofang.train import BOARDS, QUANTIZERS, attention, lora, machine, tuning, world
from mofang.train.decoder import fits
from mofang.train.examples import Examples
from mofang.train.forward import Forward
from mofang.train.kernels import PLAIN, Kernels, compiled
from mofang.train.loop import Item, Loop, Plan, RowLoss
from mofang.train.parts import held_bytes
from mofang.train.samples import Samples, prompts

Objective = Callable[[Forward, Sequence[Any], Sequence[Any]], tuple[RowLoss, Sequence[Any], Sequence[Any]]]
"""(forward, examples, held-out examples) → the loss of a row, and both kinds of examples with what it needs of them.

Called once, when the model is loaded and no step was taken: with the weights that training began from, even in a run
that is resumed.
"""


@dataclass(frozen=True, slots=True)
class Begin:
    """What a training begins from."""

    tokenizer: Tokenizer
    config: Any
    """transformers' configuration of the model."""
    name: str
    parents: list[dict[str, Any]]
    """As a manifest names them."""
    sha256: str
    """Of the weights, or of the tokenizer that a new model gets: a run goes on from nothing else."""
    n_parameters: int
    base: ModelRef | None = None
    """None: random weights."""


def from_base(recipe: Training) -> Begin:
    """The base that a recipe names. Raises Invalid for one that cannot be trained, or not so here; MissingExtra."""
    _quantizer(recipe)
    store = ModelStore(settings.load())
    base = store.get_or_path(recipe.base)
    if base.format != "hf":
        raise Invalid("train.base_not_trainable", param="base", name=recipe.base, format=base.format)
    sha256 = digest(base)
    return Begin(
        tokenizer=with_system(load(base.path), recipe.system_prompt),
        config=AutoConfig.from_pretrained(base.path),
        name=base.name,
        parents=[ancestry.parent(base, "base", sha256)],
        sha256=sha256,
        n_parameters=store.facts(base).parameters,
        base=base,
    )


def with_system(tokenizer: Tokenizer, prompt: str | None) -> Tokenizer:
    """The tokenizer whose template writes `prompt` where a conversation brings no system message."""
    if prompt is None or not tokenizer.chat_template:
        return tokenizer
    return replace(tokenizer, chat_template=templates.with_default_system(tokenizer.chat_template, prompt))


def train(
    recipe: Training, run: Run, begin: Begin, found: Examples, objective: Objective, *,
    examples: Sequence[Item], held_out: Sequence[Item], weight: Callable[[Item], int], eval_bytes: int = 0,
) -> dict[str, Any]:  # fmt: skip
    """The worker's work, once there are examples, which are those `found` or pairs of them. `weight`, `eval_bytes`: see
    Loop.

    Returns the run's result.
    """
    # Everything that can be refused is refused before the weights are loaded.
    here = world.of(run)
    here.check(recipe)
    if recipe.tune != "lora":
        _check_name(recipe, run)
    board = BOARDS.get("tensorboard")(run) if recipe.tensorboard and here.rank == 0 else None
    device = machine.device(here.local_rank)
    dtype = machine.dtype(recipe.dtype, device)
    with torch.device("meta"):
        shape = AutoModelForCausalLM.from_config(begin.config)
    n_whole = tuning.n_whole(shape, recipe)
    quantizer = _quantizer(recipe)
    fast = fits(shape) and not (recipe.lora_dora or recipe.lora_dropout or quantizer or here.in_parts)
    parts = here.size if here.in_parts else 1
    longest = found.longest * (len(found.learned) // len(examples))  # a pair lies in one row
    step_tokens = longest * recipe.batch_size if recipe.packing else longest

    def needed(row_tokens: int) -> int:
        rank = recipe.lora_rank if recipe.tune == "lora" else 0
        whole = machine.needed_bytes(
            begin.config, begin.n_parameters, rank, row_tokens, found.longest, dtype.itemsize, n_whole, fast=fast,
            parts=parts,
        )  # fmt: skip
        if quantizer:
            whole -= int(quantizer.n_packed(shape) * (dtype.itemsize - quantizer.bytes_each))
        # The processes of a machine share its memory; each GPU has its own. One at a time reads the whole model.
        return max(whole * here.local_size, begin.n_parameters * dtype.itemsize) if device.type == "cpu" else whole

    most = max(longest, min(recipe.row_tokens, step_tokens))
    row = here.first(lambda: _beginning(run, begin, _digest(found.files), most, longest, device, needed))
    if row < most:
        run.note(say("train.shorter_rows", row_tokens=row, wanted=recipe.row_tokens))
        recipe = recipe.model_copy(update={"row_tokens": row})
    n_tokens = int(found.learned.column("length").sum())
    plan = Plan(len(examples), recipe.epochs, recipe.batch_size, recipe.seed, recipe.max_steps, n_tokens)
    tokens = n_tokens * plan.steps // plan.steps_per_epoch

    torch.manual_seed(recipe.seed)
    transformers_logging.disable_progress_bar()
    run.update(progress={"stage": "load", "done": 0, "total": 0, "unit": "", "rate": 0.0, "detail": begin.name})
    more = quantizer.loading(dtype, device) if quantizer else {}

    def make() -> torch.nn.Module:
        made: torch.nn.Module = _model(begin, torch.float32 if n_whole else dtype, **more)
        tuning.prepare(made, recipe, dtype)
        return made

    model = here.load(make, device, dtype)
    trained = tuning.trained(model)
    run.note(
        say(
            "train.begins",
            n=len(examples),
            held_out=len(held_out),
            trained=sum(parameter.numel() for parameter in trained),
            dtype=str(dtype).removeprefix("torch."),
            device=device.type,
            memory=f"{needed(row) / 1e9:.1f}",
        )
    )
    operations = 4 * begin.n_parameters * tokens // here.size
    kernels = _kernels(run, device, operations, recipe.max_minutes)
    mixed = bool(n_whole) and dtype != torch.float32 and not here.in_parts  # parts are put together in the one type
    forward = Forward.of(model, device, dtype, mixed, kernels, found.longest)
    run.note(say(f"train.{forward.path}_path", architecture=begin.config.model_type))
    if here.in_parts:
        run.note(say("train.in_parts", n=here.size))
        recipe = recipe.model_copy(
            update={"packing": recipe.packing and forward.packs}
        )  # a pass of the model for each row
    row_loss, examples, held_out = objective(forward, examples, held_out)
    samples = None
    if recipe.sample_every and (here.rank == 0 or here.in_parts):  # all compute what the first one writes
        wanted = prompts(recipe.sample_prompts, found, begin.tokenizer)
        samples = Samples(forward, begin.tokenizer, wanted, recipe.sample_tokens, run)
    loop = Loop(
        model, trained, row_loss, examples, held_out, plan, recipe, run, weight, eval_bytes, samples, board, here
    )
    try:
        loop.resume()
        summary = loop.train()
    finally:
        if board:
            board.close()
    held = held_bytes(
        [*model.parameters(), *(each for kept in loop.optimizer.state.values() for each in kept.values())]
    )
    if recipe.tune == "lora":
        tensors, save = here.whole(lora.named(model)), _save_adapter
    else:
        tensors, save = here.whole(_once(model.float())), _save_model
    made = here.first(lambda: save(recipe, run, model, tensors, begin, found.files))
    peak = here.total({"peak_memory_bytes": machine.peak(device)})
    kept = [int(each) for each in here.total({str(here.rank): held}).values()]
    memory = {"estimated_memory_bytes": needed(row), **peak, "held_bytes": kept}
    return {**made, "base": begin.name, **summary, **memory, "processes": here.size}


def _quantizer(recipe: Training) -> Any:
    """What makes the frozen base small, or None. Raises Invalid where this machine cannot, MissingExtra."""
    if recipe.quantize_base == "none":
        return None
    quantizer = QUANTIZERS.get(recipe.quantize_base)()
    quantizer.check(machine.device())
    return quantizer


def _model(begin: Begin, dtype: torch.dtype, **more: Any):
    kind = {"dtype": dtype, "attn_implementation": attention.install(), **more}
    if begin.base:
        return AutoModelForCausalLM.from_pretrained(begin.base.path, **kind)
    return AutoModelForCausalLM.from_config(begin.config, **kind)


WORTH_COMPILING, WORTH_COMPILING_MINUTES = 5e13, 3
"""Operations of a training from which on compiled kernels win back the half minute that they cost, and about how long
those take. Pace is measured with the kernels that the training has, so a training by the clock is judged by its minutes."""


def _kernels(run: Run, device: torch.device, operations: float, minutes: float | None) -> Kernels:
    """Compiled ones for a long training on a CPU, where there is a compiler; it is said when there is none.

    `operations`: of all epochs; `minutes`: those that the training gets, None for as many as it takes.
    """
    long = operations >= WORTH_COMPILING and (minutes is None or minutes >= WORTH_COMPILING_MINUTES)
    if device.type != "cpu" or not long:
        return PLAIN
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(settings.load().home / "cache" / "inductor"))
    run.update(progress={"stage": "compile", "done": 0, "total": 0, "unit": "", "rate": 0.0, "detail": ""})
    try:
        kernels = compiled()
        kernels.slope(torch.zeros(3, 8), torch.zeros(3, 1, dtype=torch.long))
    except (RuntimeError, OSError) as error:
        run.note(say("train.no_compiler", why=str(error).strip().splitlines()[0][:200]))
        return PLAIN
    return kernels


def _digest(files: Sequence[dict[str, Any]]) -> str:
    """Of the data, wherever its files lie."""
    return hashlib.sha256("".join(file["sha256"] for file in files).encode()).hexdigest()


def _beginning(
    run: Run, begin: Begin, data: str, wanted: int, least: int, device: torch.device, needed: Callable[[int], int]
) -> int:
    """Tokens of a row: those that the run began with, or the most that fit, and written down. Raises Conflict when it
    began from another base or with other `data` (a digest), TooLarge.

    A run that is resumed must go on from the same base, its place among the same examples, and by the same rows: others
    add up in another order.
    """
    note = run.folder / "base.json"
    before = json.loads(note.read_text(encoding="utf-8")) if note.is_file() else {}
    if before.get("sha256", begin.sha256) != begin.sha256:
        raise Conflict("train.base_changed", id=run.id)
    if before.get("data", data) != data:
        raise Conflict("train.data_changed", id=run.id)
    row = int(before.get("row_tokens", wanted))
    row = machine.fitting_row(row, row if before else least, begin.name, device, needed)
    note.write_text(json.dumps({"sha256": begin.sha256, "data": data, "row_tokens": row}), encoding="utf-8")
    return row


# ---- what came of it ----

Tensors = dict[str, torch.Tensor]
"""Whole, by name."""


def _save_adapter(
    recipe: Training, run: Run, model, tensors: Tensors, begin: Begin, files: list[dict[str, Any]]
) -> dict[str, Any]:
    aside = run.folder / ".out.part"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    lora.save(
        model, tensors, aside, base=str(begin.base.path) if begin.base else "", rank=recipe.lora_rank,
        alpha=recipe.lora_alpha, dropout=recipe.lora_dropout, rslora=recipe.lora_rslora, dora=recipe.lora_dora,
    )  # fmt: skip
    begin.tokenizer.save(aside)
    write_manifest(
        aside,
        {
            "manifest": VERSION,
            "name": recipe.name or run.id,
            "kind": "base",
            "format": "lora",
            **_history(recipe, run, begin, files),
        },
    )
    if run.out.exists():
        shutil.rmtree(run.out)
    aside.rename(run.out)
    return {"adapter": str(run.out)}


def _save_model(
    recipe: Training, run: Run, model, tensors: Tensors, begin: Begin, files: list[dict[str, Any]]
) -> dict[str, Any]:
    """A Hugging Face folder among the models, in float32 as it was trained."""
    store = ModelStore(settings.load())
    name = recipe.name or run.id
    store.folder.mkdir(parents=True, exist_ok=True)
    aside = store.folder / f".train-{run.id}"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    model.save_pretrained(aside, state_dict=tensors)
    begin.tokenizer.save(aside)
    made = digests(aside, "hf")
    write_manifest(
        aside,
        {
            "manifest": VERSION,
            "name": name,
            "kind": begin.base.kind if begin.base else "base",
            "format": "hf",
            "size_bytes": sum(file["size_bytes"] for file in made),
            "sha256": made[0]["sha256"],
            "files": made,
            "source": "mofang",
            "added_at": now(),
            **_history(recipe, run, begin, files),
        },
    )
    if _own(store, name, run):
        shutil.rmtree(store.folder / name)
    store.publish(aside, name)
    return {"model": name, "path": str(store.folder / name)}


def _once(model) -> Tensors:
    """The model's state; of a tensor with two names, the first."""
    first = {name for name, _ in model.named_parameters()}
    again = {name for name, _ in model.named_parameters(remove_duplicate=False)} - first
    return {name: tensor for name, tensor in model.state_dict().items() if name not in again}


def _check_name(recipe: Training, run: Run) -> None:
    """Raises Conflict when another model has the name that the result will have."""
    store, name = ModelStore(settings.load()), recipe.name or run.id
    if not _own(store, name, run):
        store.check_free(name)


def _own(store: ModelStore, name: str, run: Run) -> bool:
    """Whether the model of that name came of this very run, ended before."""
    return any(
        ref.name == name and ref.managed and (ref.manifest.get("made_by") or {}).get("run") == run.id
        for ref in store.plain()
    )


def _history(recipe: Training, run: Run, begin: Begin, data: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "parents": begin.parents,
        "runs": [run.id, *(lineage(begin.base) if begin.base else ())],
        "recipe": recipe.model_dump(mode="json"),
        "data": data,
        "tokenizer_sha256": begin.tokenizer.sha256(),
        "made_by": {"run": run.id, "kind": recipe.kind, "mofang": __version__, "torch": torch.__version__},
    }
