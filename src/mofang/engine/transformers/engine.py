"""A Hugging Face folder answers in a child process with PyTorch; none of it is imported here.

A model's manifest may hold {"transformers": {"dtype": "float32", "device": "cpu", "trust_remote_code": true}}:
`dtype` auto (the fastest that this machine computes), float32, bfloat16 or float16; `device` auto, cpu, cuda, mps;
`trust_remote_code` runs the Python files that lie in the folder: never unless this says so.
"""

import difflib
from collections.abc import Callable
from typing import Any

from mofang.engine.worker.chat import WorkerChat, start
from mofang.errors import Invalid
from mofang.messages import Progress
from mofang.models.base import ModelRef
from mofang.settings import Settings

OPTIONS: dict[str, tuple[Any, ...]] = {
    "dtype": ("auto", "float32", "bfloat16", "float16"),
    "device": ("auto", "cpu", "cuda", "mps"),
    "trust_remote_code": (False, True),
}
"""What the manifest may say, the default first."""


async def load(ref: ModelRef, settings: Settings, *, progress: Callable[[Progress], None]) -> WorkerChat:
    options = check(ref.manifest.get("transformers") or {})
    return await start("transformers", "mofang.engine.transformers.child", options, ref, settings, progress=progress)


def check(stated: dict[str, Any]) -> dict[str, Any]:
    """Every option with its value. Raises Invalid for an unknown name or value."""
    for name, value in stated.items():
        known = OPTIONS.get(name)
        if known is None:
            near = difflib.get_close_matches(name, OPTIONS, n=1, cutoff=0)[0]
            raise Invalid("engine.manifest_option", param=name, engine="transformers", name=name, near=near)
        if value not in known:
            values = ", ".join(map(str, known))
            raise Invalid(
                "engine.manifest_value", param=name, engine="transformers", name=name, value=value, known=values
            )
    return {name: stated.get(name, values[0]) for name, values in OPTIONS.items()}
