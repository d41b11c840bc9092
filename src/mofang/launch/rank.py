"""One of several processes of a training: `python -m mofang.launch.rank <folder of the run>`. See mofang.launch.torchrun.

What they are told and what each said in the end lies in the run's folder, whoever started them:

    runs/<id>/ranks/recipe.yaml    what they are told
                   /<rank>.json    each one's last word
"""

import json
import os
import shutil
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mofang.client import ApiError
from mofang.errors import MofangError
from mofang.launch.worker import function, prepare_process
from mofang.platform import end_with_parent, n_cores, numa_nodes, stay_on
from mofang.recipes import Recipe, parse, read_yaml, recipe_class
from mofang.runs import Run, Stopped, failed


def main() -> int:
    end_with_parent()
    prepare_process()
    _take_cores(int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"]))
    folder, rank = Path(sys.argv[1]), int(os.environ["RANK"])
    if rank:
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115  # all do the same, and the first says it
    word = work(folder, lambda: _shared(folder))
    say_last(folder, rank, word)
    if word["status"] not in ("done", "stopped"):
        return 1
    _world().leave()
    return 0


def tell(recipe: Recipe, run: Run) -> Path:
    """Leave them what they need to know, and nothing of before. Returns the folder."""
    folder = run.folder / "ranks"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    (folder / "recipe.yaml").write_text(recipe.as_yaml(), encoding="utf-8")
    return folder


def last_words(folder: Path) -> dict[int, dict[str, Any]]:
    """By rank: {"rank", "at", "status": done | stopped | failed | crashed | lost, …}, of those that came to an end of their
    own; "lost": another one was gone, or silent for too long."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in (folder / "ranks").glob("*.json")]
    return {word["rank"]: word for word in found}


def result_of(words: dict[int, dict[str, Any]]) -> dict[str, Any] | None:
    """What the first one's worker returned, None where it did not come so far. Raises Stopped."""
    first = words.get(0, {})
    if first.get("status") == "stopped":
        raise Stopped
    return dict(first["result"]) if first.get("status") == "done" else None


def cause(words: dict[int, dict[str, Any]], run: Run, killed: MofangError | None = None) -> MofangError | None:
    """Why there is no result, as far as they said; `killed`: what is known of one that could not say anything. That one
    lost another is the reason only where there is no other: when one ends, all others lose it."""
    said = sorted(words.values(), key=lambda word: float(word["at"]))
    for word in said:
        if word["status"] == "failed":
            return ApiError(500, word["error"])
    if killed:
        return killed
    for status, code in (("crashed", "launch.rank_failed"), ("lost", "launch.rank_lost")):
        for word in said:
            if word["status"] == status:
                return MofangError(code, rank=word["rank"], why=word["why"], log=run.log)
    return None


def work(folder: Path, join: Callable[[], Run]) -> dict[str, Any]:
    """Do this process's part of the run, as `join` shares it with the others. Returns what there is to say in the end."""
    try:
        recipe = parse(recipe_class(Run(folder).state().kind), read_yaml(folder / "ranks" / "recipe.yaml"))
        return {"status": "done", "result": function(recipe.worker)(recipe, join())}
    except Stopped:
        return {"status": "stopped"}
    except MofangError as error:
        print(error, file=sys.stderr, flush=True)
        return {"status": "failed", "error": failed(error)}
    except Exception as error:
        traceback.print_exc()
        status = "lost" if _world().is_loss(error) else "crashed"
        return {"status": status, "why": f"{type(error).__name__}: {error}"}


def say_last(folder: Path, rank: int, word: dict[str, Any]) -> None:
    """Leave the last word of process `rank`, so that it is never seen half."""
    aside = folder / "ranks" / f".{rank}.part"
    aside.write_text(json.dumps({"rank": rank, "at": time.time(), **word}, ensure_ascii=False), encoding="utf-8")
    aside.replace(folder / "ranks" / f"{rank}.json")


def _shared(folder: Path) -> Run:
    world = _world()
    shared: Run = world.Shared(folder, world.join(folder / "ranks" / "meeting", Run(folder).launcher()))
    return shared


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
