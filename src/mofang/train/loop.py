"""The one training loop: which examples make a step, how the step is computed, measured, saved, stopped, resumed.

An optimizer step is over `batch_size` examples, however they are laid into rows: each row adds its share of the
gradient, divided by all supervised tokens (or pairs) of the step, so that rows, packing and memory change nothing that is
learned, nor do processes that share a step out (world.py). The order of examples follows from the seed and the epoch
alone, so a position in it is one number.
"""

import math
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch

from mofang.data.encode import Ids
from mofang.data.pack import pack
from mofang.errors import MofangError, Unreadable
from mofang.platform import give_back_memory
from mofang.runs import Run, Stopped
from mofang.strings import say
from mofang.train import checkpoint, lora
from mofang.train import pace as paces
from mofang.train.pace import Pace
from mofang.train.samples import Samples
from mofang.train.world import ALONE, World

TIDY_EVERY = 4
"""Steps. Rows of ever other lengths leave holes in the heap, half as much again after some hundred steps; closing them costs
a twentieth of a step's time."""


class Item(Protocol):
    """What a step is made of: an example, or a pair of them."""

    @property
    def ids(self) -> Ids:
        """Every token that it takes in a row."""

    @property
    def n_supervised(self) -> int:
        """Tokens that count in the loss."""


RowLoss = Callable[[Sequence[Any]], tuple[torch.Tensor, dict[str, float]]]
"""Sum of one row's losses, differentiable, and sums of what else is measured, to be recorded under these names."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a training consists of, known before it begins."""

    n_examples: int
    epochs: int
    batch_size: int
    seed: int
    max_steps: int | None = None
    n_tokens: int = 0
    """Of an epoch."""

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(self.n_examples / self.batch_size)

    @property
    def steps(self) -> int:
        whole = self.epochs * self.steps_per_epoch
        return min(whole, self.max_steps or whole)

    def batch(self, step: int) -> list[int]:
        """Numbers of the examples of that step (from 0)."""
        epoch, within = divmod(step, self.steps_per_epoch)
        order = np.random.default_rng((self.seed, epoch)).permutation(self.n_examples)
        return [int(number) for number in order[within * self.batch_size :][: self.batch_size]]


def learning_rate(step: int, steps: int, highest: float, warmup: int, scheduler: str) -> float:
    """Of the step with that number (from 0)."""
    if step < warmup:
        return highest * (step + 1) / warmup
    left = 1 - (step - warmup) / max(1, steps - warmup)
    shape = {"constant": 1.0, "linear": left, "cosine": 0.1 + 0.9 * (0.5 - 0.5 * math.cos(math.pi * left))}
    return highest * shape[scheduler]


@dataclass
class Loop:
    """`recipe` has the fields of recipes.training.Training that name steps, rates and intervals.

    `weight`: what one item counts in a mean, its supervised tokens or 1 for a pair.
    """

    model: torch.nn.Module
    parameters: Sequence[torch.nn.Parameter]
    row_loss: RowLoss
    examples: Sequence[Item]
    eval_examples: Sequence[Item]
    plan: Plan
    recipe: Any
    run: Run
    weight: Callable[[Any], int]
    eval_bytes: int = 0
    """UTF-8 bytes of what is learned in the held-out examples; 0: bits per byte say nothing of this objective."""
    samples: Samples | None = None
    board: Any = None
    """Another place for metrics, of train.BOARDS."""
    world: World = ALONE

    def __post_init__(self) -> None:
        recipe = self.recipe
        self.optimizer = torch.optim.AdamW(
            self.parameters,
            lr=recipe.learning_rate,
            betas=(0.9, 0.999),
            weight_decay=recipe.weight_decay,
            fused=True,  # one pass over memory: a quarter of the time, where every weight is trained
        )
        self.step = 0
        self._recent: deque[float] = deque(maxlen=20)
        """Seconds of the last steps, for the time left."""

    def resume(self) -> int:
        """Go to the newest checkpoint, when there is one. Returns the step at which training goes on."""
        newest = self.world.first(self._newest)
        if newest:
            self.step = checkpoint.load(self.run.checkpoints / newest, self.model, self.optimizer)
        self.world.align(self.parameters)
        self.run.forget_metrics(beyond=self.step)
        metrics = self.run.metrics()
        if self.board:
            self.board.begin(metrics)
        return self.step

    def _newest(self) -> str:
        """The name of the newest checkpoint that can be read, "" where there is none. A broken one is said and left; if
        all are, raises Unreadable of the newest: to begin from nothing would lose what was learned."""
        first: Unreadable | None = None
        for path in reversed(checkpoint.found(self.run.checkpoints)):
            try:
                checkpoint.check(path)
            except Unreadable as error:
                first = first or error
                continue
            if first:
                self.run.note(say("train.checkpoint_before", why=first.message(), used=path.name))
            return path.name
        if first:
            raise first
        return ""

    def train(self) -> dict[str, float]:
        """Run to the end of the plan. Raises Stopped after saving. Returns the first and last losses."""
        recipe = self.recipe
        self.world.begin_steps()
        started = time.monotonic()
        self._evaluate()
        evaluated = time.monotonic() - started
        self._sample()
        self.model.train()
        expected = self._measure(evaluated)
        steps = self.plan.steps
        warmup = math.ceil(recipe.warmup_ratio * steps)
        begun = time.monotonic()
        seen = 0
        while self.step < steps and not self._is_worn_out():
            started = time.monotonic()
            batch = [self.examples[number] for number in self.plan.batch(self.step)]
            rate = learning_rate(self.step, steps, recipe.learning_rate, warmup, recipe.lr_scheduler)
            loss, norm, n_rows, measured = self._step(batch, rate)
            self.step += 1
            seconds = time.monotonic() - started
            tokens = sum(len(example.ids) for example in batch)
            seen += tokens
            self._recent.append(seconds)
            self._record(
                {
                    "step": self.step,
                    "epoch": round(self.step / self.plan.steps_per_epoch, 4),
                    "loss": loss,
                    **measured,
                    "learning_rate": rate,
                    "grad_norm": norm,
                    "tokens": tokens,
                    "supervised_tokens": sum(example.n_supervised for example in batch),
                    "rows": n_rows,
                    "seconds": round(seconds, 4),
                }
            )
            self._tell(loss, seen / (time.monotonic() - begun))
            if self.step % TIDY_EVERY == 0:
                give_back_memory()
            ended = self.step == steps
            if self.step % recipe.save_every == 0 or ended:
                self._save()
            if not ended:
                self._check_stop()
            self._evaluate()
            self._sample()
        return {**self._summary(), **expected, **self._take_best()}

    def _measure(self, evaluation_s: float) -> dict[str, float]:
        """Say how long it will take, and take no more steps than fit into the recipe's minutes."""
        recipe, path = self.recipe, self.run.folder / "pace.json"
        pace = self.world.first(lambda: paces.kept(path))
        if not pace:
            if not recipe.max_minutes and self.plan.steps < paces.WORTH_MEASURING:
                return {}
            self._tell_stage("measure")
            numbers = np.linspace(0, self.plan.steps - 1, paces.WARM_UP + paces.MEASURED).astype(int)
            measured = Pace(paces.per_token(self._try, numbers.tolist()), evaluation_s)
            self.optimizer.state.clear()
            pace = self.world.first(lambda: paces.keep(path, measured))
        every = recipe.eval_every or self.plan.steps_per_epoch
        tokens = self.plan.n_tokens / self.plan.steps_per_epoch
        if recipe.max_minutes:
            fit = pace.steps_in(60 * recipe.max_minutes, tokens, every)
            self.plan = replace(self.plan, max_steps=min(fit, self.plan.steps))
        seconds = pace.seconds(self.plan.steps, tokens, every)
        self.run.note(say("train.expected", steps=self.plan.steps, minutes=f"{seconds / 60:.1f}"))
        return {"estimated_seconds": seconds}

    def _try(self, step: int) -> int:
        """A step that moves no weight. Returns its tokens."""
        batch = [self.examples[number] for number in self.plan.batch(step)]
        self._step(batch, 0.0)
        return sum(len(example.ids) for example in batch)

    def _step(self, batch: Sequence[Item], rate: float) -> tuple[float, float, int, dict[str, float]]:
        """One optimizer step. Returns the mean loss, the gradient's length, the rows, and what else was measured."""
        weight = max(1, sum(map(self.weight, batch)))
        seed = np.random.SeedSequence((self.plan.seed, self.step, self.world.rank)).generate_state(1, np.uint64)
        torch.manual_seed(int(seed[0]))  # dropout draws the same in a run that is resumed
        found = self.world.total(self._through(batch, lambda loss: (loss / weight).backward()))
        self.world.add_gradients(self.parameters)
        total, n_rows = found.pop("loss"), int(found.pop("rows"))
        norm = self.world.clip(self.parameters, self.recipe.max_grad_norm)
        if not math.isfinite(total) or not math.isfinite(norm):
            raise MofangError("train.not_finite", step=self.step + 1, rate=f"{rate:g}")
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return total / weight, norm, n_rows, {name: value / weight for name, value in found.items()}

    def _through(self, examples: Sequence[Item], then: Callable[[torch.Tensor], None]) -> dict[str, float]:
        """Sums over this process's share of the examples: "loss", "rows", and what else is measured. `then` gets each
        row's loss."""
        sums: Any = Counter({"loss": 0.0, "rows": 0})
        own = self._rows(self.world.share(examples, lambda example: len(example.ids)))
        for row, counts in self.world.evenly(own, [examples[0]]):
            loss, measured = self.row_loss(row)
            then(loss if counts else 0 * loss)
            if counts:
                sums.update({"loss": loss.item(), "rows": 1, **measured})
        return sums

    def _rows(self, batch: Sequence[Item]) -> list[list[Item]]:
        if not self.recipe.packing:
            return [[example] for example in batch]
        numbers = pack([len(example.ids) for example in batch], self.recipe.row_tokens)
        return [[batch[number] for number in row] for row in numbers]

    @torch.no_grad()
    def _evaluate(self) -> None:
        """Mean loss of the held-out examples, when this step wants it and it was not measured yet.

        They never move a weight. A stop in between loses nothing: the resumed run measures it.
        """
        every = self.recipe.eval_every or self.plan.steps_per_epoch
        due = self.step % every == 0 or self.step == self.plan.steps
        if not self.eval_examples or not due or any("eval_loss" in row for row in self.run.metrics(self.step - 1)):
            return
        self.model.eval()
        sums: Counter[str] = Counter()
        for start in range(0, len(self.eval_examples), self.plan.batch_size):
            self._check_stop()
            part = self.eval_examples[start : start + self.plan.batch_size]
            sums.update(self._through(part, lambda loss: None))
        measured = self.world.total(sums)
        total, _ = measured.pop("loss"), measured.pop("rows")
        count = sum(map(self.weight, self.eval_examples))
        also = {f"eval_{name}": value / count for name, value in measured.items()}
        if self.eval_bytes:
            also["eval_bits_per_byte"] = total / math.log(2) / self.eval_bytes
        self._record({"step": self.step, "eval_loss": total / count, **also})
        if self.recipe.load_best_model_at_end and self.step and min(self._measured())[1] == self.step:
            weights = self.world.whole(lora.named(self.model))
            self.world.first(lambda: checkpoint.save_best(self.run.checkpoints, weights, self.step))
        self.model.train()

    def _record(self, row: dict[str, Any]) -> None:
        self.run.record(row)
        if self.board:
            self.board.write(row)

    def _measured(self) -> list[tuple[float, int]]:
        """(eval loss, step) of every measurement after a step."""
        return [(row["eval_loss"], row["step"]) for row in self.run.metrics(0) if "eval_loss" in row]

    def _is_worn_out(self) -> bool:
        """Whether the eval loss has not fallen for as long as the recipe has patience. Read from the metrics, so that a
        run that is resumed counts on."""
        patience = self.recipe.early_stopping_patience
        measured = self._measured() if patience else []
        if not measured:
            return False
        since = len(measured) - 1 - measured.index(min(measured))
        if since >= patience:
            self.run.note(say("train.stopped_early", step=self.step, best=min(measured)[1]))
        return since >= patience

    def _take_best(self) -> dict[str, float]:
        """The weights of the lowest eval loss, where the recipe wants them."""
        if not self.recipe.load_best_model_at_end or not self._measured():
            return {}
        loss, step = min(self._measured())
        if step != self.step:
            checkpoint.load_best(self.run.checkpoints, self.model)
            self.world.align(self.parameters)
            self.run.note(say("train.took_best", step=step, loss=f"{loss:.4f}"))
        return {"best_step": step, "best_eval_loss": loss}

    def _check_stop(self) -> None:
        """Raises Stopped when somebody asked for it, after saving."""
        if self.run.stop_asked():
            if self.step:
                self._save()
            raise Stopped

    def _save(self) -> None:
        state = checkpoint.State.of(self.model, self.optimizer, self.world)

        def write() -> None:
            keep = self.recipe.keep_checkpoints
            self.run.saved(checkpoint.save(self.run.checkpoints, state, self.step, keep=keep))

        self.world.first(write)

    def _sample(self) -> None:
        every = self.recipe.sample_every
        if self.samples and every and (self.step % every == 0 or self.step == self.plan.steps):
            self.samples.write(self.step)

    def _tell_stage(self, stage: str) -> None:
        self.run.update(progress={"stage": stage, "done": 0, "total": 0, "unit": "", "rate": 0.0})

    def _tell(self, loss: float, tokens_per_s: float) -> None:
        rate = len(self._recent) / sum(self._recent)
        self.run.update(
            progress={
                "stage": "train",
                "done": self.step,
                "total": self.plan.steps,
                "unit": "steps",
                "rate": rate,
                "seconds_left": (self.plan.steps - self.step) / rate,
                "detail": f"loss {loss:.3f} · {tokens_per_s:.0f} tokens/s",
            }
        )

    def _summary(self) -> dict[str, float]:
        rows = self.run.metrics()
        losses = [row["loss"] for row in rows if "loss" in row]
        evals = [row["eval_loss"] for row in rows if "eval_loss" in row]
        found = {"steps": self.step, "first_loss": losses[0], "last_loss": losses[-1]}
        if evals:
            found |= {"first_eval_loss": evals[0], "last_eval_loss": evals[-1]}
        bits = [row["eval_bits_per_byte"] for row in rows if "eval_bits_per_byte" in row]
        if bits:
            found |= {"first_eval_bits_per_byte": bits[0], "last_eval_bits_per_byte": bits[-1]}
        timed = [row for row in rows if "seconds" in row]
        found["tokens_per_s"] = sum(row["tokens"] for row in timed) / sum(row["seconds"] for row in timed)
        return found
