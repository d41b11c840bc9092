"""A model is tuned by itself when nobody asks, gives way when somebody does, and is loaded anew by what was found."""

import asyncio

import pytest

from mofang.engine import autotune
from mofang.engine.profile import Choices, Profile
from mofang.models.base import ModelRef
from mofang.settings import load as load_settings


class House:
    """Stands for a pool: says how long it has been idle, and notes what is loaded anew."""

    def __init__(self) -> None:
        self.idle_s = 0.0
        self.reloaded: list[str] = []

    def idle(self) -> float:
        return self.idle_s

    async def reload(self, name: str) -> None:
        self.reloaded.append(name)


class Tuning:
    """Stands for mofang.engine.tune.tune_model: takes until it is let go."""

    def __init__(self, choices: Choices) -> None:
        self.choices = choices
        self.begun, self.broken_off = 0, 0
        self.go = asyncio.Event()
        self.running = asyncio.Event()

    async def __call__(self, ref, config, *, budget_s, brief, **_):
        assert brief and budget_s < autotune.tune.BUDGET_S
        self.begun += 1
        self.running.set()
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.broken_off += 1
            raise
        return Profile(ref.name, self.choices, "both", "p", brief=True)


@pytest.fixture
def ref(tmp_path) -> ModelRef:
    file = tmp_path / "m.gguf"
    file.write_bytes(b"x")
    return ModelRef("m", file, "gguf", "chat", 1)


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(autotune, "LOOK_S", 0.005)

    def use(choices=None):
        tuning = Tuning(choices or Choices(flash_attn="off"))
        monkeypatch.setattr(autotune.tune, "tune_model", tuning)
        return tuning

    return use


async def until(met) -> None:
    async with asyncio.timeout(5):
        while not met():
            await asyncio.sleep(0.005)


async def test_waits_for_an_idle_moment_and_loads_the_model_anew(quick, ref) -> None:
    house, tuning = House(), quick()
    tuner = autotune.AutoTuner(load_settings(auto_tune=True), house.idle, house.reload)
    tuner.loaded(ref)
    await asyncio.sleep(0.05)
    assert tuning.begun == 0
    house.idle_s = autotune.IDLE_S
    await tuning.running.wait()
    assert tuner.tuning == "m"
    tuning.go.set()
    await until(lambda: house.reloaded == ["m"])
    tuner.loaded(ref)
    await asyncio.sleep(0.05)
    assert tuning.begun == 1 and tuner.tuning == ""
    await tuner.close()


async def test_gives_way_to_whoever_asks_and_tries_again(quick, ref) -> None:
    house, tuning = House(), quick()
    tuner = autotune.AutoTuner(load_settings(auto_tune=True), house.idle, house.reload)
    house.idle_s = autotune.IDLE_S
    tuner.loaded(ref)
    await tuning.running.wait()
    house.idle_s = 0.0
    await until(lambda: tuning.broken_off == 1)
    assert house.reloaded == []
    house.idle_s = autotune.IDLE_S
    tuning.go.set()
    await until(lambda: house.reloaded == ["m"])
    assert tuning.begun == 2
    await tuner.close()


async def test_the_defaults_need_no_new_load(quick, ref) -> None:
    house, tuning = House(), quick(Choices())
    house.idle_s = autotune.IDLE_S
    tuner = autotune.AutoTuner(load_settings(auto_tune=True), house.idle, house.reload)
    tuning.go.set()
    tuner.loaded(ref)
    await until(lambda: tuning.begun == 1 and tuner.tuning == "")
    assert house.reloaded == []
    await tuner.close()


@pytest.mark.parametrize("kind", ["embedding", "reranker"])
async def test_only_what_can_be_tuned_and_only_if_wished(quick, ref, kind) -> None:
    from dataclasses import replace

    house, tuning = House(), quick()
    house.idle_s = autotune.IDLE_S
    off = autotune.AutoTuner(load_settings(auto_tune=False), house.idle, house.reload)
    on = autotune.AutoTuner(load_settings(auto_tune=True), house.idle, house.reload)
    off.loaded(ref)
    on.loaded(replace(ref, kind=kind))
    await asyncio.sleep(0.05)
    assert tuning.begun == 0
    await off.close()
    await on.close()
