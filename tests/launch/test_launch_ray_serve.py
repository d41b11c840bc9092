"""`mofang serve --launcher ray`: the same routes, replicas of real models, and what happens when they are killed, changed,
more or fewer."""

import asyncio
import contextlib
import os
import pickle
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import openai
import pytest
from ray_gateway import Served, serving, told, until

import tiny_llama
from fakes import install_model
from mofang.errors import Invalid, MissingExtra, MofangError, TooLarge
from mofang.launch import SERVING
from mofang.models.store import ModelStore
from mofang.settings import Settings

pytestmark = [pytest.mark.ray, pytest.mark.model, pytest.mark.slow, pytest.mark.timeout(600)]

LONG = "Tell a long story about a lighthouse keeper and the sea."
SPOKEN = "".join(f"{number} " for number in range(40))
"""What the slow echo says in six seconds."""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tiny models of one shape that say different things, and adapters over the first."""
    folder = tmp_path_factory.mktemp("files")
    for number, name in enumerate(("one", "other")):
        tiny_llama.write_gguf(tiny_llama.make(folder / f"hf-{name}", seed=number), folder / f"{name}.gguf")
    for number, name in enumerate(("kind", "late"), 1):
        tiny_llama.make_adapter(folder / name, seed=number)
    return folder


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, smollm2: Path, files: Path) -> Iterator[Served]:
    home = tmp_path_factory.mktemp("ray") / "home"
    store = ModelStore(Settings(home=home))
    store.add(smollm2, "smollm2")
    (files / "now.gguf").symlink_to(files / "one.gguf")
    store.add(files / "now.gguf", "tiny")
    store.add(files / "kind", "kind", base="tiny")
    store.add(files / "other.gguf", "alone")  # a base with adapters keeps no prompts but those in its slots
    install_model(home, "slow", echo={"n_slots": 2, "delay_s": 0.05})
    install_model(home, "hash", kind="embedding", engine="hash")
    settings = {"MOFANG_N_CTX": "1024", "MOFANG_N_SLOTS": "2", "MOFANG_CHAT_MODEL": "smollm2"}
    with serving(home, "--replicas", "2", "--calm", "2", settings=settings) as running:
        running.load("smollm2")
        yield running


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
    engines = served.call("GET", "/v1/system").json()["engines"]
    found = next(engine for engine in engines if engine["model"] == "smollm2")
    assert found["n_slots"] == 4 and found["provider"].startswith("ray"), "two replicas of two"
    assert len(served.replicas("smollm2")) == 2


def test_sixteen_streams_of_which_a_replica_dies(served: Served) -> None:
    """Killed in the middle: every answer is whole or ends with an error, those that had not begun are whole, and there
    are two replicas again."""

    async def ask(client: openai.AsyncOpenAI) -> list[tuple[str, str]]:
        tasks = [asyncio.create_task(told(client, f"{LONG} Number {n}.", 64)) for n in range(16)]
        await asyncio.sleep(1.5)
        victim = served.replicas("smollm2")[0]
        os.kill(victim.pid, signal.SIGKILL)
        return await asyncio.gather(*tasks)

    answers = served.ask(ask)
    ends = [end for _, end in answers]
    assert set(ends) <= {"stop", "length", "replica_lost"}, ends
    assert all(text for text, end in answers if end == "replica_lost"), "what had not begun was asked of another one"
    assert ends.count("replica_lost") <= 2, "no more than the replica's two slots"
    until(lambda: len(served.replicas("smollm2")) == 2)


def test_a_dead_llama_cpp_is_noticed_and_begun_anew(served: Served) -> None:
    before = {replica.pid for replica in served.replicas("smollm2")}
    victim = served.replicas("smollm2")[0]
    os.kill(victim.children()[0].pid, signal.SIGKILL)
    assert served.ask(lambda client: told(client, LONG, 8))[1] == "length"
    until(
        lambda: (
            len(served.replicas("smollm2")) == 2 and {replica.pid for replica in served.replicas("smollm2")} != before
        )
    )


def test_a_hung_replica_is_found_and_its_request_answered_by_another(served: Served) -> None:
    before = {one.pid for one in served.replicas("smollm2")}
    victim = served.replicas("smollm2")[0]
    os.kill(victim.pid, signal.SIGSTOP)
    try:
        begun = time.monotonic()

        async def ask(client: openai.AsyncOpenAI) -> list[tuple[str, str]]:
            return await asyncio.gather(*(told(client, f"{LONG} Part {n}.", 8) for n in range(4)))

        assert [end for _, end in served.ask(ask)] == ["length"] * 4
        print(f"answered {time.monotonic() - begun:.1f} s after the replica was stopped")
        until(lambda: {one.pid for one in served.replicas("smollm2")} - before)
        print(f"begun anew {time.monotonic() - begun:.1f} s after it")
        until(lambda: not victim.is_running())
        print(f"its memory is free {time.monotonic() - begun:.1f} s after it")
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(victim.pid, signal.SIGCONT)
    until(lambda: len(served.replicas("smollm2")) == 2)


async def opened(client: openai.AsyncOpenAI, turns: list[Any], question: str) -> int:
    """Asks it in a conversation, keeps the answer there, and returns how much of the prompt was known already."""
    turns.append({"role": "user", "content": question})
    whole = await client.chat.completions.create(model="alone", messages=turns, max_tokens=4, temperature=0)
    turns.append({"role": "assistant", "content": whole.choices[0].message.content})
    assert whole.usage and whole.usage.prompt_tokens_details
    return whole.usage.prompt_tokens_details.cached_tokens or 0


def test_conversations_find_their_prompts_and_a_lost_replica_moves_its_own(served: Served) -> None:
    """A later turn reads what is new alone: it goes where the earlier ones lie. Three at a time, so that none is full."""
    talks: list[list[Any]] = [[] for _ in range(24)]

    async def turn(client: openai.AsyncOpenAI, question: str) -> list[bool]:
        three = asyncio.Semaphore(3)

        async def one(number: int, turns: list[Any]) -> bool:
            async with three:
                return await opened(client, turns, f"{question} {number * 7919:05d} " + "~" * 100) > 90

        return await asyncio.gather(*(one(number, turns) for number, turns in enumerate(talks)))

    served.load("alone")
    assert not any(served.ask(lambda client: turn(client, "a")))
    again = served.ask(lambda client: turn(client, "b"))
    assert sum(again) >= 0.95 * len(talks), again

    victim = served.replicas("alone")[0]
    os.kill(victim.pid, signal.SIGKILL)
    stayed = served.ask(lambda client: turn(client, "c"))
    print(f"{sum(again)} of {len(talks)} found their prompt; without one replica of two {sum(stayed)} still did")
    assert 0.25 * len(talks) <= sum(stayed) <= 0.75 * len(talks), "the lost one's share begins anew elsewhere"
    until(lambda: len(served.replicas("alone")) == 2)


def test_adapters_answer_from_replicas_beside_other_models(served: Served, files: Path) -> None:
    async def raw(client: openai.AsyncOpenAI, model: str) -> str:
        whole = await client.completions.create(model=model, prompt="lighthouse 灯塔", max_tokens=12, temperature=0)
        return whole.choices[0].text

    async def all_at_once(client: openai.AsyncOpenAI) -> dict[str, set[str]]:
        names = ["tiny", "tiny:kind", "smollm2"] * 4
        said = await asyncio.gather(*(raw(client, name) for name in names))
        return {name: {text for one, text in zip(names, said, strict=True) if one == name} for name in names}

    said = served.ask(all_at_once)
    assert all(len(texts) == 1 for texts in said.values()), "each replica says the same"
    assert len(set.union(*said.values())) == 3, "and each model something else"
    added = served.call("POST", "/v1/models/add", {"path": str(files / "late"), "base": "tiny"})
    assert added.is_success, added.text
    late = served.ask(lambda client: raw(client, "tiny:late"))
    assert late not in set.union(*said.values()), "one that came after its base was loaded"
    assert served.ask(all_at_once) == said
    whole = served.ask(lambda client: told(client, "hello", 4, model="tiny:late"))
    assert whole[0] and whole[1] in ("stop", "length")

    assert served.call("POST", "/v1/models/tiny/unload").status_code == 204
    until(lambda: not served.replicas("tiny"))
    assert len(served.replicas("smollm2")) == 2, "the other one stays"
    asked = {"model": "tiny:kind", "prompt": "a", "max_tokens": 1, "keep_alive": 0}
    assert served.call("POST", "/v1/completions", asked).is_success
    until(lambda: not served.replicas("tiny"))


@asynccontextmanager
async def asking(client: openai.AsyncOpenAI, model: str, count: int) -> AsyncIterator[list[tuple[str, str]]]:
    """The answers to `count` callers who ask again and again until the block ends."""
    over, answers = asyncio.Event(), []

    async def caller() -> None:
        while not over.is_set():
            answers.append(await told(client, "The same question.", 24, model=model))

    tasks = [asyncio.create_task(caller()) for _ in range(count)]
    try:
        yield answers
    finally:
        over.set()
        await asyncio.gather(*tasks)


def renew(path: Path, target: Path) -> None:
    """Another file under the same name, at once."""
    aside = path.with_suffix(".new")
    aside.symlink_to(target)
    aside.replace(path)


def test_a_model_is_changed_while_it_is_asked(served: Served, files: Path) -> None:
    """No answer fails, none is cut, each is the old model's or the new one's; then they are the new one's. One that cannot
    be loaded changes nothing."""
    now, broken = files / "now.gguf", files / "broken.gguf"
    tiny_llama.write_gguf(files / "hf-other", broken, leave_out="output_norm.weight")
    served.load("tiny"), served.load("slow")

    async def change(client: openai.AsyncOpenAI) -> None:
        before = await told(client, "The same question.", 24, model="tiny")
        async with asking(client, "tiny", 3) as answers:
            await asyncio.sleep(1)
            renew(now, broken)
            failed = await asyncio.to_thread(served.call, "POST", "/v1/models/tiny/load", {"reload": True})
            assert failed.status_code >= 400 and "tiny" in failed.json()["error"]["message"], failed.text
            assert await told(client, "The same question.", 24, model="tiny") == before
            renew(now, files / "other.gguf")
            await asyncio.to_thread(served.load, "tiny", reload=True)
            n_then = len(answers)
            long = asyncio.create_task(told(client, 4 * SPOKEN, 600, model="slow"))
            await asyncio.to_thread(served.load, "slow", reload=True)
            assert not long.done()
        after = await told(client, "The same question.", 24, model="tiny")
        assert await long == (4 * SPOKEN, "stop"), "what was under way ends as it began"
        assert {end for _, end in answers} <= {"stop", "length"}, "no failure, no cut"
        assert set(answers) == {before, after} and before != after
        print(f"{len(answers)} answers, {n_then} of them by the time that the new one was there")
        assert set(answers[n_then + 3 :]) == {after}, "but for those who were waiting then"

    served.ask(change)
    until(lambda: len(served.replicas("tiny")) == 2 and len(served.replicas("slow")) == 2)


def test_copies_come_and_go_with_what_there_is_to_do(served: Served) -> None:
    """By the owner's word and by themselves, under streams that are all whole; what they held is free again."""
    served.load("slow")
    until(lambda: len(served.replicas("slow")) == 2)
    kept = {one.pid for one in served.replicas("slow")}

    async def speak(client: openai.AsyncOpenAI, number: int, text: str) -> bool:
        said = f"{number} {text}"
        return await told(client, said, 600, model="slow") == (said, "stop")

    async def fewer(client: openai.AsyncOpenAI) -> list[bool]:
        speaking = [asyncio.create_task(speak(client, number, SPOKEN)) for number in range(4)]
        await asyncio.sleep(1)
        await asyncio.to_thread(served.load, "slow", replicas=1)
        return await asyncio.gather(*speaking)

    assert served.ask(fewer) == [True] * 4, "a copy that goes speaks out"
    until(lambda: len(served.replicas("slow")) == 1)
    served.load("slow", replicas=1, max_replicas=2)
    assert {one.pid for one in served.replicas("slow")} < kept, "the other one is as it was"
    before = len(served.family())

    async def burst(client: openai.AsyncOpenAI) -> float:
        begun = time.monotonic()

        async def caller(number: int) -> bool:
            while len(served.replicas("slow")) < 2 and time.monotonic() - begun < 90:
                assert await speak(client, number, SPOKEN)
            return len(served.replicas("slow")) == 2

        assert all(await asyncio.gather(*map(caller, range(4))))
        came = time.monotonic() - begun
        # Two long ones on two copies are little to do: one of the two goes, and neither answer is cut.
        assert await asyncio.gather(*(speak(client, number, 4 * SPOKEN) for number in range(2))) == [True] * 2
        return came

    came = served.ask(burst)
    went = until(lambda: len(served.replicas("slow")) == 1, 90)
    print(f"a second copy within {came:.0f} s; it was gone {went:.0f} s after the last answer")
    until(lambda: len(served.family()) <= before + 1, 30)  # Ray keeps a process or two at hand


def test_more_copies_than_there_is_room_for_are_refused(served: Served) -> None:
    wrong = served.call("POST", "/v1/models/slow/load", {"replicas": 3, "max_replicas": 2})
    assert wrong.status_code == 400 and wrong.json()["error"]["param"] == "max_replicas"
    here = served.call("POST", "/v1/models/hash/load", {"replicas": 2})
    assert here.status_code == 400 and here.json()["error"]["code"] == "one_copy"


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
        engines = served.call("GET", "/v1/system").json()["engines"]
        return sum(int(engine["running"]) for engine in engines)

    until(lambda: running() == 0, 5.0)


def test_options_of_ray_alone_are_refused_by_one_machine() -> None:
    with pytest.raises(Invalid) as raised:
        SERVING.get("local")(cluster="auto", replicas=1, max_replicas=0, calm=0.0, cpus=0)
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
    found = pickle.loads(pickle.dumps(error))
    assert type(found) is type(error) and str(found) == str(error) and vars(found) == vars(error)


@pytest.mark.filterwarnings("ignore:Using extra keyword arguments")  # Serve's own, while it is imported
@pytest.mark.parametrize(("cluster", "expected"), [("", 100 + 2 * 30), ("auto", 0)])
def test_memory_of_copies_is_counted_where_they_are(cluster: str, expected: int) -> None:
    """On a Ray of our own they share this machine's, and weights that are mapped lie there once."""
    from mofang.launch import ray_serve
    from mofang.models.base import MemoryEstimate, ModelRef

    class Models:
        resolve = get = None

        def memory(self, ref: ModelRef, n_ctx: int, n_slots: int) -> MemoryEstimate:
            return MemoryEstimate(100, 20, 10, 130)

    spread = ray_serve._OnRay(ray_serve.Serving(cluster=cluster, replicas=2), "mofang-")
    seen = ray_serve._Elsewhere(Models(), spread)  # type: ignore[arg-type]
    assert seen.memory(ModelRef("m", Path(), "gguf", "chat", 0), 1024, 2).total == expected
    assert seen.memory(ModelRef("e", Path(), "gguf", "embedding", 0), 1024, 2).total == 130
