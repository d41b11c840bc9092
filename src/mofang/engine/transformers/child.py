"""The child process of the engine `transformers`: `python -m mofang.engine.transformers.child`. See worker/serve.py."""

from typing import Any

from mofang.engine.worker.calls import ChatCalls
from mofang.engine.worker.serve import main


def _load(configuration: dict[str, Any]) -> ChatCalls:
    from mofang.engine.transformers.core import TransformersCore  # torch, only here

    return ChatCalls(TransformersCore(configuration), configuration["engine"])


if __name__ == "__main__":
    main(_load)
