"""A real `mofang serve --launcher ray` for tests: a process of its own, spoken to by the official client."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import httpx
import openai
import psutil

from mofang.launch import home as homes

T = TypeVar("T")


@dataclass
class Served:
    url: str
    home: Path
    process: subprocess.Popen[bytes]
    clusters: Sequence[subprocess.Popen[bytes]] = ()
    """What its machines run in, where they are not the gateway's own."""
    within: Callable[[Callable[[], Any]], Any] = field(default=lambda function: function())
    """Calls where the gateway can be reached."""

    def family(self) -> list[psutil.Process]:
        roots = self.clusters or (self.process,)
        return [one for root in roots for one in psutil.Process(root.pid).children(recursive=True)]

    def replicas(self, model: str) -> list[psutil.Process]:
        """Ray's processes that hold a replica of it."""
        found = []
        for one in self.family():
            with contextlib.suppress(psutil.NoSuchProcess):  # a zombie too
                words = " ".join(one.cmdline())
                if "ServeReplica" in words and f"-{model}-" in words:
                    found.append(one)
        return found

    def ask(self, questions: Callable[[openai.AsyncOpenAI], Coroutine[Any, Any, T]]) -> T:
        """What they come to, asked by the official client."""

        async def inside() -> T:
            async with openai.AsyncOpenAI(base_url=f"{self.url}/v1", api_key="-", max_retries=0) as client:
                return await questions(client)

        found: T = self.within(lambda: asyncio.run(inside()))
        return found

    def call(self, method: str, path: str, body: Any = None) -> httpx.Response:
        answer: httpx.Response = self.within(
            lambda: httpx.request(method, self.url + path, json=body, timeout=300, trust_env=False)
        )
        return answer

    def load(self, model: str, **wishes: Any) -> dict[str, Any]:
        answer = self.call("POST", f"/v1/models/{model}/load", wishes)
        assert answer.is_success, answer.text
        return dict(answer.json())


@contextlib.contextmanager
def serving(
    home: Path,
    *options: str,
    settings: Mapping[str, str],
    command: Callable[..., list[str]] = lambda *words: list(words),
    clusters: Sequence[subprocess.Popen[bytes]] = (),
    within: Callable[[Callable[[], Any]], Any] = lambda function: function(),
) -> Iterator[Served]:
    """The gateway of that home for the length of the block; nothing of it is left afterwards."""
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("MOFANG_")},
        "MOFANG_HOME": str(home), "MOFANG_AUTO_TUNE": "0", "HOME": str(home.parent), **settings,
    }  # fmt: skip
    log = home.parent / "log"
    with log.open("wb") as stream:
        process = subprocess.Popen(
            command(sys.executable, "-m", "mofang", "serve", "--port", "0", "--launcher", "ray", *options),
            env=environment, stdout=stream, stderr=stream,
        )  # fmt: skip
    try:
        until = time.monotonic() + 120
        while (owner := within(lambda: homes.find(home))) is None:
            assert process.poll() is None and time.monotonic() < until, log.read_text()
            time.sleep(0.1)
        yield Served(owner.url, home, process, clusters, within)
    finally:
        family = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=60)
        finally:
            process.kill()
        assert not psutil.wait_procs(family, timeout=20)[1], "nothing is left"


async def told(
    client: openai.AsyncOpenAI, question: str, n: int, *, model: str = "smollm2", **more: Any
) -> tuple[str, str]:
    """(text, how it ended) of a streamed answer: its finish_reason, the error's code, or "cut" where nothing said so."""
    text, end = "", "cut"
    try:
        stream = await client.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": question}],
            max_tokens=n,
            stream=True,
            temperature=0,
            **more,
        )
        async for piece in stream:
            for choice in piece.choices:
                text += choice.delta.content or ""
                end = choice.finish_reason or end
    except openai.APIError as error:
        end = str(error.code)
    return text, end


def until(true: Callable[[], Any], timeout_s: float = 60.0) -> float:
    """Seconds until it was."""
    begun = time.monotonic()
    while not true():
        assert time.monotonic() - begun < timeout_s
        time.sleep(0.1)
    return time.monotonic() - begun
