"""The child process of the engine `transformers`: `python -m mofang.engine.transformers.child`. See worker/serve.py."""

from typing import Any

from mofang.engine.worker.core import Core
from mofang.engine.worker.serve import main


def _load(configuration: dict[str, Any]) -> Core:
    from mofang.engine.transformers.core import TransformersCore  # torch, only here

    return TransformersCore(configuration)


if __name__ == "__main__":
    main(_load)
