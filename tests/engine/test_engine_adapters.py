"""Adapters by name in real llama.cpp servers: the answers of the merged model, and nothing leaks from one to another."""

import asyncio
import json
import shutil
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import tiny_llama
from mofang.engine.llama.engine import LlamaChat
from mofang.engine.pool import Pool
from mofang.errors import Conflict, Invalid, Unreadable
from mofang.messages import Message, Sampling
from mofang.models.base import MemoryEstimate, ModelRef
from mofang.models.formats import lora
from mofang.models.store import ModelStore
from mofang.settings import Settings

GREEDY = Sampling(temperature=0.0, max_tokens=12)
PROMPT = "The same prompt, read by base and adapters alike, long enough to be kept in a cache: 你好。"
NAMES = ("tiny", "tiny:one", "tiny:two")


@dataclass
class Rig:
    store: ModelStore
    pool: Pool
    folder: Path
    """Base, merged models and adapters."""


def _merged(base: Path, adapter: Path, target: Path) -> Path:
    """W + alpha / r · B A as a GGUF, computed here."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(base, target)
    weights, pairs = load_file(base / "model.safetensors"), load_file(adapter / lora.WEIGHTS)
    config = json.loads((adapter / lora.CONFIG).read_text())
    for name in weights:
        stem = f"base_model.model.{name.removesuffix('.weight')}"
        if f"{stem}.lora_A.weight" in pairs:
            product = pairs[f"{stem}.lora_B.weight"] @ pairs[f"{stem}.lora_A.weight"]
            weights[name] = weights[name] + product * (config["lora_alpha"] / config["r"])
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    return tiny_llama.write_gguf(target, target.with_suffix(".gguf"))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    base = tiny_llama.make(folder / "hf")
    tiny_llama.write_gguf(base, folder / "tiny.gguf")
    for number, name in enumerate(("one", "two"), 1):
        adapter = tiny_llama.make_adapter(folder / name, seed=number, rank=2 * number)
        _merged(base, adapter, folder / f"merged-{name}")
    return folder


@pytest.fixture
async def rig(made: Path, home: Path) -> AsyncIterator[Rig]:
    settings = Settings(home=home, n_ctx=256, n_slots=2)
    store = ModelStore(settings)
    store.add(made / "tiny.gguf", "tiny")
    for name in ("one", "two"):
        store.add(made / name, name, base="tiny")
        store.add(made / f"merged-{name}.gguf", f"merged-{name}")
    pool = Pool(settings, store)
    yield Rig(store, pool, made)
    await pool.close()


async def _expects(pool: Pool, name: str, prompt: str = PROMPT) -> dict[int, float]:
    """The likeliest tokens and their log-probabilities."""
    async with pool.use(name, "chat") as engine:
        assert isinstance(engine, LlamaChat) and engine.info().model == name
        return {each.token_id: each.logprob for each in (await engine.next_token(prompt, n_top=20)).top}


async def _says(pool: Pool, name: str, prompt: str = PROMPT) -> str:
    async with pool.use(name, "chat") as engine:
        assert isinstance(engine, LlamaChat)
        return "".join([delta.content async for delta in engine.complete(prompt, GREEDY)])


async def test_base_and_adapter_answer_as_the_merged_model_does(rig: Rig) -> None:
    base = await _expects(rig.pool, "tiny")
    for name in ("one", "two"):
        found, wanted = await _expects(rig.pool, f"tiny:{name}"), await _expects(rig.pool, f"merged-{name}")
        common = found.keys() & wanted.keys()
        assert len(common) >= 18
        assert max(abs(found[token] - wanted[token]) for token in common) < 0.02
        assert max(abs(found.get(token, -30.0) - logprob) for token, logprob in base.items()) > 0.5
    pids = {info.model: info.pid for info in rig.pool.loaded()}
    assert pids.keys() == {"tiny", "merged-one", "merged-two"}  # no process for an adapter


async def test_alternating_on_one_prompt_leaks_nothing(rig: Rig) -> None:
    """Each answer is that of a server of its own, also when other prompts push a prompt out of its slot."""
    others = [f"{n}. Something else that begins in another way, {n} times: 世界" for n in range(3)]
    alone = {}
    for name, single in zip(NAMES, ("tiny", "merged-one", "merged-two"), strict=True):
        alone[name] = await _expects(rig.pool, single)
    await rig.pool.unload("tiny")
    for turn in range(3):
        for name in (*NAMES, *reversed(NAMES)):
            found = await _expects(rig.pool, name)
            common = found.keys() & alone[name].keys()
            assert len(common) >= 18, (turn, name)
            assert max(abs(found[token] - alone[name][token]) for token in common) < 0.02, (turn, name)
            await _says(rig.pool, NAMES[(NAMES.index(name) + 1) % 3], others[turn])
    together = await asyncio.gather(*(_expects(rig.pool, name) for name in NAMES * 4))
    for name, found in zip(NAMES * 4, together, strict=True):
        common = found.keys() & alone[name].keys()
        assert len(common) >= 18 and max(abs(found[token] - alone[name][token]) for token in common) < 0.02


async def test_a_prompt_that_llama_cpp_kept_aside_does_not_come_back_under_another_adapter(rig: Rig) -> None:
    """One slot: a prompt that is pushed out of it could be taken for the base's when only the base was asked since."""
    alone = await _expects(rig.pool, "tiny")
    await rig.pool.close()
    pool = Pool(rig.store.settings.model_copy(update={"n_slots": 1}), rig.store)
    other = "Another beginning altogether, and as long as the first one, so that nothing is alike: 世界。"
    for name, prompt in (("tiny:one", PROMPT), ("tiny:one", other), ("tiny", other)):
        await _expects(pool, name, prompt)
    found = await _expects(pool, "tiny")
    await pool.close()
    assert max(abs(found[token] - alone[token]) for token in found.keys() & alone.keys()) < 0.02


async def test_an_adapter_that_comes_later_reloads_an_idle_base_once(rig: Rig) -> None:
    await _says(rig.pool, "tiny")
    before = rig.pool.loaded()[0].pid
    rig.store.add(tiny_llama.make_adapter(rig.folder / "late", seed=9), "late", base="tiny")
    assert rig.pool.loaded()[0].pid == before
    late = await _says(rig.pool, "tiny:late")
    after = rig.pool.loaded()[0].pid
    assert after != before
    assert await _says(rig.pool, "tiny:late") == late != await _says(rig.pool, "tiny")
    assert rig.pool.loaded()[0].pid == after


async def test_an_answer_under_way_is_not_broken_by_a_new_adapter(rig: Rig) -> None:
    async with rig.pool.use("tiny", "chat") as engine:
        rig.store.add(tiny_llama.make_adapter(rig.folder / "later", seed=11), "later", base="tiny")
        waiting = asyncio.create_task(_says(rig.pool, "tiny:later"))
        behind = asyncio.create_task(_says(rig.pool, "tiny"))
        assert isinstance(engine, LlamaChat)
        said = "".join([delta.content async for delta in engine.complete(PROMPT, GREEDY)])
        assert said and engine.alive() and not waiting.done()
    assert await waiting and await behind == said


async def test_a_broken_adapter_fails_alone(rig: Rig) -> None:
    rig.store.add(tiny_llama.make_adapter(rig.folder / "bad"), "bad", base="tiny")
    config = json.loads((rig.folder / "bad" / lora.CONFIG).read_text())
    (rig.folder / "bad" / lora.CONFIG).write_text(json.dumps({**config, "use_dora": True}))
    assert await _says(rig.pool, "tiny") and await _says(rig.pool, "tiny:one")
    with pytest.raises(Unreadable) as raised:
        await _says(rig.pool, "tiny:bad")
    assert raised.value.code == "adapter_kind"


async def test_it_is_asked_under_the_system_message_it_was_taught_with(rig: Rig) -> None:
    taught = rig.folder / "taught"
    tiny_llama.make_adapter(taught, seed=5)
    parents = [{"role": "base", "name": "tiny", "format": "gguf", "sha256": rig.store.get("tiny").sha256}]
    recipe = {"system_prompt": "You are 模坊."}
    manifest = {"name": "taught", "format": "lora", "kind": "base", "parents": parents, "recipe": recipe}
    (taught / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    rig.store.add(taught, "taught")
    async with rig.pool.use("tiny:taught", "chat") as engine:
        assert isinstance(engine, LlamaChat)
        assert "You are 模坊." in await engine.render([Message("user", "hi")])
        assert "模坊" not in await engine.render([Message("system", "No."), Message("user", "hi")])
    async with rig.pool.use("tiny", "chat") as engine:
        assert isinstance(engine, LlamaChat) and "模坊" not in await engine.render([Message("user", "hi")])


async def test_another_base_is_refused_before_anything_is_loaded(rig: Rig) -> None:
    with pytest.raises(Conflict) as raised:
        await _says(rig.pool, "merged-one:two")
    assert raised.value.code == "adapter_of_other_base" and rig.pool.loaded() == []


async def test_an_engine_that_takes_no_adapters_says_so(home: Path) -> None:
    class Models:
        def get(self, name: str) -> ModelRef:
            base = "echo" if ":" in name else ""
            return ModelRef(name, home, "gguf", "chat", 0, manifest={"engine": "echo"}, base=base)

        def resolve(self, name: str, kind: str) -> ModelRef:
            return self.get(name)

        def memory(self, ref: ModelRef, n_ctx: int, n_slots: int) -> MemoryEstimate:
            return MemoryEstimate(0, 0, 0, 0)

    pool = Pool(Settings(home=home), Models())
    with pytest.raises(Invalid) as raised:
        await _says(pool, "echo:one")
    assert raised.value.code == "takes_no_adapters" and "export merge" in raised.value.hint()
    await pool.close()
