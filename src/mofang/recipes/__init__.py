"""What a run is told to do: one typed model per training method and exporter, the only list of its fields.

YAML files, command-line flags, help, JSON schema and the workbench's form all come from these models. They load no
torch: a form must be shown on a machine that cannot train. Each names its worker, the function that does the work.
"""

from collections.abc import Mapping
from typing import Any

from mofang.recipes.base import Recipe, parse, read_yaml
from mofang.recipes.launchers import Launcher
from mofang.registry import Entry, Registry

METHODS = Registry(
    "method",
    {
        "sft": Entry("mofang.recipes.sft:Sft", "fine-tune on questions and answers"),
        "dpo": Entry("mofang.recipes.dpo:Dpo", "learn from pairs of a better and a worse answer"),
        "orpo": Entry("mofang.recipes.orpo:Orpo", "the same without a reference model"),
        "pretrain": Entry("mofang.recipes.pretrain:Pretrain", "learn from plain text, new or continued"),
    },
)
"""Ways to train a model."""

EXPORTERS = Registry(
    "exporter",
    {
        "import": Entry("mofang.recipes.export:Import", "a GGUF file to a trainable Hugging Face folder"),
        "merge": Entry("mofang.recipes.export:Merge", "a run's LoRA into its base model"),
        "resize": Entry("mofang.recipes.export:Resize", "a model with rows for an extended tokenizer"),
        "gguf": Entry("mofang.recipes.export:Gguf", "a Hugging Face folder, a run or a GPTQ model to a GGUF file"),
        "gptq": Entry("mofang.recipes.export:Gptq", "a Hugging Face folder, or a run, quantized by GPTQ"),
        "check": Entry("mofang.recipes.export:Check", "whether a GGUF file still says what its model says"),
    },
)
"""Ways from one form of a model to another."""

TOOLS = Registry(
    "tool",
    {
        "build": Entry("mofang.recipes.engine:Build", "llama.cpp compiled for this machine"),
        "tune": Entry("mofang.recipes.engine:Tune", "how a model runs best on this machine"),
        "bench": Entry("mofang.recipes.engine:Bench", "how fast a model is on this machine"),
    },
)
"""What is done once for a machine."""

TOKENIZERS = Registry(
    "tokenizer work",
    {
        "extend": Entry("mofang.recipes.tokenizer:Extend", "a model's tokenizer with tokens learned from texts"),
        "measure": Entry("mofang.recipes.tokenizer:Measure", "how well tokenizers cut texts"),
    },
)
"""What is done to a tokenizer and takes its time."""

LAUNCHERS = Registry(
    "launcher",
    {
        "local": Entry("mofang.recipes.launchers:Local", "one process"),
        "torchrun": Entry("mofang.recipes.launchers:Torchrun", "several, on one machine or more"),
        "ray": Entry("mofang.recipes.launchers:Ray", "the workers of a Ray cluster"),
    },
)
"""Where the processes of a training are."""
_TABLES = (METHODS, EXPORTERS, TOOLS, TOKENIZERS)


def recipe_class(kind: str) -> type[Recipe]:
    """The model of a method, an exporter, a tool or a tokenizer's work. Raises UnknownName."""
    table = next((table for table in _TABLES if kind in table.names()), METHODS)
    found: type[Recipe] = table.get(kind)
    return found


def launcher_of(values: Mapping[str, Any]) -> Launcher:
    """The launcher that {"launcher": name, field: value…} tells of; "local" where there is no name.

    Raises UnknownName, Invalid.
    """
    fields = dict(values)
    found: type[Launcher] = LAUNCHERS.get(str(fields.pop("launcher", "local")))
    return parse(found, fields)


__all__ = [
    "EXPORTERS", "LAUNCHERS", "METHODS", "TOKENIZERS", "TOOLS", "Launcher", "Recipe", "launcher_of", "parse", "read_yaml",
    "recipe_class",
]  # fmt: skip
