"""The child process that holds one model: `python -m mofang.engine.llama.child`.

Its first line on standard input is its configuration (JSON; the key travels here and not on the command line, where
other users could read it). It answers with one JSON line on standard output once the model is loaded, and ends when
standard input closes. llama.cpp's own log goes to standard error.
"""

import json
import sys
import time
from typing import Any

from mofang.platform import end_with_parent


def main() -> None:
    raw: Any = sys.stdin.buffer  # unbuffered below: what follows the line belongs to end_with_parent
    configuration = json.loads(raw.raw.readline())
    end_with_parent()
    try:
        server = _serve(configuration)
    except RuntimeError as error:  # what xllamacpp raises when llama.cpp refuses a model
        print(json.dumps({"error": str(error)}), flush=True)
        sys.exit(1)
    print(json.dumps({"address": server.listening_address}), flush=True)
    while True:
        time.sleep(3600)


def _serve(configuration: dict[str, Any]) -> Any:
    import xllamacpp

    params = xllamacpp.CommonParams()
    for path, value in configuration.items():
        holder: Any = params
        *way, name = path.split(".")
        for step in way:
            holder = getattr(holder, step)
        assert hasattr(holder, name), f"xllamacpp has no parameter {path}"
        setattr(holder, name, value)
    return xllamacpp.Server(params)


if __name__ == "__main__":
    main()
