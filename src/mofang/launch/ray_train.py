"""The launcher "ray": a training by the workers of a Ray cluster (Ray Train).

    run's process        Ray's driver; where no cluster is named it starts a Ray of its own, which ends with it
      controller         Ray's: starts the workers, and begins anew after a loss
        worker 0, 1…     `_work`: the recipe's own worker, as under every launcher (mofang.launch.rank)

All machines read and write one home: the run's checkpoints, metrics and words lie there. A worker that is lost takes the
others with it; the next ones go on from the run's last checkpoint as a person's `mofang runs resume` would. So does a
run whose own process was killed: Ray ends the workers of a driver that is gone. A machine that is about to be taken away
says so, and the run saves first. Where a storage is named, each checkpoint is kept there as well
(mofang.launch.storage); Ray's own storage holds nothing but its notes.

Ray's TorchTrainer would join the workers by a TCP store that listens to the whole network; on one machine they meet by a
file (mofang.train.world), so its parent class is used.  Docs: https://docs.ray.io/en/latest/train/api/api.html
"""

import os
import socket
import sys
import uuid
from pathlib import Path
from typing import Any, cast

import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError, get_context, get_preemption_info
from ray.train.collective import broadcast_from_rank_zero
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from mofang.errors import Conflict, MofangError
from mofang.launch import rank, ray_cluster
from mofang.launch.storage import Storage
from mofang.recipes import Recipe
from mofang.recipes.launchers import Ray
from mofang.recipes.training import Training
from mofang.runs import Run
from mofang.strings import say
from mofang.train.world import Lost, Shared, World, join

LEFT = "left"
"""A file among what the workers say: the last of them ended because a machine is taken away."""
HEALTH_S = 600.0
"""How long Ray's controller waits for a word from a worker's process, unless the recipe's patience is less."""


class NoHome(Exception):
    """A worker's machine does not have the run's folder."""


def run(launcher: Ray, recipe: Recipe, run: Run) -> dict[str, Any]:
    """The recipe's result, as the first worker returned it. Raises what a worker failed with, Stopped."""
    folder = rank.tell(recipe, run)
    _agree_on_patience(launcher)
    with ray_cluster.connected(launcher.cluster, places=launcher.workers):
        scaling = _scaling(launcher)
        count = scaling.num_workers if isinstance(scaling.num_workers, int) else launcher.workers
        run.note(say("launch.ray_workers", n=count, nodes=len(ray_cluster.nodes())))
        failure = _fit(launcher, scaling, run)
        while failure and (folder / LEFT).exists():  # one that leaves in peace is no failure, but Ray counts it as one
            failure = _fit(launcher, scaling, run)
    words = rank.last_words(run.folder)
    if (result := rank.result_of(words)) is not None:
        return result
    raise _cause(words, failure, run)


def _fit(launcher: Ray, scaling: ScalingConfig, run: Run) -> TrainingFailedError | None:
    """Let Ray's workers do it. Returns what Ray gave up with."""
    trainer = DataParallelTrainer(
        _work,
        train_loop_config={"folder": str(run.folder)},
        scaling_config=scaling,
        run_config=RunConfig(
            name=f"ray-{uuid.uuid4().hex}",
            storage_path=str(run.folder / "ranks"),
            failure_config=FailureConfig(max_failures=launcher.max_failures),
            worker_runtime_env=ray_cluster.runtime_env(),
        ),
    )
    (run.folder / "ranks" / LEFT).unlink(missing_ok=True)
    try:
        trainer.fit()
    except TrainingFailedError as error:
        return error
    return None


def _agree_on_patience(launcher: Ray) -> None:
    """Ray waits for a worker as long as the workers do for each other (in `_Watched` they meet by Ray), and gives up one
    whose process is stopped. Ray's controller and workers get these from here."""
    seconds = 60 * launcher.hang_minutes
    os.environ["RAY_TRAIN_COLLECTIVE_TIMEOUT_S"] = str(seconds)
    os.environ["RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S"] = str(min(HEALTH_S, seconds))


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
    """The run as a worker sees it: one whose machine is about to be taken away is asked to stop, so that it saves; and what
    is saved is kept in `storage`, too, which the first one has where there is any."""

    def __init__(self, folder: Path, world: World, storage: Storage | None) -> None:
        super().__init__(folder, world)
        self.storage = storage

    def stop_asked(self) -> bool:
        try:
            leaving = get_preemption_info() is not None  # all of them ask, and are told the same
        except Exception as error:
            if "CollectiveTimeout" in type(error).__name__:  # as Ray hands on an error of its own from another process
                raise Lost(ray_cluster.last_line(error)) from error
            raise
        return super().stop_asked() or leaving

    def saved(self, checkpoint: Path) -> None:
        if not self.storage:
            return
        try:
            self.storage.put(checkpoint, self.own)
        except Conflict:
            raise
        except MofangError as error:  # it lies in the run's folder, and the next one is tried again
            self.note(say("launch.storage_missed", step=checkpoint.name, why=error.message()))


def _work(told: dict[str, Any]) -> None:
    """One worker's part. What it raises makes Ray begin anew; what cannot be mended by that is left as a word."""
    folder, number = Path(told["folder"]), get_context().get_world_rank()
    if not (folder / "ranks" / "recipe.yaml").is_file():
        raise NoHome(f"{socket.gethostname()}: {folder}")
    words = rank.last_words(folder)
    if any(word["status"] in ("failed", "crashed") for word in words.values()):
        return  # it would fail again; what a loss brings about is called "lost"
    begun = folder / "ranks" / "begun"
    with Run(folder).log.open("a", buffering=1) if number == 0 else Path(os.devnull).open("w") as out:
        sys.stdout = out  # all do the same, and the first says it
        try:
            meeting = _meet(folder)
            if number == 0:
                if begun.exists():
                    Run(folder).note(say("launch.ray_again"))
                begun.touch()
                (folder / "ranks" / LEFT).unlink(missing_ok=True)
            word = rank.work(folder, lambda: _watched(folder, meeting, number))
        finally:
            sys.stdout = sys.__stdout__
    if word["status"] == "stopped" and not (folder / "stop").exists():
        (folder / "ranks" / LEFT).touch()
        raise RuntimeError("a machine is taken away")  # saved; Ray goes on elsewhere
    rank.say_last(folder, number, word)
    if word["status"] not in ("done", "stopped"):
        raise RuntimeError(word.get("why") or word["error"]["code"])


def _watched(folder: Path, meeting: Path, number: int) -> Run:
    run = Run(folder)
    launcher, recipe = cast(Ray, run.launcher()), cast(Training, run.recipe())
    storage: Storage | None = None
    if launcher.storage and number == 0:  # the others wait for it where they meet
        storage = Storage(launcher.storage, recipe, recipe.keep_checkpoints)
        storage.take(run)
    return _Watched(folder, join(meeting, launcher), storage)


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
    killed: MofangError | None = None
    reasons = getattr(failure, "worker_failures", None) or {}
    for number, reason in sorted(reasons.items()):
        if "NoHome" in f"{type(reason)} {reason}":  # Ray raises a class of its own that derives from it
            return MofangError("launch.ray_no_home", why=ray_cluster.last_line(reason))
        told = words.get(number, {}).get("why")  # maybe by its forerunner, which lost another
        if not killed and not (told and told in str(reason)):
            killed = MofangError("launch.rank_failed", rank=number, why=ray_cluster.last_line(reason), log=run.log)
    unknown = MofangError("launch.rank_failed", rank=0, why=ray_cluster.last_line(failure), log=run.log)
    return rank.cause(words, run, killed) or unknown
