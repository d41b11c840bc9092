"""The child process of the engine `llama_cpp`: `python -m mofang.engine.llama_cpp.child`. See worker/serve.py."""

from typing import Any

from mofang.engine.worker.calls import ChatCalls
from mofang.engine.worker.serve import main


def _load(configuration: dict[str, Any]) -> ChatCalls:
    from mofang.engine.llama_cpp.core import LlamaCppCore  # the library, only here

    return ChatCalls(LlamaCppCore(configuration), configuration["engine"])


if __name__ == "__main__":
    main(_load)
