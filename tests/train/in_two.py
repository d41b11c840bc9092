"""One of two processes that go through several runs, one after the other: `python in_two.py STRATEGY FOLDER…`.

As mofang.launch.rank does with one run; so torch is imported twice and not twenty times. The first leaves each run's
result in its folder (two.json).
"""

import importlib
import json
import os
import sys
from pathlib import Path

from mofang.launch.worker import prepare_process
from mofang.recipes.launchers import Torchrun
from mofang.runs import Run


def main(strategy: str, folders: list[Path]) -> None:
    prepare_process()
    from mofang.train.world import Shared, join, leave

    world = join(folders[0] / "meeting", Torchrun(strategy=strategy))
    for folder in folders:
        recipe = Run(folder).recipe()
        module, function = recipe.worker.split(":")
        made = getattr(importlib.import_module(module), function)(recipe, Shared(folder, world))
        if world.rank == 0:
            (folder / "two.json").write_text(json.dumps(made))
    leave()


if __name__ == "__main__":
    if os.environ["RANK"] != "0":
        sys.stdout = Path(os.devnull).open("w")
    main(sys.argv[1], [Path(each) for each in sys.argv[2:]])
