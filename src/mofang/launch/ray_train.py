"""The launcher "ray": a training by the workers of a Ray cluster (Ray Train).

    run's process        Ray's driver; where no cluster is named it starts a Ray of its own, which ends with it
      controller         Ray's: starts the workers, and begins anew after a loss
        worker 0, 1…     `_work`: the recipe's own worker, as under every launcher (mofang.launch.rank)

All machines read and write one home: the run's checkpoints, metrics and words lie there. A worker that is lost takes the
others with it; the next ones go on from the run's last checkpoint as a person's `mofang runs resume` would. So does a
run whose own process was killed: Ray ends the workers of a driver that is gone. A machine that is about to be taken away
says so, and the run saves first.

Ray's TorchTrainer would join the workers by a TCP store that listens to the whole network; on one machine they meet by a
file (mofang.train.world), so its parent class is used.  Docs: https://docs.ray.io/en/latest/train/api/api.html
"""

import os
import socket
import sys
import uuid
from pathlib import Path
from typing import Any

import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError, get_context, get_preemption_info
from ray.train.collective import broadcast_from_rank_zero
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from mofang.client import ApiError
from mofang.errors import MofangError
from mofang.launch import rank, ray_cluster
from mofang.recipes import Recipe
from mofang.recipes.launchers import Ray
from mofang.runs import Run
from mofang.strings import say
from mofang.train.world import Shared, join


class NoHome(Exception):
    """A worker's machine does not have the run's folder."""


def run(launcher: Ray, recipe: Recipe, run: Run) -> dict[str, Any]:
    """The recipe's result, as the first worker returned it. Raises what a worker failed with, Stopped."""
    folder = rank.tell(recipe, run)
    failure: TrainingFailedError | None = None
    with ray_cluster.connected(launcher.cluster):
        scaling = _scaling(launcher)
        count = scaling.num_workers if isinstance(scaling.num_workers, int) else launcher.workers
        run.note(say("launch.ray_workers", n=count, nodes=len(ray_cluster.nodes())))
        trainer = DataParallelTrainer(
            _work,
            train_loop_config={"folder": str(run.folder)},
            scaling_config=scaling,
            run_config=RunConfig(
                name="ray",
                storage_path=str(folder),
                failure_config=FailureConfig(max_failures=launcher.max_failures),
                worker_runtime_env={"env_vars": ray_cluster.environment()},
            ),
        )
        try:
            trainer.fit()
        except TrainingFailedError as error:
            failure = error
    words = rank.last_words(run.folder)
    if (result := rank.result_of(words)) is not None:
        return result
    raise _cause(words, failure, run)


def _scaling(launcher: Ray) -> ScalingConfig:
    """As many workers as were asked for, each with its share of a machine's cores. Raises Invalid for more than fit."""
    workers, on_gpus = ray_cluster.crew(launcher.workers, fewer=bool(launcher.min_workers))
    return ScalingConfig(
        num_workers=(launcher.min_workers, workers) if launcher.min_workers else workers,
        use_gpu=on_gpus,
        resources_per_worker={"CPU": ray_cluster.share(workers), **({"GPU": 1} if on_gpus else {})},
    )


# ---- a worker ----


class _Watched(Shared):
    """The run as a worker sees it: one whose machine is about to be taken away is asked to stop, so that it saves."""

    def stop_asked(self) -> bool:
        leaving = get_preemption_info() is not None  # all of them ask, and are told the same
        return super().stop_asked() or leaving


def _work(told: dict[str, Any]) -> None:
    """One worker's part. What it raises makes Ray begin anew; what cannot be mended by that is left as a word."""
    folder, number = Path(told["folder"]), get_context().get_world_rank()
    if not (folder / "ranks" / "recipe.yaml").is_file():
        raise NoHome(f"{socket.gethostname()}: {folder}")
    words = rank.last_words(folder)
    if any(word["status"] == "failed" for word in words.values()):
        return  # it would fail again
    begun = folder / "ranks" / "begun"
    with Run(folder).log.open("a", buffering=1) if number == 0 else Path(os.devnull).open("w") as out:
        sys.stdout = out  # all do the same, and the first says it
        try:
            meeting = _meet(folder)
            if number == 0:
                if begun.exists():
                    Run(folder).note(say("launch.ray_again"))
                begun.touch()
            word = rank.work(folder, lambda: _Watched(folder, join(meeting)))
        finally:
            sys.stdout = sys.__stdout__
    if word["status"] == "stopped" and not (folder / "stop").exists():
        raise RuntimeError("a machine is taken away")  # saved; Ray goes on elsewhere
    rank.say_last(folder, number, word)
    if word["status"] not in ("done", "stopped"):
        raise RuntimeError(word.get("why") or word["error"]["code"])


def _meet(folder: Path) -> Path:
    """Tell torch.distributed, by torchrun's variables, who is who. Returns the file where those of one machine meet."""
    context = get_context()
    with socket.socket() as found:
        found.bind(("", 0))
        here = (ray.util.get_node_ip_address(), found.getsockname()[1], f"meeting-{uuid.uuid4().hex}")
    address, port, name = (str(each) for each in broadcast_from_rank_zero(here))
    os.environ.update(
        RANK=str(context.get_world_rank()), WORLD_SIZE=str(context.get_world_size()),
        LOCAL_RANK=str(context.get_local_rank()), LOCAL_WORLD_SIZE=str(context.get_local_world_size()),
        MASTER_ADDR=address, MASTER_PORT=port,
    )  # fmt: skip
    return folder / "ranks" / name


def _cause(words: dict[int, dict[str, Any]], failure: TrainingFailedError | None, run: Run) -> MofangError:
    """Why there is no result."""
    said = sorted(words.values(), key=lambda word: float(word["at"]))
    for word in said:
        if word["status"] == "failed":
            return ApiError(500, word["error"])
    reasons = getattr(failure, "worker_failures", None) or {}
    for number, reason in sorted(reasons.items()):
        if "NoHome" in f"{type(reason)} {reason}":  # Ray raises a class of its own that derives from it
            return MofangError("launch.ray_no_home", why=ray_cluster.last_line(reason))
        return MofangError("launch.rank_failed", rank=number, why=ray_cluster.last_line(reason), log=run.log)
    return MofangError("launch.rank_failed", rank=0, why=ray_cluster.last_line(failure), log=run.log)
