"""A model with rows for the new tokens of its extended tokenizer, so that it can be trained on.

A new token's row is a mixture of old rows (rows/): the model begins with what it knew. Embedding and head each from
their own rows where they are two matrices; one stays one. Rows that only filled up the matrix are used before it grows.
What the model says of old tokens must not change, to the last bit of their logits' rows.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from mofang.errors import Invalid, MofangError
from mofang.export import folder
from mofang.export.rows import ROWS
from mofang.export.rows.blend import Blend, mixed
from mofang.models.base import ModelRef
from mofang.models.sources.base import need_disk
from mofang.models.store import lineage
from mofang.recipes.export import Resize
from mofang.runs import Reporter, Run
from mofang.strings import say
from mofang.tokenizer import Tokenizer, texts
from mofang.tokenizer import load as load_tokenizer
from mofang.tokenizer.extend import RECORD

SHOWN, NEAREST = 6, 3
"""New tokens whose nearest old ones are told, and how many of them."""
PROBE = "模坊 takes an open language model all the way. 床前明月光"
BOUND = 1e-5
"""Largest relative change of old tokens' logits: a wider head is multiplied in other blocks, so the last bits may move."""


def run(recipe: Resize, run: Run) -> dict[str, Any]:
    """The worker of `mofang export resize`."""
    base = folder.find(recipe.model)
    if base.format != "hf":
        raise Invalid("export.not_convertible", param="model", name=base.name, format=base.format)
    place = Path(recipe.tokenizer).expanduser()
    old, new = load_tokenizer(base.path, source=True), load_tokenizer(place, source=True)
    check_extends(old, new, base, place)
    name = folder.free_name(recipe.name or f"{base.name}-extended", overwrite=recipe.overwrite, run=run)
    report = Reporter(run)
    made_of, n_left = blends(recipe, old, new, report)
    if n_left:
        run.note(say("export.rows_left", init=recipe.init, n=n_left, n_new=len(made_of)))
    with folder.aside(run) as target:
        need_disk(target, base.size_bytes * 2)
        found = write(base.path, old, new, target, made_of, report)
        found |= {"init": recipe.init, "n_left": n_left}
        new.save(target)
        if (place / RECORD).is_file():
            shutil.copy(place / RECORD, target / RECORD)
        cutter = {"role": "tokenizer", "name": place.name, "tokenizer_sha256": new.sha256()}
        made = folder.publish(
            target, name, format="hf", kind=base.kind, run=run, parents=[folder.parent(base, "base"), cutter],
            runs=lineage(base), overwrite=recipe.overwrite, tokenizer_sha256=new.sha256(),
            tools=folder.tools("torch", "transformers", "safetensors", "tokenizers"),
            checks={"old_logits_kept": found["logits_change"]}, resized=found,
        )  # fmt: skip
    run.note(say("export.resized", name=made.name, n_new=found["n_new"], rows=found["rows"]))
    for token, near in found["neighbours"].items():
        run.note(f"{token} ≈ {' '.join(near)}")
    return {"model": made.name, "path": str(made.path), **found}


def check_extends(old: Tokenizer, new: Tokenizer, base: ModelRef, place: Path) -> None:
    """Raises Invalid unless every old token has its id in the new tokenizer, and there are more."""
    differs = next((n for n in range(old.n_vocab) if old.token(n) != new.token(n)), None)
    if differs is not None:
        raise Invalid(
            "export.not_extended", param="tokenizer", path=place, base=base.name,
            id=differs, old=old.token(differs), new=new.token(differs),
        )  # fmt: skip
    if new.n_vocab == old.n_vocab:
        raise Invalid("export.nothing_new", param="tokenizer", path=place, base=base.name)


def blends(recipe: Resize, old: Tokenizer, new: Tokenizer, report: Reporter) -> tuple[list[Blend], int]:
    """What each new row is made of, and of how many the recipe's way knew nothing: those are their parts, or else the
    mean. Raises Invalid, Unreadable for texts that cannot be read or say nothing."""
    files = texts.files(map(Path, recipe.texts)) if recipe.texts else []
    found: list[Blend | None] = [None] * (new.n_vocab - old.n_vocab)
    n_left = 0
    for way in dict.fromkeys([recipe.init, "parts", "mean"]):
        more = ROWS.get(way)(old, new, lambda: texts.lines(files), lambda done: report("read", done, 0, ""))
        found = [one or other for one, other in zip(found, more, strict=True)]
        if way == recipe.init:
            n_left = found.count(None)
        if None not in found:
            break
    return [one for one in found if one], n_left


@torch.no_grad()
def write(
    path: Path, old: Tokenizer, new: Tokenizer, target: Path, made_of: Sequence[Blend], report: Reporter
) -> dict[str, Any]:
    """Write weights and configuration into `target`. Raises MofangError when old tokens' logits changed."""
    report("load", 0, 3, "")
    model = AutoModelForCausalLM.from_pretrained(path, dtype="auto").eval()
    ids = torch.tensor([old.encode(PROBE)])
    before = model(ids).logits[0, :, : old.n_vocab].float()
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    tied = head is None or head.weight is embedding.weight
    fresh = {
        name: mixed(matrix.weight, made_of)
        for name, matrix in (("embedding", embedding), ("head", None if tied else head))
        if matrix is not None
    }
    report("resize", 1, 3, "")
    rows = max(embedding.weight.shape[0], new.n_vocab)
    model.resize_token_embeddings(rows, mean_resizing=False)
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    embedding.weight[old.n_vocab : new.n_vocab] = fresh["embedding"]
    if not tied:
        head.weight[old.n_vocab : new.n_vocab] = fresh["head"]
    after = model(ids).logits[0, :, : old.n_vocab].float()
    change = float((after - before).abs().max() / before.abs().max())
    if change > BOUND or (tied and head is not None and head.weight is not embedding.weight):
        raise MofangError("export.resize_disagrees", change=change, bound=BOUND)
    report("write", 2, 3, "")
    model.save_pretrained(target)
    return {
        "n_new": new.n_vocab - old.n_vocab,
        "rows": rows,
        "tied": tied,
        "logits_change": change,
        "neighbours": neighbours(embedding.weight, old, new),
    }


def neighbours(weight: torch.Tensor, old: Tokenizer, new: Tokenizer) -> dict[str, list[str]]:
    """Some new tokens and the old tokens nearest to them by cosine: for people to see whether rows make sense."""
    shown = {}
    for token_id in range(old.n_vocab, new.n_vocab):
        text = new.decode([token_id]).strip()
        if len(text) > 1 and "\ufffd" not in text:
            near = torch.cosine_similarity(weight[: old.n_vocab].float(), weight[token_id].float()[None])
            shown[text] = [old.token(int(n)) for n in near.topk(NEAREST).indices]
        if len(shown) == SHOWN:
            break
    return shown
