"""The launcher "local": the training in the run's own process."""

from typing import Any

from mofang.launch.worker import function
from mofang.recipes import Launcher, Recipe
from mofang.runs import Run


def run(launcher: Launcher, recipe: Recipe, run: Run) -> dict[str, Any]:
    return dict(function(recipe.worker)(recipe, run))
