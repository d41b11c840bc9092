"""A build for this machine proves itself, and one that computes wrongly does not: real servers, a real model."""

import stat
from dataclasses import replace
from pathlib import Path

import pytest

from mofang.engine import build
from mofang.engine.agreement import MAX_MEAN_KL
from mofang.engine.prove import prove
from mofang.models.base import ModelRef
from mofang.settings import Settings

pytestmark = pytest.mark.model


@pytest.fixture
def model(smollm2: Path) -> ModelRef:
    return ModelRef("smollm2", smollm2, "gguf", "chat", smollm2.stat().st_size)


def _quiet(*_: object, **__: object) -> None: ...


def _spoilt(made: build.Build, home: Path, *flags: str, tool: str = "llama-server") -> build.Build:
    """The same build, with one of its programs told something that nobody asked for."""
    target = build.folder(home) / "spoilt"
    (target / "bin").mkdir(parents=True)
    for path in (made.folder / "bin").iterdir():
        (target / "bin" / path.name).symlink_to(path)
    spoilt = replace(made, folder=target)
    spoilt.tool(tool).unlink()
    script = f'#!/bin/sh\nexec "{made.tool(tool)}" "$@" {" ".join(flags)}\n' if flags else "#!/bin/sh\nkill -SEGV $$\n"
    spoilt.tool(tool).write_text(script)
    spoilt.tool(tool).chmod(spoilt.tool(tool).stat().st_mode | stat.S_IXUSR)
    return spoilt


async def test_a_sound_build_proves_itself(native: build.Build, model: ModelRef, home: Path) -> None:
    build.folder(home).mkdir(parents=True)
    proof = await prove(native, model, Settings(home=home), _quiet)
    assert proof["passed"] and not proof["why"], proof
    assert proof["mean_kl"] <= MAX_MEAN_KL and proof["same_top"] >= 0.99 and proof["n_tokens"] == 200
    assert proof["quantized_mean_kl"] <= proof["quantized_bound"]
    assert proof["flash_mean_kl"] <= MAX_MEAN_KL and proof["answer"]
    assert [path.name for path in build.folder(home).iterdir()] == [], "the copy of the model is gone"


async def test_one_that_computes_wrongly_does_not(native: build.Build, model: ModelRef, home: Path) -> None:
    """A frequency of the rotary embedding that is off: what a miscompiled kernel might do. It still speaks well."""
    proof = await prove(_spoilt(native, home, "--rope-freq-base", "50000"), model, Settings(home=home), _quiet)
    assert not proof["passed"] and proof["mean_kl"] > MAX_MEAN_KL and str(proof["mean_kl"]) in proof["why"]


@pytest.mark.parametrize("tool", ["llama-server", "llama-quantize"])
async def test_one_that_crashes_does_not(native: build.Build, model: ModelRef, home: Path, tool: str) -> None:
    proof = await prove(_spoilt(native, home, tool=tool), model, Settings(home=home), _quiet)
    assert not proof["passed"] and proof["why"] and "mean_kl" not in proof


def test_every_program_is_there(native: build.Build) -> None:
    import subprocess

    for name in build.PROGRAMS:
        ended = subprocess.run([native.tool(name), "--help"], capture_output=True, text=True, check=False)
        assert "usage" in (ended.stdout + ended.stderr).lower(), name
