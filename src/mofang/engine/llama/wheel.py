"""The wheel `xllamacpp`: llama.cpp's server, for any x86 CPU with AVX2 or any 64-bit ARM, in a child process of ours."""

import asyncio
import importlib.metadata
import importlib.util
import json
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from mofang.engine.llama.provider import Launch, told
from mofang.errors import MissingSystem
from mofang.platform import has_avx2, has_library, start_child


class Wheel:
    """mofang.engine.llama.provider.Provider."""

    name = "xllamacpp"

    @property
    def version(self) -> str:
        try:
            return importlib.metadata.version("xllamacpp")
        except importlib.metadata.PackageNotFoundError:
            return "-"

    def check(self) -> None:
        if has_avx2() is False:
            raise MissingSystem("engine.no_avx2")
        if sys.platform == "linux" and not has_library("libgomp.so.1"):
            raise MissingSystem("engine.no_libgomp")
        if importlib.util.find_spec("xllamacpp") is None:
            raise MissingSystem("engine.no_wheel", python=sys.executable)

    def start(self, launch: Launch, log: Path) -> "subprocess.Popen[bytes]":
        child = start_child([sys.executable, "-m", "mofang.engine.llama.child"], log=log, stdout=subprocess.PIPE)
        configuration = {"parameters": parameters(launch), "without_gpu": parameters(launch, cpu_only=True)}
        assert child.stdin
        with suppress(BrokenPipeError):  # it ended at once: its log says why
            child.stdin.write(json.dumps(configuration).encode() + b"\n")
            child.stdin.flush()
        return child

    async def address(self, child: "subprocess.Popen[bytes]") -> str:
        assert child.stdout
        line = await asyncio.to_thread(child.stdout.readline)
        said: dict[str, Any] = json.loads(line or b"{}")
        return str(said.get("address", ""))

    def library(self) -> Path | None:
        found = importlib.util.find_spec("xllamacpp")
        folders = (found.submodule_search_locations or ()) if found else ()
        files = (path for folder in folders for path in sorted(Path(folder).glob("xllamacpp*")))
        return next((path for path in files if path.suffix in (".so", ".pyd")), None)


def parameters(launch: Launch, *, cpu_only: bool = False) -> dict[str, object]:
    """The launch as xllamacpp's parameter names. What is not named stays at llama.cpp's default.

    Layers for a GPU are among those: llama.cpp fits them where it sees one (not run here for want of a GPU).
    """
    named = {parameter.wheel: value for parameter, value in told(launch, cpu_only=cpu_only) if parameter.wheel}
    return named if cpu_only else {**named, "port": 0}
