"""The launcher "torchrun": a training by several processes, on one machine or more.

    run's process ── rank 0, rank 1…       mofang.launch.rank, started and watched by torch.distributed's elastic agent
    runs/<id>/ranks/                       what they are told, and each one's last word (mofang.launch.rank)

One that fails ends all, and the run with its error. All end with the run's process, also when that is killed: their
standard input is a pipe whose other end it holds. On a further machine that has the same home, what the first one's run
waits for is started by `python -m mofang.launch.torchrun <folder of the run>`.
"""

import logging
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from mofang.errors import Invalid, MofangError
from mofang.launch import rank
from mofang.launch.worker import prepare_process
from mofang.platform import numa_nodes
from mofang.recipes import Recipe
from mofang.recipes.launchers import Torchrun
from mofang.runs import Run
from mofang.strings import say


def run(launcher: Torchrun, recipe: Recipe, run: Run) -> dict[str, Any]:
    """The recipe's result, as the first rank's worker returned it. Raises what a rank failed with, Stopped."""
    count = n_processes(launcher)
    rank.tell(recipe, run)
    run.note(say("launch.processes", n=count, nodes=launcher.nodes))
    failures = start(launcher, run.folder, count)
    said = rank.last_words(run.folder)
    if (result := rank.result_of(said)) is not None:
        return result
    raise _cause(said, failures, run)


def n_processes(launcher: Torchrun) -> int:
    """On this machine. Raises Invalid for more than there are GPUs."""
    gpus = torch.cuda.device_count()
    if gpus and launcher.processes > gpus:
        raise Invalid("launch.too_few_gpus", param="processes", n=launcher.processes, gpus=gpus)
    return launcher.processes or gpus or len(numa_nodes())


def start(launcher: Torchrun, folder: Path, count: int) -> dict[int, ProcessFailure]:
    """Start this machine's ranks and wait for their end. Returns those that failed, by rank, in the order of their end."""
    logging.getLogger("torch.distributed.elastic").setLevel(logging.ERROR)
    meeting: dict[str, Any] = {"rdzv_endpoint": launcher.rendezvous}
    if launcher.nodes == 1:  # by files: a TCP store would listen to the whole network, and unpickle what it is sent
        meeting = {"rdzv_endpoint": str(folder / "ranks" / "agents"), "rdzv_configs": {"store_type": "file"}}
        meeting["local_addr"] = "localhost"
        os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    config = LaunchConfig(
        min_nodes=launcher.nodes,
        max_nodes=launcher.nodes,
        nproc_per_node=count,
        run_id=folder.name,
        rdzv_backend="c10d",
        **meeting,
        max_restarts=0,  # a training goes on from its checkpoint when a person says so: mofang runs resume
        logs_specs=DefaultLogsSpecs(log_dir=os.devnull),  # they write into the run's own log
    )
    with _tied():
        try:
            elastic_launch(config, sys.executable)("-m", "mofang.launch.rank", str(folder))
        except ChildFailedError as error:
            return dict(error.failures)
        except SignalException as error:  # the agent caught it and ended the ranks: now end as any process would
            signal.signal(error.sigval, signal.SIG_DFL)
            os.kill(os.getpid(), error.sigval)
    return {}


class _tied:
    """While in it, children have a standard input that closes when this process ends, however it ends."""

    def __enter__(self) -> None:
        self._before = os.dup(0)
        read, self._write = os.pipe()  # the end that is written to is inherited by nobody
        os.dup2(read, 0)
        os.close(read)

    def __exit__(self, *_: object) -> None:
        os.close(self._write)
        os.dup2(self._before, 0)
        os.close(self._before)


def _cause(said: dict[int, dict[str, Any]], failures: dict[int, ProcessFailure], run: Run) -> MofangError:
    """Why they failed."""
    killed: MofangError | None = None
    for number, failure in failures.items():
        by_us = failure.exitcode == -signal.SIGTERM  # the agent ends the others by it
        if failure.exitcode < 0 and not by_us and not killed:
            name = signal.Signals(-failure.exitcode).name
            killed = MofangError("launch.rank_killed", rank=number, signal=name, log=run.log)
    number, code = next(((number, each.exitcode) for number, each in failures.items()), (0, 0))
    unknown = MofangError("launch.rank_failed", rank=number, why=f"exit {code}", log=run.log)
    return rank.cause(said, run, killed) or unknown


def main() -> int:
    """A further machine's part in a run that was started on another."""
    prepare_process()
    run = Run(Path(sys.argv[1]).absolute())
    launcher = run.launcher()
    try:
        if not isinstance(launcher, Torchrun) or launcher.nodes < 2:
            raise Invalid("launch.not_for_several", id=run.id)
        return 1 if start(launcher, run.folder, n_processes(launcher)) else 0
    except MofangError as error:
        print(error, file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
