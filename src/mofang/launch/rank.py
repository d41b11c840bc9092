"""One of several processes of a training: `python -m mofang.launch.rank <folder of the run>`. See mofang.launch.torchrun."""

import json
import os
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from mofang.errors import MofangError
from mofang.launch.worker import function, prepare_process
from mofang.platform import end_with_parent, n_cores, numa_nodes, stay_on
from mofang.recipes import parse, read_yaml, recipe_class
from mofang.runs import Run, Stopped, failed


def main() -> int:
    end_with_parent()
    prepare_process()
    _take_cores(int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"]))
    folder, rank = Path(sys.argv[1]), int(os.environ["RANK"])
    if rank:
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115  # all do the same, and the first says it
    word = _work(folder)
    aside = folder / "ranks" / f".{rank}.part"
    aside.write_text(json.dumps({"rank": rank, "at": time.time(), **word}, ensure_ascii=False), encoding="utf-8")
    aside.replace(folder / "ranks" / f"{rank}.json")
    if word["status"] not in ("done", "stopped"):
        return 1
    _world().leave()
    return 0


def _work(folder: Path) -> dict[str, Any]:
    """What there is to say in the end."""
    try:
        recipe = parse(recipe_class(Run(folder).state().kind), read_yaml(folder / "ranks" / "recipe.yaml"))
        world = _world()
        shared = world.Shared(folder, world.join(folder / "ranks" / "meeting"))
        return {"status": "done", "result": function(recipe.worker)(recipe, shared)}
    except Stopped:
        return {"status": "stopped"}
    except MofangError as error:
        print(error, file=sys.stderr, flush=True)
        return {"status": "failed", "error": failed(error)}
    except Exception as error:
        traceback.print_exc()
        return {"status": "crashed", "why": f"{type(error).__name__}: {error}"}


def _world() -> Any:
    from mofang.train import world  # brings torch, which reads what is set above

    return world


def _take_cores(number: int, count: int) -> None:
    """A share of this machine's cores; those next to one memory, where the processes can be dealt out so."""
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, n_cores() // count)))
    nodes = numa_nodes()
    if count % len(nodes) == 0:
        stay_on(nodes[number * len(nodes) // count])


if __name__ == "__main__":
    sys.exit(main())
