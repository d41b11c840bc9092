"""Mofang (模坊): an open language model, all the way, on your own machine.

    import mofang

    with mofang.load("auto") as model:
        print(model.chat("什么是量化？"))

Importing this package loads nothing heavy: no torch, no model library, no web framework. The public names below are
those of mofang.api, fetched when they are used; docs/python.md shows each. The rooms are listed in
docs/architecture.md, with who may import whom.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mofang.api import (
        Answer,
        KnowledgeBase,
        Model,
        batch,
        check,
        dpo,
        embed,
        evaluate,
        import_gguf,
        list_models,
        list_runs,
        load,
        merge,
        orpo,
        pretrain,
        preview,
        pull,
        sft,
        to_gguf,
        to_gptq,
    )

__version__ = "0.1.0"

__all__ = [
    "Answer",
    "KnowledgeBase",
    "Model",
    "batch",
    "check",
    "dpo",
    "embed",
    "evaluate",
    "import_gguf",
    "list_models",
    "list_runs",
    "load",
    "merge",
    "orpo",
    "pretrain",
    "preview",
    "pull",
    "sft",
    "to_gguf",
    "to_gptq",
]
"""None is the name of a room: `mofang.train`, `mofang.export`… are packages."""


def __getattr__(name: str) -> Any:
    if name in __all__:
        from mofang import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
