"""A text read by a GGUF model, whole windows at once, in a child process: library.py's caller where nothing may crash.

The child's side is reader.py. What a model answers is the engine's matter; this is only what it expects of a text.
"""

from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass

from mofang.engine import engine_name
from mofang.engine.llama import library
from mofang.engine.worker.process import WorkerProcess
from mofang.errors import EngineFailed
from mofang.models.base import ModelRef
from mofang.platform import BESIDE_CHAT, lower_priority
from mofang.settings import Settings


@dataclass(frozen=True, slots=True)
class Read:
    """What a model expected of a text."""

    forced: list[float]
    """Natural log-probability of each token that it had to expect: all but the first of each window."""
    n_bytes: int
    """UTF-8 bytes of these tokens' text."""


def can_read(ref: ModelRef) -> bool:
    """Whether a model is a file that llama.cpp's library reads here: not one behind HTTP, nor an adapter's."""
    return ref.format == "gguf" and ref.path.is_file() and not ref.base and engine_name(ref) == "llama"


async def read(
    ref: ModelRef, settings: Settings, text: str, *, n_tokens: int, tell: Callable[[int, int], None]
) -> Read:
    """The longest beginning of `text` that is at most `n_tokens` tokens; `tell(done, total)` tokens.

    Raises MissingSystem where there is no library, Unreadable for a file that llama.cpp refuses, EngineFailed.
    """
    path, _ = library.find(settings)
    process = await WorkerProcess.load(
        "mofang.engine.llama.reader", {"library": str(path)}, ref, settings, lambda progress: None
    )
    try:
        lower_priority(process.pid, BESIDE_CHAT)
        async with aclosing(process.pieces("read", text=text, n_tokens=n_tokens)) as pieces:
            async for piece in pieces:
                if "forced" in piece:
                    return Read(**piece)
                tell(piece["done"], piece["total"])
    finally:
        await process.close()
    raise EngineFailed("engine.failed", model=ref.name, why="no result")
