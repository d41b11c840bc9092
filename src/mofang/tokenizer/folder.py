"""A folder for a new tokenizer: written beside its place, and given its name when it is whole."""

import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mofang.errors import Conflict


def free(target: Path) -> Path:
    """`target` as a whole path, on which nothing lies. Raises Conflict: said before the work, not after it."""
    path = target.expanduser().absolute()
    if path.exists():
        raise Conflict("tokenizer.folder_taken", path=path)
    return path


@contextmanager
def aside(target: Path) -> Iterator[Path]:
    """An empty folder that becomes `target` at the end, or is gone when something fails."""
    path = free(target)
    path.parent.mkdir(parents=True, exist_ok=True)
    made = path.parent / f".{path.name}-{uuid.uuid4().hex}"
    made.mkdir()
    try:
        yield made
        free(target)
        made.rename(path)
    finally:
        shutil.rmtree(made, ignore_errors=True)
