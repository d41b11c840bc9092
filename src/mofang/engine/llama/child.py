"""The child process that holds one model: `python -m mofang.engine.llama.child`.

Its first line on standard input is its configuration (JSON; the key travels here and not on the command line, where
other users could read it). It answers with one JSON line on standard output once the model is loaded, and ends when
standard input closes. Everything else that is printed, llama.cpp's log too, goes to standard error.
"""

import json
import os
import sys
import time
from enum import Enum
from typing import Any

from mofang.platform import end_with_parent


def main() -> None:
    raw: Any = sys.stdin.buffer  # unbuffered below: what follows the line belongs to end_with_parent
    line = raw.raw.readline()
    if not line:  # the parent was gone before it said anything
        return
    end_with_parent()
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # a stray print in C must not come between us and our parent
    try:
        server = _serve(**json.loads(line))
    except RuntimeError as error:  # what xllamacpp raises when llama.cpp refuses a model
        print(json.dumps({"error": str(error)}), file=answer, flush=True)
        sys.exit(1)
    print(json.dumps({"address": server.listening_address}), file=answer, flush=True)
    while True:
        time.sleep(3600)


def _serve(parameters: dict[str, Any], without_gpu: dict[str, Any]) -> Any:
    """Load the model and listen. `without_gpu` goes over `parameters` where llama.cpp sees no GPU."""
    import xllamacpp

    gpu = any("CPU" not in device["type"].name for device in xllamacpp.get_device_info())
    return xllamacpp.Server(configured(xllamacpp, {**parameters, **({} if gpu else without_gpu)}))


def configured(xllamacpp: Any, parameters: dict[str, Any]) -> Any:
    """xllamacpp's parameters with ours set. Raises AttributeError for one that this version does not know."""
    params = xllamacpp.CommonParams()
    for path, value in parameters.items():
        holder: Any = params
        *way, name = path.split(".")
        for step in way:
            holder = getattr(holder, step)
        setattr(holder, name, _as(xllamacpp, name, getattr(holder, name), value))
    return params


def _as(xllamacpp: Any, name: str, present: Any, value: Any) -> Any:
    """A value in the shape that xllamacpp has at that place: a set, a list, a member of an enumeration."""
    if name == "lora_adapters":
        return [xllamacpp.CommonAdapterLoraInfo(file, 1.0) for file in value]
    if isinstance(present, set):
        return {value}
    if isinstance(present, list):
        return [_member(type(present[0]), value)] if present and isinstance(present[0], Enum) else [value]
    return _member(type(present), value) if isinstance(present, Enum) else value


def _member(enumeration: Any, value: Any) -> Any:
    """The member that llama.cpp's command line calls `value`: "off", "q8_0", "ngram-simple"; numbers as they are."""
    if isinstance(value, int):
        return enumeration(value)
    word = {"on": "ENABLED", "off": "DISABLED"}.get(value, value.replace("-", "_").upper())
    return next(member for name, member in enumeration.__members__.items() if name.endswith(f"_{word}"))


if __name__ == "__main__":
    main()
