"""`mofang serve --launcher ray`: the same routes, two replicas of a real model, and what happens when they are killed."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx
import openai
import psutil
import pytest

from fakes import install_model
from mofang.errors import Invalid, MissingExtra, MofangError, TooLarge
from mofang.launch import SERVING
from mofang.launch import home as homes
from mofang.models.store import ModelStore
from mofang.settings import Settings

pytestmark = [pytest.mark.ray, pytest.mark.model, pytest.mark.slow, pytest.mark.timeout(600)]

T = TypeVar("T")
LONG = "Tell a long story about a lighthouse keeper and the sea."


@dataclass
class Served:
    url: str
    process: subprocess.Popen[bytes]

    def family(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def replicas(self) -> list[psutil.Process]:
        """Ray's processes that hold a replica, each with a llama.cpp child of its own."""
        found = []
        for one in self.family():
            with contextlib.suppress(psutil.NoSuchProcess):  # a zombie too
                if "ServeReplica" in " ".join(one.cmdline()) and one.children():
                    found.append(one)
        return found

    def ask(self, questions: Callable[[openai.AsyncOpenAI], Coroutine[Any, Any, T]]) -> T:
        """What they come to, asked by the official client."""

        async def inside() -> T:
            async with openai.AsyncOpenAI(base_url=f"{self.url}/v1", api_key="-", max_retries=0) as client:
                return await questions(client)

        return asyncio.run(inside())


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, smollm2: Path) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("ray")
    home = folder / "home"
    ModelStore(Settings(home=home)).add(smollm2, "smollm2")
    install_model(home, "hash", kind="embedding", engine="hash")
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("MOFANG_")},
        "MOFANG_HOME": str(home), "MOFANG_N_CTX": "1024", "MOFANG_N_SLOTS": "2", "MOFANG_CHAT_MODEL": "smollm2",
        "MOFANG_AUTO_TUNE": "0", "HOME": str(folder),
    }  # fmt: skip
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "mofang", "serve", "--port", "0", "--launcher", "ray", "--replicas", "2"],
            env=environment, stdout=log, stderr=log,
        )  # fmt: skip
    try:
        until = time.monotonic() + 120
        while (owner := homes.find(home)) is None:
            assert process.poll() is None and time.monotonic() < until, (folder / "log").read_text()
            time.sleep(0.1)
        running = Served(owner.url, process)
        httpx.post(f"{owner.url}/v1/models/smollm2/load", timeout=300, trust_env=False).raise_for_status()
        yield running
    finally:
        family = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=60)
        finally:
            process.kill()
        assert not psutil.wait_procs(family, timeout=20)[1], "nothing is left"


async def told(client: openai.AsyncOpenAI, question: str, n: int, **more: Any) -> tuple[str, str]:
    """(text, how it ended) of a streamed answer: its finish_reason, the error's code, or "cut" where nothing said so."""
    text, end = "", "cut"
    try:
        stream = await client.chat.completions.create(
            model="smollm2",
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


def until(true: Any, timeout_s: float = 60.0) -> float:
    """Seconds until it was."""
    begun = time.monotonic()
    while not true():
        assert time.monotonic() - begun < timeout_s
        time.sleep(0.1)
    return time.monotonic() - begun


def test_answers_are_those_of_the_engine_and_errors_too(served: Served) -> None:
    async def ask(client: openai.AsyncOpenAI) -> None:
        one, again = [await told(client, "What is 2 + 3?", 16) for _ in range(2)]
        assert one == again and one[0] and one[1] in ("stop", "length")
        models = [model.id async for model in client.models.list()]
        assert "smollm2" in models
        text, end = await told(client, "word " * 3000, 8)
        assert (text, end) == ("", "context_length_exceeded"), "the replica's own error, with its numbers"
        whole = await client.completions.create(model="smollm2", prompt="Once upon", max_tokens=4, logprobs=2)
        assert whole.usage and whole.usage.completion_tokens == 4 and whole.choices[0].logprobs

    served.ask(ask)
    engines = httpx.get(f"{served.url}/v1/system", trust_env=False).json()["engines"]
    found = next(engine for engine in engines if engine["model"] == "smollm2")
    assert found["n_slots"] == 4 and found["provider"].startswith("ray"), "two replicas of two"
    assert len(served.replicas()) == 2


def test_sixteen_streams_of_which_a_replica_dies(served: Served) -> None:
    """Killed in the middle: every answer is whole or ends with an error, those that had not begun are whole, and there
    are two replicas again."""

    async def ask(client: openai.AsyncOpenAI) -> list[tuple[str, str]]:
        tasks = [asyncio.create_task(told(client, f"{LONG} Number {n}.", 64)) for n in range(16)]
        await asyncio.sleep(1.5)
        victim = served.replicas()[0]
        os.kill(victim.pid, signal.SIGKILL)
        return await asyncio.gather(*tasks)

    answers = served.ask(ask)
    ends = [end for _, end in answers]
    assert set(ends) <= {"stop", "length", "replica_lost"}, ends
    assert all(text for text, end in answers if end == "replica_lost"), "what had not begun was asked of another one"
    assert ends.count("replica_lost") <= 2, "no more than the replica's two slots"
    until(lambda: len(served.replicas()) == 2)


def test_a_dead_llama_cpp_is_noticed_and_begun_anew(served: Served) -> None:
    before = {replica.pid for replica in served.replicas()}
    victim = served.replicas()[0]
    os.kill(victim.children()[0].pid, signal.SIGKILL)
    assert served.ask(lambda client: told(client, LONG, 8))[1] == "length"
    until(lambda: len(served.replicas()) == 2 and {replica.pid for replica in served.replicas()} != before)


def test_a_hung_replica_is_found_and_its_request_answered_by_another(served: Served) -> None:
    victims = served.replicas()
    os.kill(victims[0].pid, signal.SIGSTOP)
    try:

        async def ask(client: openai.AsyncOpenAI) -> list[tuple[str, str]]:
            return await asyncio.gather(*(told(client, f"{LONG} Part {n}.", 8) for n in range(4)))

        assert [end for _, end in served.ask(ask)] == ["length"] * 4
        until(lambda: len(served.replicas()) == 2 and victims[0].pid not in {one.pid for one in served.replicas()})
    finally:
        if victims[0].is_running():
            os.kill(victims[0].pid, signal.SIGCONT)


def test_turns_of_one_conversation_find_their_prompt(served: Served) -> None:
    """The second turn reads what is new alone: it went where the first one's prompt lies."""

    async def ask(client: openai.AsyncOpenAI) -> list[int]:
        cached = []
        for n in range(8):
            talk: list[Any] = [{"role": "user", "content": f"{LONG} Chapter {n}. " + "Waves and wind. " * 20}]
            first = await client.chat.completions.create(model="smollm2", messages=talk, max_tokens=8)
            talk += [
                {"role": "assistant", "content": first.choices[0].message.content},
                {"role": "user", "content": "Go on."},
            ]
            second = await client.chat.completions.create(model="smollm2", messages=talk, max_tokens=8)
            assert second.usage and second.usage.prompt_tokens_details
            cached.append(second.usage.prompt_tokens_details.cached_tokens or 0)
        return cached

    cached = served.ask(ask)
    assert sum(tokens > 80 for tokens in cached) >= 0.95 * len(cached), cached


def test_a_client_that_leaves_frees_its_place(served: Served) -> None:
    async def leave(client: openai.AsyncOpenAI) -> None:
        stream = await client.chat.completions.create(
            model="smollm2", messages=[{"role": "user", "content": LONG}], max_tokens=900, stream=True
        )
        async for _ in stream:
            break
        await stream.close()

    served.ask(leave)

    def running() -> int:
        engines = httpx.get(f"{served.url}/v1/system", trust_env=False).json()["engines"]
        return sum(int(engine["running"]) for engine in engines)

    until(lambda: running() == 0, 5.0)


def test_options_of_ray_alone_are_refused_by_one_machine() -> None:
    with pytest.raises(Invalid) as raised:
        SERVING.get("local")(cluster="auto", replicas=1, max_replicas=0, cpus=0)
    assert raised.value.param == "--cluster"


@pytest.mark.parametrize(
    "error",
    [
        Invalid("launch.not_local", param="--cluster"),
        TooLarge("launch.rank_failed", rank=1, why="x", log="y"),
        MissingExtra("core.missing_extra", name="a", library="b", extra="c"),
    ],
)
def test_errors_are_whole_on_another_machine(error: MofangError) -> None:
    import pickle

    found = pickle.loads(pickle.dumps(error))
    assert type(found) is type(error) and str(found) == str(error) and vars(found) == vars(error)
