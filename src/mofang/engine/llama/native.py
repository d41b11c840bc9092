"""llama-server as it was built for this CPU (mofang.engine.build), a child process that ends with us."""

import socket
import subprocess
from pathlib import Path

import httpx

from mofang.engine.build import Build
from mofang.engine.llama.provider import Launch, poll, told
from mofang.platform import start_program

LOOK_S = 0.03


class Native:
    """mofang.engine.llama.provider.Provider."""

    name = "native"

    def __init__(self, build: Build) -> None:
        self.build = build
        self.version = build.key
        self._ports: dict[int, int] = {}
        """Process id → port."""

    def check(self) -> None:
        """Whether it can run was found out when it was built; `build.current` looks at the CPU."""

    def start(self, launch: Launch, log: Path) -> "subprocess.Popen[bytes]":
        port = free_port()
        command = [str(self.build.tool("llama-server")), "--port", str(port), "--offline", *flags(launch)]
        if not self.build.gpu:
            command += flags(launch, cpu_only=True)
        # The key travels in the environment, which only this user can read; a command line is for everybody to see.
        child = start_program(command, log=log, env={"LLAMA_API_KEY": launch.key})
        self._ports[child.pid] = port
        return child

    async def address(self, child: "subprocess.Popen[bytes]") -> str:
        address = f"http://127.0.0.1:{self._ports.pop(child.pid)}"
        async with httpx.AsyncClient(trust_env=False, timeout=5.0) as http:

            async def well() -> bool:
                try:
                    return (await http.get(f"{address}/health")).status_code == 200
                except httpx.TransportError:
                    return False

            return address if await poll(child, well, LOOK_S) else ""

    def library(self) -> Path | None:
        names = ("libllama.so", "libllama.dylib", "llama.dll")
        return next((path for name in names if (path := self.build.folder / "bin" / name).is_file()), None)


def flags(launch: Launch, *, cpu_only: bool = False) -> list[str]:
    """The launch as llama-server's command line."""
    return [word for parameter, value in told(launch, cpu_only=cpu_only) for word in parameter.native(value)]


def free_port() -> int:
    """A port of the loopback address that nobody uses at this moment."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])
