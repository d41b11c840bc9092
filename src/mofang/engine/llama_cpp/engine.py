"""A GGUF model in a child process with llama-cpp-python; none of it is imported here.

Chosen by a model's manifest: {"engine": "llama_cpp"}. The bindings load the library that they came with, or the one in
LLAMA_CPP_LIB_PATH; where that is not set and `mofang engine build` has built libraries for this machine, those.
"""

import os
from collections.abc import Callable
from pathlib import Path

from mofang.engine import toolchain
from mofang.engine.worker.chat import WorkerChat, start
from mofang.messages import Progress
from mofang.models.base import ModelRef
from mofang.settings import Settings

LIBRARY = "LLAMA_CPP_LIB_PATH"
"""llama-cpp-python's own variable for the folder that holds libllama."""


async def load(ref: ModelRef, settings: Settings, *, progress: Callable[[Progress], None]) -> WorkerChat:
    built = None if LIBRARY in os.environ else library_folder(settings.home)
    env = {LIBRARY: str(built)} if built else None
    return await start("llama_cpp", "mofang.engine.llama_cpp.child", {}, ref, settings, progress=progress, env=env)


def library_folder(home: Path) -> Path | None:
    """Our own build of libllama for this machine; None where there is none. toolchain answers, once it builds."""
    find: Callable[[Path], Path | None] | None = getattr(toolchain, "library_folder", None)
    return find(home) if find else None
