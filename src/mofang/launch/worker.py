"""The process of a run: `python -m mofang.launch.worker <folder of the run>`. See mofang.runs.

What belongs before and after a training is done here, in the same run: a base that is a GGUF file is imported first, as
it is for new rows, and a recipe that names an export type ends with a GGUF model that can be talked to. The training
itself is the run's launcher's (recipes.LAUNCHERS).
"""

import importlib
import os
import sys
from pathlib import Path
from typing import Any

from mofang import settings
from mofang.data.readers import files_of
from mofang.engine.llama import library
from mofang.models.base import ModelRef
from mofang.models.store import ModelStore, digest
from mofang.recipes import Recipe
from mofang.recipes.export import Gguf, Import, Resize
from mofang.recipes.training import Training
from mofang.runs import Run, work
from mofang.strings import say


def call(worker: str, recipe: Recipe, run: Run) -> dict[str, Any]:
    """Do a run's work, and return what it made."""
    if isinstance(recipe, Resize):
        recipe = recipe.model_copy(update={"model": _trainable(recipe.model, run)})
    if not isinstance(recipe, Training):
        return dict(function(worker)(recipe, run))
    launcher = run.launcher()
    result: dict[str, Any] = function(launcher.worker)(launcher, _with_trainable_base(recipe, run), run)
    if recipe.export:
        made = function(Gguf.worker)(Gguf(model=run.id, type=recipe.export), run)
        result |= {"model": made["model"], "path": made["path"]}
    return result


def _with_trainable_base(recipe: Training, run: Run) -> Training:
    """The recipe with a Hugging Face folder for its base: an import that is there already, or one made now.

    Raises NotFound for a base that is not there, then NotFound, Unreadable for data: said before an import, which takes
    its time.
    """
    if not recipe.base:
        return recipe
    ModelStore(settings.load()).get_or_path(recipe.base)
    for path in (*recipe.data, *recipe.eval_data):
        files_of(Path(path))
    return recipe.model_copy(update={"base": _trainable(recipe.base, run)})


def _trainable(name: str, run: Run) -> str:
    """The model of that name; of a GGUF file the Hugging Face folder that was, or is now, imported from it."""
    store = ModelStore(settings.load())
    base = store.get_or_path(name)
    if base.format != "gguf":
        return name
    imported = [ref for ref in store.list() if ref.format == "hf" and _parent(ref).get("role") == "quantized"]
    base_sha256 = digest(base) if imported else ""
    for ref in imported:
        if _parent(ref).get("sha256") == base_sha256:
            return ref.name
    run.note(say("train.importing", name=base.name))
    made = function(Import.worker)(Import(model=name), run)
    return str(made["model"])


def _parent(ref: ModelRef) -> dict[str, Any]:
    """The first model that this one was made from, as its manifest says."""
    parents = ref.manifest.get("parents") or [{}]
    return dict(parents[0])


def function(worker: str) -> Any:
    """What a recipe's "module:function" names."""
    module, function = worker.split(":")
    return getattr(importlib.import_module(module), function)


def prepare_process() -> None:
    """What a process that trains is told before it imports anything that trains."""
    os.environ["HF_HUB_OFFLINE"] = "1"  # whatever is needed lies here; a library that asks a hub would hang for minutes
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    # oneDNN keeps a compiled product for each shape, and rows have many: a quarter of its 1,024 is as fast, in less memory.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "256")


def main() -> int:
    prepare_process()
    library.mark_alone()
    return work(Path(sys.argv[1]), call)


if __name__ == "__main__":
    sys.exit(main())
