"""What a run is told to do: one typed model per training method and exporter, the only list of its fields.

YAML files, command-line flags, help, JSON schema and the workbench's form all come from these models. They load no
torch: a form must be shown on a machine that cannot train. Each names its worker, the function that does the work.
"""

from mofang.recipes.base import Recipe, parse, read_yaml
from mofang.registry import Entry, Registry

METHODS = Registry("method", {"sft": Entry("mofang.recipes.sft:Sft", "fine-tune on questions and answers, with LoRA")})
"""Ways to train a model."""

EXPORTERS = Registry(
    "exporter",
    {
        "import": Entry("mofang.recipes.export:Import", "a GGUF file to a trainable Hugging Face folder"),
        "merge": Entry("mofang.recipes.export:Merge", "a run's LoRA into its base model"),
        "gguf": Entry("mofang.recipes.export:Gguf", "a Hugging Face folder, or a run, to a GGUF file"),
        "check": Entry("mofang.recipes.export:Check", "whether a GGUF file still says what its model says"),
    },
)
"""Ways from one form of a model to another."""


def recipe_class(kind: str) -> type[Recipe]:
    """The model of a method or an exporter. Raises UnknownName."""
    table = EXPORTERS if kind in EXPORTERS.names() else METHODS
    found: type[Recipe] = table.get(kind)
    return found


__all__ = ["EXPORTERS", "METHODS", "Recipe", "parse", "read_yaml", "recipe_class"]
