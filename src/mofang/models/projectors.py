"""The file with which a chat model sees: its projector, "mmproj-….gguf" beside the model's own GGUF.

That is how hubs and other tools lay them out (llama.cpp docs/multimodal.md). A folder may hold those of several models:
one belongs to a model when what it says of an image has the width of the model's embeddings, llama.cpp's own condition.
"""

import re
from pathlib import Path

from mofang.errors import MofangError
from mofang.models.base import ModelFacts, ModelRef
from mofang.models.formats import gguf

ARCHITECTURE = "clip"


def is_named_so(path: Path) -> bool:
    return path.suffix == ".gguf" and "mmproj" in path.name.lower()


def of(ref: ModelRef, facts: ModelFacts) -> Path | None:
    """The projector of a model, or None. Of several that fit, the one whose name is most like the model's, then the
    largest: projectors are small, and rounding hurts them more than it helps.
    """
    if ref.format != "gguf" or ref.kind not in ("chat", "base") or not ref.path.is_file():
        return None
    fitting = [path for path in ref.path.parent.glob("*.gguf") if is_named_so(path) and _width(path) == facts.n_embd]
    return max(fitting, key=lambda path: (len(_words(path) & _words(ref.path)), path.stat().st_size), default=None)


def beside_bytes(ref: ModelRef, projector: Path | None) -> int:
    """Bytes of a projector that the model's own size does not count."""
    counted = {str(file.get("name")) for file in ref.manifest.get("files") or ()}
    return 0 if projector is None or projector.name in counted else projector.stat().st_size


def _width(path: Path) -> int | None:
    """Numbers in what it says of one piece of an image; None: it is no projector for images, or cannot be read."""
    try:
        header = gguf.read(path)
    except (MofangError, OSError):
        return None
    width = header.metadata.get("clip.vision.projection_dim")
    return width if header.architecture == ARCHITECTURE and isinstance(width, int) else None


def _words(path: Path) -> set[str]:
    return set(re.split(r"[-_.]", path.stem.lower()))
