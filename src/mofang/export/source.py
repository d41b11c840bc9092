"""What an exporter of whole models begins with: a Hugging Face folder, or the one that a run leads to."""

from mofang.errors import Invalid
from mofang.export import folder, shards
from mofang.models.base import ModelRef
from mofang.recipes.export import Merge
from mofang.runs import Run


def find(name: str, run: Run) -> ModelRef:
    """The folder of that model: it, the one that the run of that name made, or what its adapter gives when it is merged
    (once). Raises NotFound; Invalid for a model of another format; Unreadable where a file is missing or cut off, or the
    tokenizer has ids that the model has no rows for.
    """
    ref = _find(name, run)
    shards.check_rows(ref.path)
    return ref


def _find(name: str, run: Run) -> ModelRef:
    training = folder.find_run(name)
    if training is None:
        ref = folder.find(name)
        if ref.format != "hf":
            raise Invalid("export.not_convertible", param="model", name=ref.name, format=ref.format)
        return ref
    own = [ref for ref in folder.store().plain() if ref.format == "hf" and _came_of(ref, training)]
    if own:
        return own[0]
    made = folder.store().made_by(training.id, "hf")
    if made and any(parent.get("role") == "adapter" for parent in made.manifest.get("parents", ())):
        return made
    from mofang.export import merge  # brings torch, which takes seconds and which a folder by itself does not need

    merged = merge.run(Merge(model=training.id), run)
    return folder.store().get(merged["model"])


def _came_of(ref: ModelRef, training: Run) -> bool:
    """Whether a model is what a training ended with: neither its imported base, nor made of what it made."""
    role = (ref.manifest.get("parents") or [{}])[0].get("role")
    return (ref.manifest.get("made_by") or {}).get("run") == training.id and role in ("base", "tokenizer")
