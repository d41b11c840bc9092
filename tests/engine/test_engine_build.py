"""Building llama.cpp: what it is built with, when it is used, and that a build that computes wrongly never is."""

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from mofang.engine import build, toolchain
from mofang.engine.llama.native import flags
from mofang.engine.llama.provider import Launch, choose
from mofang.engine.llama.wheel import parameters
from mofang.engine.profile import Choices
from mofang.errors import MissingSystem, MofangError

XEON = frozenset("sse4_2 avx avx2 bmi2 fma f16c avx512f avx512_vnni amx_tile amx_int8".split())


def silent(*_: object) -> None: ...


def made(home: Path, **changes) -> build.Build:
    """A build on disk, as if it had been compiled: its server is a script."""
    folder = build.folder(home) / str(changes.get("key", "k1"))
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "llama-server").write_text("#!/bin/sh\n")
    values = {
        "key": "k1", "source": toolchain.SHA256, "backend": "cpu", "flags": {}, "compiler": "gcc", "cpu": "this",
        "cpu_key": build.cpu_key(), "built_at": "2026-11-24T00:00:00", "seconds": 1.0, "proof": {"passed": True},
    }  # fmt: skip
    one = build.Build(folder=folder, **{**values, **changes})
    return one.with_proof(one.proof)


def test_a_proven_build_for_this_cpu_is_used(tmp_path) -> None:
    made(tmp_path)
    assert choose(tmp_path).name == "native"
    assert choose(tmp_path, "wheel").name == "xllamacpp"


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"proof": {"passed": False, "why": "differs"}}, "engine.why_not_proven"),
        ({"proof": {}}, "engine.why_not_proven"),
        ({"cpu_key": "a copied home"}, "engine.why_other_cpu"),
        ({"source": "another llama.cpp"}, "engine.why_other_cpu"),
    ],
)
def test_every_other_build_is_left_and_the_reason_said(tmp_path, changes, why) -> None:
    made(tmp_path, **changes)
    assert choose(tmp_path).name == "xllamacpp"
    assert build.reason(tmp_path) == why
    with pytest.raises(MissingSystem) as caught:
        choose(tmp_path, "native")
    assert "engine build" in caught.value.hint("en")


def test_a_broken_record_is_no_build(tmp_path) -> None:
    one = made(tmp_path)
    (one.folder / "build.json").write_text("{")
    assert build.builds(tmp_path) == [] and build.reason(tmp_path) == "engine.why_none_built"


def test_another_cpu_has_another_key(monkeypatch) -> None:
    here = build.cpu_key()
    monkeypatch.setattr(build, "cpu_flags", lambda: XEON)
    assert build.cpu_key() != here


def test_without_amx_every_other_ability_stays() -> None:
    switches = build.without_amx(XEON)
    assert switches["GGML_NATIVE"] == "OFF" and switches["GGML_AVX512"] == "ON" and switches["GGML_AVX512_VNNI"] == "ON"
    assert not any("AMX" in name for name in switches) and "GGML_AVX512_BF16" not in switches


def test_the_plan_names_what_was_found_about_amx(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(build, "cpu_flags", lambda: XEON)
    with_amx = build.plan(tmp_path, backend="cpu", tell=silent)
    without = build.plan(tmp_path, backend="cpu", amx=False, tell=silent)
    assert with_amx.flags["GGML_NATIVE"] == "ON" and with_amx.notes == ["engine.note_amx_cured"]
    assert without.flags["GGML_NATIVE"] == "OFF" and without.notes == ["engine.note_amx_off"]
    assert with_amx.key != without.key


def test_a_missing_compiler_is_named(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(build.shutil, "which", lambda name: None)
    with pytest.raises(MissingSystem) as caught:
        build.plan(tmp_path, backend="cpu", tell=silent)
    assert "g++" in caught.value.message("en") and "zig" in caught.value.hint("en")
    with pytest.raises(MissingSystem) as caught:
        build.plan(tmp_path, backend="cuda", tell=silent)
    assert "nvcc" in caught.value.message("en")


@pytest.mark.parametrize(
    ("c", "cxx"), [("gcc-13", "g++-13"), ("clang-17", "clang++-17"), ("/opt/gcc/bin/gcc", "/opt/gcc/bin/g++")]
)
def test_the_compiler_s_other_half(c, cxx) -> None:
    assert build._cxx(c) == cxx


def test_the_amx_cure_stands_before_the_call_once(tmp_path) -> None:
    file = tmp_path / build.AMX_FILE
    file.parent.mkdir(parents=True)
    file.write_text(f"void f() {{\n{build.AMX_CALL}\n}}\n")
    build.cure_amx(tmp_path)
    build.cure_amx(tmp_path)
    text = file.read_text()
    assert text.count("asm volatile") == 1 and text.index("asm volatile") < text.index("_tile_loadconfig")


def scripted(tmp_path: Path, ninja: str) -> build.Plan:
    """A plan whose tools are scripts: CMake makes the folder, "Ninja" does what the test says."""
    tools = tmp_path / "tools"
    tools.mkdir(exist_ok=True)
    for name, text in (("cmake", 'mkdir -p "$4"'), ("ninja", ninja)):
        script = tools / name
        script.write_text(f"#!/bin/bash\n{text}\n")
        script.chmod(0o755)
    return build.Plan("cpu", {"GGML_NATIVE": "ON"}, "gcc 12", {}, [str(tools / "cmake")], str(tools / "ninja"))


@pytest.fixture
def source(tmp_path, monkeypatch):
    def unpack(home: Path, target: Path) -> None:
        (target / build.AMX_FILE).parent.mkdir(parents=True)
        (target / build.AMX_FILE).write_text(build.AMX_CALL)

    monkeypatch.setattr(build.toolchain, "unpack_source", unpack)


COMPILES = """
mkdir -p "$2/bin"; for n in 1 2 3; do echo "[$n/3] Building CXX object"; done
touch "$2/bin/llama-server" "$2/bin/llama-quantize" "$2/bin/unwanted"; ln -s libggml.so.0 "$2/bin/libggml.so"; touch "$2/bin/libggml.so.0"
"""


def test_a_build_reports_progress_and_keeps_programs_and_libraries(tmp_path, source) -> None:
    told, log = [], tmp_path / "log"
    one = build.make(tmp_path, scripted(tmp_path, COMPILES), log=log, tell=lambda *step: told.append(step))
    assert [step[1:3] for step in told if step[0] == "compile"] == [(1, 3), (2, 3), (3, 3)]
    names = sorted(path.name for path in (one.folder / "bin").iterdir())
    assert names == ["libggml.so", "libggml.so.0", "llama-quantize", "llama-server"]
    assert (one.folder / "bin" / "libggml.so").is_symlink()
    assert not one.proven and build.current(tmp_path) is None
    assert list(toolchain.folder(tmp_path).glob("work-*")) == []
    again = build.make(tmp_path, scripted(tmp_path, "exit 1"), log=log, tell=silent)
    assert again == one  # the finished one: nothing was compiled again


def test_a_failed_build_says_the_first_error_and_goes_on_later(tmp_path, source) -> None:
    log = tmp_path / "log"
    fails = 'mkdir -p "$2/bin"; echo done > "$2/half"; echo "a.cpp:3:1: error: no such thing"; echo "ninja: stopped"; exit 1'
    plan = scripted(tmp_path, fails)
    with pytest.raises(MofangError) as caught:
        build.make(tmp_path, plan, log=log, tell=silent)
    assert "a.cpp:3:1: error: no such thing" in caught.value.message("en")
    assert build.builds(tmp_path) == []
    scripted(tmp_path, 'test -f "$2/half" || exit 1\n' + COMPILES)
    assert build.make(tmp_path, plan, log=log, tell=silent).tool("llama-server").is_file()


# ---- one table, two builds ----

PLAIN = Launch("/m.gguf", "m", "secret", 4096, 2, 512, 3)


def test_both_builds_are_told_the_same(tmp_path) -> None:
    chosen = Choices("off", 2, 4, 256, "q8_0", "ngram-simple:8:24")
    launch = replace(PLAIN, choices=chosen, adapters=("/a.gguf", "/b.gguf"), slot_folder="/slots")
    native = " ".join(flags(launch) + flags(launch, cpu_only=True))
    for words in (
        "--model /m.gguf", "--ctx-size 8192", "--parallel 2", "--no-kv-unified", "--no-context-shift", "--slots",
        "--threads 2", "--threads-batch 4", "--flash-attn off", "--cache-type-k q8_0", "--cache-type-v q8_0",
        "--spec-type ngram-simple", "--spec-ngram-simple-size-n 8", "--spec-ngram-simple-size-m 24", "--batch-size 256",
        "--ubatch-size 256", "--lora /a.gguf,/b.gguf", "--lora-init-without-apply", "--slot-save-path /slots/",
    ):  # fmt: skip
        assert words in native
    assert "secret" not in native  # a command line is for everybody to read
    wheel = {**parameters(launch), **parameters(launch, cpu_only=True)}
    assert wheel["flash_attn_type"] == "off" and wheel["n_ctx"] == 8192 and wheel["api_keys"] == "secret"
    assert wheel["speculative.types"] == "ngram-simple" and wheel["n_batch"] == 256
    json.dumps(wheel)  # it travels as JSON


def test_what_nobody_chose_is_left_to_llama_cpp() -> None:
    native = " ".join(flags(PLAIN))
    assert not any(
        word in native for word in ("flash", "cache-type", "spec", "lora", "slot-save", "embedding", "batch-size")
    )
    embedder = replace(PLAIN, embedding=True)
    assert "--embedding" in flags(embedder) and "--batch-size" not in flags(embedder, cpu_only=True)


@pytest.mark.skipif(sys.platform != "linux", reason="what ties a foreign program to us is Linux's own")
def test_a_program_that_is_not_ours_ends_with_us(tmp_path) -> None:
    """Also when the one that started it is killed with SIGKILL."""
    import signal
    import subprocess
    import time

    import psutil

    code = (
        "from pathlib import Path; import time; from mofang.platform import start_program;"
        f"c = start_program(['sleep', '60'], log=Path({str(tmp_path / 'log')!r})); print(c.pid, flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    pid = int(parent.stdout.readline())
    assert psutil.pid_exists(pid)
    os.kill(parent.pid, signal.SIGKILL)
    parent.communicate()
    until = time.monotonic() + 10
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE and time.monotonic() < until:
        time.sleep(0.02)
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
