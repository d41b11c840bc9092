"""Serving: our speed against llama.cpp's own defaults (the same build), llama-cpp-python's server, and our own child.

Each part starts both sides and measures them in turn on the same work; the table shows medians and the ratio. Parts:
decode, quoting, prompt, reuse, gateway, llama_cpp, start. `--build wheel` measures what everybody has,
`native` what `mofang engine build` made in MOFANG_HOME. Tune the model there first (`mofang engine tune`), or ours are the
defaults, too. llama_cpp needs `--peer-python`, a Python that has llama-cpp-python[server].
"""

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx

from mofang import settings
from mofang.engine import profile
from mofang.engine.llama.engine import start
from mofang.engine.llama.native import Native, free_port
from mofang.engine.llama.provider import choose, describe
from mofang.engine.profile import Choices
from mofang.models.base import ModelRef
from mofang.models.store import ModelStore
from mofang.platform import describe as machine

ROOT = Path(__file__).parent.parent
WHEEL = """
import sys, time, xllamacpp
params = xllamacpp.CommonParams()
params.model.path, params.hostnames, params.port, params.n_parallel = sys.argv[1], ["127.0.0.1"], int(sys.argv[2]), 4
server = xllamacpp.Server(params)
time.sleep(3600)
"""
"""llama.cpp's defaults in the wheel; four slots, as llama-server chooses where nobody says."""


def text() -> str:
    """Real prose that does not repeat itself: our own documents."""
    files = ("start.md", "faq.md", "knowledge.md", "models.md", "training.md", "api.md")
    return "\n\n".join((ROOT / "docs" / name).read_text(encoding="utf-8") for name in files)


def grounded(number: int) -> list[dict[str, str]]:
    """A question to a part of the documents that no other number has: what an answer said before is never asked again,
    since speculation would know it by heart.
    """
    whole = text()
    at = 3700 * number % (len(whole) - 1400)
    said = "\n".join(f"[{place}] {part.strip()}" for place, part in enumerate(whole[at : at + 1400].split("\n\n"), 1))
    system = f"只根据下面的资料回答，引用原文，并在句末标出编号。\n\n{said}"
    question = "这份资料讲了哪些要点？请逐字引用资料里的原文，一条一条回答。"
    return [{"role": "system", "content": system}, {"role": "user", "content": question}]


class Server:
    """A llama.cpp server, by its address."""

    said = ""
    """The last answer."""

    def __init__(self, address: str, key: str = "") -> None:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        limits = httpx.Limits(max_keepalive_connections=0)  # a server may hang up while the other is measured
        self.http = httpx.AsyncClient(base_url=address, headers=headers, timeout=600, trust_env=False, limits=limits)

    async def tokenize(self, words: str) -> list[int]:
        return list((await self.http.post("/tokenize", json={"content": words})).json()["tokens"])

    async def complete(self, prompt: Any, n: int, **more: Any) -> dict[str, Any]:
        body = {"prompt": prompt, "n_predict": n, "temperature": 0, "ignore_eos": True, **more}
        return dict((await self.http.post("/completion", json=body)).json()["timings"])

    async def chat(self, messages: list[dict[str, str]], n: int, **more: Any) -> tuple[float, float, int]:
        """(seconds to the first token, seconds in all, tokens) of a streamed chat."""
        body = {"messages": messages, "max_tokens": n, "temperature": 0, "stream": True, **more}
        body["stream_options"] = {"include_usage": True}
        began, first, tokens, pieces = time.perf_counter(), 0.0, 0, 0
        self.said = ""
        async with self.http.stream("POST", "/v1/chat/completions", json=body) as answer:
            answer.raise_for_status()
            async for line in answer.aiter_lines():
                if not line.startswith("data: {"):
                    continue
                event = json.loads(line[6:])
                said = "".join((choice.get("delta") or {}).get("content") or "" for choice in event.get("choices", ()))
                self.said += said
                pieces += bool(said)
                first = first or (time.perf_counter() - began if said else 0.0)
                tokens = (event.get("usage") or {}).get("completion_tokens", tokens)
        return first, time.perf_counter() - began, tokens or pieces


@asynccontextmanager
async def child(command: list[str], port: int, env: dict[str, str] | None = None) -> AsyncIterator[Server]:
    process = subprocess.Popen(  # noqa: ASYNC220 (a bench has nothing else to do)
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, **(env or {})}
    )
    server = Server(f"http://127.0.0.1:{port}")
    try:
        for _ in range(1200):
            try:
                if (await server.http.get("/v1/models")).status_code == 200:
                    break
            except httpx.TransportError:
                pass
            await asyncio.sleep(0.05)
        yield server
    finally:
        process.terminate()
        process.wait()
        await server.http.aclose()


class Bench:
    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.config = settings.load(llama_build=options.build, n_ctx=4096, n_slots=4, auto_tune=False)
        self.ref: ModelRef = ModelStore(self.config).resolve(options.model, "chat")
        self.provider = choose(self.config.home, options.build)
        known = profile.load(self.config.home, self.ref, describe(self.provider))
        self.choices = known.choices if known else Choices()

    @asynccontextmanager
    async def defaults(self) -> AsyncIterator[Server]:
        """The same build as llama.cpp starts it when it is told nothing."""
        port = free_port()
        if isinstance(self.provider, Native):
            server = str(self.provider.build.tool("llama-server"))
            command = [server, "-m", str(self.ref.path), "--port", str(port), "--offline", "-c", "16384"]
        else:
            command = [sys.executable, "-c", WHEEL, str(self.ref.path), str(port)]
        async with child(command, port) as server:
            yield server

    @asynccontextmanager
    async def ours(self, **changes: Any) -> AsyncIterator[Server]:
        """Our child, as the pool would start it; spoken to directly."""
        config = self.config.model_copy(update=changes)
        engine: Any = await start(
            self.ref, config, self.provider, self.choices, progress=lambda progress: None, log_name="bench"
        )
        http = engine._process._http
        try:
            yield Server(str(http.base_url), http.headers["authorization"].removeprefix("Bearer "))
        finally:
            await engine.close()

    @asynccontextmanager
    async def gateway(self, **env: str) -> AsyncIterator[Server]:
        port = free_port()
        own = {"MOFANG_PORT": str(port), "MOFANG_UI_PORT": "0", "MOFANG_LLAMA_BUILD": self.options.build, **env}
        own["MOFANG_CHAT_MODEL"] = self.ref.name  # or the default one would be loaded, too
        command = [sys.executable, "-m", "mofang", "serve"]
        async with child(command, port, {**own, "MOFANG_AUTO_TUNE": "0"}) as server:
            yield server

    async def in_turn(self, ours: Callable[[], Any], theirs: Callable[[], Any]) -> tuple[float, float]:
        found: tuple[list[float], list[float]] = ([], [])
        for number in range(self.options.rounds):
            pairs = [(ours, found[0]), (theirs, found[1])]
            for ask, kept in pairs if number % 2 == 0 else reversed(pairs):
                kept.append(await ask())
        return statistics.median(found[0]), statistics.median(found[1])

    # ---- parts ----

    async def decode(self) -> None:
        """Answers at 1,000 tokens of context, tokens a second."""
        async with self.ours() as ours, self.defaults() as plain:
            prompt = (await ours.tokenize(text()))[:1000]

            async def speed(server: Server) -> float:
                return float((await server.complete(prompt, 64))["predicted_per_second"])

            await speed(ours), await speed(plain)
            one, other = await self.in_turn(lambda: speed(ours), lambda: speed(plain))
        self.show("decode at 1,000 tokens, tokens/s", one, other, "llama.cpp's defaults", one / other)

    async def quoting(self) -> None:
        """Answers from documents that quote them, tokens a second and seconds from request to last token. Cold: each
        question is about another part, and both answer the same ones."""
        async with self.ours() as ours, self.defaults() as plain:
            found: dict[Server, list[tuple[float, float, int]]] = {ours: [], plain: []}
            for number in range(2 * self.options.rounds + 1):
                for server in (ours, plain) if number % 2 else (plain, ours):
                    found[server].append(await server.chat(grounded(number), 200))
        rates, times = [], []
        for runs in (found[ours][1:], found[plain][1:]):  # the first of each warmed up
            rates.append(sum(tokens - 1 for _, _, tokens in runs) / sum(whole - first for first, whole, _ in runs))
            times.append(sum(whole for _, whole, _ in runs) / sum(tokens for _, _, tokens in runs) * 200)
        whose = "llama.cpp's defaults"
        self.show("answer that quotes its sources, tokens/s", rates[0], rates[1], whose, rates[0] / rates[1])
        self.show("grounded answer of 200 tokens, cold, s", times[0], times[1], whose, times[1] / times[0])

    async def prompt(self) -> None:
        """Prompt of 1,000 tokens that no cache knows, tokens a second."""
        number = iter(range(1000))
        async with self.ours() as ours, self.defaults() as plain:
            ids = await ours.tokenize(text())

            async def speed(server: Server) -> float:
                at = 11 * next(number)
                timings = await server.complete(ids[at : at + 1000], 1, cache_prompt=False)
                return float(timings["prompt_per_second"])

            await speed(ours), await speed(plain)
            one, other = await self.in_turn(lambda: speed(ours), lambda: speed(plain))
        self.show("prompt of 1,000 tokens, tokens/s", one, other, "llama.cpp's defaults", one / other)

    async def reuse(self) -> None:
        """Second turn on a prompt of 2,000 tokens through the gateway: seconds to the first token."""
        async with self.gateway(MOFANG_SAVE_SLOTS="0") as gateway:  # or an earlier run's prompts would come back
            colds, warms = [], []
            body = {"model": self.ref.name}
            asked = {**body, "text": text()}
            ids = (await gateway.http.post("/v1/tokenize", json=asked)).json()["tokens"]
            for number in range(self.options.rounds + 1):
                part = {**body, "tokens": ids[150 * number :][:1960]}
                long = (await gateway.http.post("/v1/detokenize", json=part)).json()["text"]
                turns = [{"role": "user", "content": f"{long}\n\n这段文字说了什么？"}]
                first, _, _ = await gateway.chat(turns, 8, **body)
                answer = {"role": "assistant", "content": gateway.said}
                again, _, _ = await gateway.chat([*turns, answer, {"role": "user", "content": "还有呢？"}], 8, **body)
                if number:  # the first also loads the model
                    colds.append(first), warms.append(again)
        one, other = statistics.median(warms), statistics.median(colds)
        self.show("second turn, first token after, ms", 1000 * one, 1000 * other, "cold", other / one)

    async def via_gateway(self) -> None:
        """Eight streams in all, tokens a second; added time to first token, ms."""
        messages = [{"role": "user", "content": "写一段关于秋天的短文。"}]
        more = {"ignore_eos": True, "model": self.ref.name}

        async def eight(server: Server) -> float:
            began = time.perf_counter()
            found = await asyncio.gather(*(server.chat(messages, 64, **more) for _ in range(8)))
            return sum(tokens for _, _, tokens in found) / (time.perf_counter() - began)

        async def first(server: Server) -> float:
            return (await server.chat(messages, 2, **more))[0]

        async with self.gateway(MOFANG_N_SLOTS="8", MOFANG_N_CTX="4096") as gateway, self.ours(n_slots=8) as ours:
            await eight(gateway), await eight(ours)
            one, other = await self.in_turn(lambda: eight(gateway), lambda: eight(ours))
            self.show("eight streams through the gateway, tokens/s", one, other, "its own child", one / other)
            times: tuple[list[float], list[float]] = ([], [])
            for _ in range(10 * self.options.rounds):
                times[0].append(await first(gateway)), times[1].append(await first(ours))
        one, other = (1000 * statistics.median(found) for found in times)
        self.show("time to first token, ms", one, other, "its own child", one - other, "ms more")

    async def llama_cpp(self) -> None:
        """llama-cpp-python's server: one stream, eight streams in all, worst time to first token of eight."""
        if not self.options.peer_python:
            print("llama_cpp: needs --peer-python")
            return
        port = free_port()
        command = [self.options.peer_python, "-m", "llama_cpp.server", "--model", str(self.ref.path), "--port", str(port),
                   "--n_ctx", "4096", "--interrupt_requests", "false"]  # fmt: skip
        library = {"LLAMA_CPP_LIB_PATH": self.options.peer_library} if self.options.peer_library else {}
        messages = [{"role": "user", "content": "写一段关于秋天的短文。"}]

        async def streams(server: Server, count: int, **more: Any) -> tuple[float, float]:
            began = time.perf_counter()
            found = await asyncio.gather(*(server.chat(messages, 64, **more) for _ in range(count)))
            return sum(one[2] for one in found) / (time.perf_counter() - began), max(one[0] for one in found)

        gateway_env = {"MOFANG_N_SLOTS": "8", "MOFANG_N_CTX": "4096"}
        async with self.gateway(**gateway_env) as ours, child(command, port, library) as peer:
            for count in (1, 8):
                await streams(ours, 1, model=self.ref.name), await streams(peer, 1)
                rates, waits = ([], []), ([], [])
                for _ in range(self.options.rounds):
                    for at, (server, more) in enumerate(((ours, {"model": self.ref.name}), (peer, {}))):
                        rate, wait = await streams(server, count, **more)
                        rates[at].append(rate), waits[at].append(wait)
                one, other = (statistics.median(found) for found in rates)
                self.show(f"{count} stream(s) in all, tokens/s", one, other, "llama-cpp-python", one / other)
            one, other = (statistics.median(found) for found in waits)
            self.show("worst first token of eight, s", one, other, "llama-cpp-python", other / one)

    async def start(self) -> None:
        """From `mofang serve` to the first token, s."""
        found = []
        for _ in range(self.options.rounds):
            began = time.perf_counter()
            async with self.gateway() as gateway:
                await gateway.chat([{"role": "user", "content": "hi"}], 1, model=self.ref.name)
                found.append(time.perf_counter() - began)
        print(f"{'from mofang serve to the first token, s':48} {statistics.median(found):8.2f}", flush=True)

    def show(self, what: str, ours: float, theirs: float, whose: str, ratio: float, unit: str = "×") -> None:
        print(f"{what:48} ours {ours:8.1f}   {whose} {theirs:8.1f}   {ratio:.2f}{unit}", flush=True)


PARTS = {"decode": Bench.decode, "quoting": Bench.quoting, "prompt": Bench.prompt,
         "reuse": Bench.reuse, "gateway": Bench.via_gateway, "llama_cpp": Bench.llama_cpp, "start": Bench.start}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--model", default="smollm2-135m-instruct-q4_1")
    parser.add_argument("--build", default="auto", choices=["auto", "wheel", "native"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peer-python", default="")
    parser.add_argument("--peer-library", default="", help="folder of libllama for llama-cpp-python")
    options = parser.parse_args()
    bench = Bench(options)
    print(json.dumps(machine(), ensure_ascii=False))
    print(f"{bench.ref.name} · {describe(bench.provider)} · {bench.choices.words() or 'not tuned'}", flush=True)
    for part in options.parts:
        asyncio.run(PARTS[part](bench))


if __name__ == "__main__":
    main()
