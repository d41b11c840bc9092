"""Direct preference optimization: the worker of recipes.dpo.Dpo.

The reference is the model as it is before the first step, whatever of it is trained. Its log-probabilities are computed
once, kept beside the run, and read back when the run is resumed: no second model is ever in memory.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from mofang.data.pack import pack
from mofang.recipes.dpo import Dpo
from mofang.runs import Run
from mofang.strings import say
from mofang.train import lora, preference, world
from mofang.train.examples import Pair
from mofang.train.forward import Forward


@dataclass(frozen=True, slots=True)
class Referred(Pair):
    """A pair, and the sums of log p of its answers under the reference."""

    ref_chosen: float
    ref_rejected: float


def run(recipe: Dpo, run: Run) -> dict[str, Any]:
    """Train on pairs; the adapter or the model, its tokenizer and chat template, and a manifest are left."""

    def objective(forward: Forward, learned: Sequence[Pair], held_out: Sequence[Pair]):
        def row_loss(pairs: Sequence[Referred]) -> tuple[torch.Tensor, dict[str, float]]:
            chosen, rejected = preference.logps(forward, pairs)
            references = torch.tensor([[pair.ref_chosen, pair.ref_rejected] for pair in pairs], device=chosen.device)
            before, other = references.unbind(1)
            losses, margin = preference.dpo_loss(chosen, rejected, before, other, recipe.beta)
            return losses.sum(), {"margin": margin.sum().item(), "accuracy": float((margin > 0).sum())}

        both = referred(forward, [*learned, *held_out], recipe.row_tokens, run)
        return row_loss, both[: len(learned)], both[len(learned) :]

    return preference.train(recipe, run, objective)


def referred(forward: Forward, pairs: Sequence[Pair], row_tokens: int, run: Run) -> list[Referred]:
    """The pairs with their references, from run.folder where they were computed before for these very tokens."""
    key = hashlib.sha256()
    for pair in pairs:
        for example in (pair.chosen, pair.rejected):
            key.update(example.ids.tobytes() + b"|" + example.mask.tobytes())
    path = run.folder / "reference.safetensors"
    sums = world.of(run).first(lambda: _kept(path, key.hexdigest()))
    if sums is None:
        sums = _computed(forward, pairs, row_tokens, run)
        world.of(run).first(lambda: _keep(path, sums, key.hexdigest()))
        run.note(say("train.reference", n=len(pairs)))
    return [Referred(pair.chosen, pair.rejected, *sums[number].tolist()) for number, pair in enumerate(pairs)]


def _keep(path: Path, sums: torch.Tensor, key: str) -> None:
    aside = path.with_suffix(".part")
    save_file({"reference": sums}, str(aside), metadata={"pairs": key})
    aside.rename(path)


def _kept(path: Path, key: str) -> torch.Tensor | None:
    if not path.is_file():
        return None
    with safe_open(str(path), framework="pt") as file:
        found: torch.Tensor = file.get_tensor("reference")
        return found if (file.metadata() or {}).get("pairs") == key else None


def _computed(forward: Forward, pairs: Sequence[Pair], row_tokens: int, run: Run) -> torch.Tensor:
    """(n, 2) float32: sums of log p of the better and the worse answers, the companions off."""
    here = world.of(run)
    sums = torch.zeros(len(pairs), 2)
    rows = pack([len(pair.ids) for pair in pairs], row_tokens if forward.packs else 0)
    forward.model.eval()
    with torch.no_grad(), lora.off(forward.model):
        done = 0
        for start in range(0, len(rows), here.size):  # a row for each process
            run.check_stop()
            together = rows[start : start + here.size]
            for row, counts in here.evenly(together[here.rank : here.rank + 1], together[0]):
                found = torch.stack(preference.logps(forward, [pairs[number] for number in row]), dim=1).cpu()
                if counts:
                    sums[row] = found
            done += sum(map(len, together))
            progress = {"stage": "reference", "done": done, "total": len(pairs), "unit": "", "rate": 0.0, "detail": ""}
            run.update(progress=progress)
    here.add(sums)
    return sums
