"""llama.cpp built for the CPU (or GPU) at hand, from the pinned source, and used only once it has proved itself.

    home/toolchain/builds/<key>/build.json   what it was built from and for, with which compiler, and its proof
                               /bin/         llama-server, -bench, -quantize, -imatrix, -perplexity and their libraries
                               /build.log
    home/toolchain/work-<key>/               CMake's folder while a build is under way; a broken-off build goes on there

The key is made of source, flags and CPU: a home that was copied to another machine has no build there, and the wheel
is used instead of dying of an instruction that this CPU does not have. See docs/engine.md.
"""

import hashlib
import json
import os
import platform as _platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mofang.engine import toolchain
from mofang.errors import MissingSystem, MofangError, Unreachable
from mofang.platform import cpu_flags, cpu_name, has_library, n_cores

PROGRAMS = ("llama-server", "llama-bench", "llama-quantize", "llama-imatrix", "llama-perplexity")
ALWAYS = {
    "CMAKE_BUILD_TYPE": "Release",
    "BUILD_SHARED_LIBS": "ON",  # one copy of the code for five programs, and libraries that bindings can load
    "CMAKE_BUILD_WITH_INSTALL_RPATH": "ON",
    "CMAKE_INSTALL_RPATH": "@loader_path" if sys.platform == "darwin" else "$ORIGIN",
    "LLAMA_CURL": "OFF",
    "LLAMA_OPENSSL": "OFF",
    "LLAMA_BUILD_TESTS": "OFF",
    "LLAMA_BUILD_EXAMPLES": "OFF",
    "LLAMA_BUILD_APP": "OFF",
    "LLAMA_BUILD_UI": "OFF",
    "LLAMA_USE_PREBUILT_UI": "OFF",  # it would be fetched from a hub
    "GGML_CCACHE": "OFF",
}
NATIVE = {"GGML_NATIVE": "ON"}
BACKENDS: dict[str, dict[str, str]] = {
    "cpu": {},
    "cuda": {"GGML_CUDA": "ON"},
    "vulkan": {"GGML_VULKAN": "ON"},
    "metal": {"GGML_METAL": "ON"},
}
NEEDS = {"cuda": "nvcc", "vulkan": "glslc", "metal": "xcrun"}
"""The program whose presence tells that a backend's toolchain is installed."""
FLAG_OF = {
    "sse4_2": "GGML_SSE42", "avx": "GGML_AVX", "avx2": "GGML_AVX2", "bmi2": "GGML_BMI2", "fma": "GGML_FMA",
    "f16c": "GGML_F16C", "avx_vnni": "GGML_AVX_VNNI", "avx512f": "GGML_AVX512", "avx512_vbmi": "GGML_AVX512_VBMI",
    "avx512_vnni": "GGML_AVX512_VNNI", "avx512_bf16": "GGML_AVX512_BF16",
}  # fmt: skip
"""What Linux calls an ability of a CPU → ggml's switch for it; AMX is left out on purpose (see `without_amx`)."""
AMX = "amx_tile"
AMX_FILE = "ggml/src/ggml-cpu/amx/mmq.cpp"
AMX_CALL = "    _tile_loadconfig(&tc);"
AMX_CURE = '    asm volatile("" : : "r"(&tc) : "memory"); // GCC 12 drops the stores above without this\n' + AMX_CALL
"""GCC 12 takes the stores into the tile configuration for dead and drops them; the first matrix product then dies."""
COMPILERS = (("cc", "c++"), ("gcc", "g++"), ("clang", "clang++"))
ZIG = "zig"
ZIG_FLAGS = {
    "GGML_OPENMP": "OFF",  # it brings no OpenMP
    "BUILD_SHARED_LIBS": "OFF",  # it links its own libc++ into each library; what one makes another must not free
}
SOURCE_BYTES = 700_000_000
"""Room that source and build folder take; measured 2026-11-24 (CPU build)."""
_STEP = re.compile(r"^\[(\d+)/(\d+)\]")
_MIN_CMAKE = (3, 14)

Tell = Callable[[str, int, int, str], None]
"""(stage, done, total, unit)."""


@dataclass(frozen=True, slots=True)
class Build:
    """A finished build, as its build.json tells."""

    folder: Path
    key: str
    source: str
    backend: str
    flags: dict[str, str]
    compiler: str
    cpu: str
    """CPU's name, for people."""
    cpu_key: str
    built_at: str
    seconds: float
    proof: dict[str, Any] = field(default_factory=dict)
    """What showed that it computes rightly; empty: it has not been shown, and it is not used."""
    notes: list[str] = field(default_factory=list)
    """What was found on the way: AMX, a fallback."""

    @property
    def gpu(self) -> bool:
        return self.backend != "cpu"

    @property
    def proven(self) -> bool:
        return bool(self.proof.get("passed"))

    def tool(self, name: str) -> Path:
        return self.folder / "bin" / (f"{name}.exe" if os.name == "nt" else name)

    def with_proof(self, proof: dict[str, Any]) -> "Build":
        """The same build, its proof on disk."""
        changed = replace(self, proof=proof)
        _write(changed)
        return changed


@dataclass(frozen=True, slots=True)
class Plan:
    """How to build here."""

    backend: str
    flags: dict[str, str]
    compiler: str
    """Its name and version."""
    environment: dict[str, str]
    cmake: list[str]
    ninja: str
    notes: list[str] = field(default_factory=list)

    @property
    def key(self) -> str:
        told = json.dumps([toolchain.SHA256, self.flags, self.compiler, cpu_key()], sort_keys=True)
        return hashlib.sha256(told.encode()).hexdigest()[:12]


def cpu_key() -> str:
    """Tells CPUs apart whose machine code is not interchangeable."""
    told = f"{_platform.system()}\0{_platform.machine()}\0{' '.join(sorted(cpu_flags()))}"
    return hashlib.sha256(told.encode()).hexdigest()[:12]


# ---- what is there ----


def folder(home: Path) -> Path:
    return toolchain.folder(home) / "builds"


def builds(home: Path) -> list[Build]:
    """Every finished build of this home, the newest first, whatever machine it was made on."""
    found = [build for path in sorted(folder(home).glob("*/build.json")) if (build := _read(path))]
    return sorted(found, key=lambda build: build.built_at, reverse=True)


def current(home: Path) -> Build | None:
    """The newest proven build of the pinned source for this CPU."""
    return next((build for build in builds(home) if build.proven and fits(build)), None)


def fits(build: Build) -> bool:
    return build.cpu_key == cpu_key() and build.source == toolchain.SHA256 and build.tool("llama-server").is_file()


def reason(home: Path) -> str:
    """Why there is no build to use, as a key of strings."""
    found = builds(home)
    if not found:
        return "engine.why_none_built"
    return "engine.why_not_proven" if any(fits(build) for build in found) else "engine.why_other_cpu"


def _read(path: Path) -> Build | None:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return Build(folder=path.parent, **values)
    except (OSError, ValueError, TypeError):
        return None  # of an older layout, or cut off: as if it were not there; building again replaces it


def _write(build: Build) -> None:
    values = {name: value for name, value in asdict(build).items() if name != "folder"}
    aside = build.folder / ".build.json.part"
    aside.write_text(json.dumps(values, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    aside.replace(build.folder / "build.json")


# ---- how to build ----


def plan(home: Path, *, backend: str = "auto", compiler: str = "auto", amx: bool = True, tell: Tell) -> Plan:
    """What to build with. Brings CMake and ninja as wheels where they are missing.

    Raises MissingSystem that names what has to be installed; Unreachable when pip cannot bring a wheel.
    """
    chosen = detect() if backend == "auto" else backend
    if chosen in NEEDS and shutil.which(NEEDS[chosen]) is None:
        raise MissingSystem("engine.no_backend_tools", backend=chosen, program=NEEDS[chosen])
    flags = {**ALWAYS, **(NATIVE if amx else without_amx(cpu_flags())), **BACKENDS[chosen]}
    notes = []
    if AMX in cpu_flags():
        notes.append("engine.note_amx_cured" if amx else "engine.note_amx_off")
    environment, version = _compiler(home, compiler, tell)
    if version.startswith(ZIG):
        flags |= ZIG_FLAGS
    elif not has_library("libgomp.so.1") and sys.platform == "linux":
        flags["GGML_OPENMP"] = "OFF"
    cmake, ninja = _cmake(home, tell), _ninja(home, tell)
    return Plan(chosen, flags, version, {**environment, **cmake[1]}, cmake[0], ninja, notes)


def detect() -> str:
    """The backend whose toolchain and device are both here."""
    if sys.platform == "darwin" and shutil.which(NEEDS["metal"]):
        return "metal"
    if shutil.which(NEEDS["cuda"]) and _says(["nvidia-smi", "-L"]).startswith("GPU"):
        return "cuda"
    return "cpu"


def without_amx(abilities: frozenset[str]) -> dict[str, str]:
    """The CPU's abilities as ggml's switches, one by one, AMX left off: 0.4–0.5 of its speed on Q4_1, equal on Q4_K."""
    return {"GGML_NATIVE": "OFF"} | {flag: "ON" for ability, flag in FLAG_OF.items() if ability in abilities}


def _compiler(home: Path, wanted: str, tell: Tell) -> tuple[dict[str, str], str]:
    """(environment that makes CMake take it, its name and version)."""
    if wanted == ZIG:
        return _zig(home, tell)
    given = (os.environ.get("CC", ""), os.environ.get("CXX", ""))
    for c, cxx in (given, *COMPILERS) if wanted == "auto" else ((wanted, _cxx(wanted)),):
        if c and cxx and shutil.which(c) and shutil.which(cxx):
            return {"CC": c, "CXX": cxx}, _says([cxx, "--version"]).split("\n")[0].strip()
    raise MissingSystem("engine.no_compiler", wanted="g++" if wanted == "auto" else wanted)


def _cxx(c: str) -> str:
    """The C++ side of a C compiler's name: gcc-13 → g++-13, clang-17 → clang++-17."""
    return re.sub(r"gcc(?=[^/]*$)", "g++", c) if "gcc" in c else re.sub(r"clang(?=[^/]*$)", "clang++", c)


def _zig(home: Path, tell: Tell) -> tuple[dict[str, str], str]:
    """The wheel `ziglang` as C and C++ compiler, for a machine where nothing may be installed but by pip."""
    packages = _wheel(home, "ziglang", tell)
    scripts = packages / "wrappers"
    scripts.mkdir(exist_ok=True)
    for name in ("cc", "c++", "ar", "ranlib"):
        script = scripts / f"zig-{name}"
        line = f'PYTHONPATH="{packages}" exec "{sys.executable}" -m ziglang {name} "$@"'
        script.write_text(f"#!/bin/sh\n{line}\n", encoding="utf-8")
        script.chmod(0o755)
    version = _says([str(scripts / "zig-cc"), "--version"]).split("\n")[0].strip()
    tools = {"CC": "cc", "CXX": "c++", "AR": "ar", "RANLIB": "ranlib"}
    return {variable: str(scripts / f"zig-{name}") for variable, name in tools.items()}, f"{ZIG} ({version})"


def _cmake(home: Path, tell: Tell) -> tuple[list[str], dict[str, str]]:
    """(the command, what its environment needs)."""
    found = shutil.which("cmake")
    version = re.search(r"version (\d+)\.(\d+)", _says([found, "--version"])) if found else None
    if found and version and (int(version[1]), int(version[2])) >= _MIN_CMAKE:
        return [found], {}
    packages = _wheel(home, "cmake", tell)
    return [sys.executable, str(packages / "bin" / "cmake")], {"PYTHONPATH": str(packages)}


def _ninja(home: Path, tell: Tell) -> str:
    return shutil.which("ninja") or str(_wheel(home, "ninja", tell) / "bin" / "ninja")


def _wheel(home: Path, package: str, tell: Tell) -> Path:
    """The folder that a package was installed into, beside everything else and away from this environment."""
    target = toolchain.folder(home) / "wheels" / package
    if target.is_dir():
        return target
    tell("wheels", 0, 0, package)
    aside = target.with_name(f".{package}-{os.getpid()}")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    done = subprocess.run([*command, "--target", str(aside), package], capture_output=True, text=True, check=False)
    if done.returncode:
        shutil.rmtree(aside, ignore_errors=True)
        raise Unreachable("engine.no_wheel_of", package=package, why=" ".join(done.stderr.strip().split("\n")[-2:]))
    aside.rename(target)
    return target


def _says(command: list[str]) -> str:
    """What a program prints; "" where it is missing or fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    except (OSError, subprocess.SubprocessError):
        return ""


# ---- building ----


def make(home: Path, plan: Plan, *, log: Path, tell: Tell) -> Build:
    """Build it, unproven; the same plan's finished build when there is one. A broken-off build goes on where it was.

    Raises MofangError with the log's first error when the compiler fails.
    """
    target = folder(home) / plan.key
    if (ready := _read(target / "build.json")) and ready.tool("llama-server").is_file():
        return ready
    began = time.monotonic()
    work = toolchain.folder(home) / f"work-{plan.key}"
    source = work / "source"
    if not source.is_dir():
        tell("source", 0, 0, "")
        toolchain.unpack_source(home, source)
        cure_amx(source)
    environment = {**os.environ, **plan.environment}
    defined = [f"-D{name}={value}" for name, value in sorted(plan.flags.items())]
    defined += [f"-DCMAKE_{name}={plan.environment[name]}" for name in ("AR", "RANLIB") if name in plan.environment]
    tell("configure", 0, 0, "")
    configure = [*plan.cmake, "-S", str(source), "-B", str(work / "build"), "-G", "Ninja", *defined]
    _follow([*configure, f"-DCMAKE_MAKE_PROGRAM={plan.ninja}"], environment, log, lambda line: None)

    def step(line: str) -> None:
        if found := _STEP.match(line):
            tell("compile", int(found[1]), int(found[2]), "files")

    ninja = [plan.ninja, "-C", str(work / "build"), "-j", str(n_cores()), *PROGRAMS]
    _follow(ninja, environment, log, step)
    aside = folder(home) / f".{plan.key}"
    shutil.rmtree(aside, ignore_errors=True)
    _collect(work / "build" / "bin", aside / "bin")
    shutil.copyfile(log, aside / "build.log")
    build = Build(
        folder=aside,
        key=plan.key,
        source=toolchain.SHA256,
        backend=plan.backend,
        flags=plan.flags,
        compiler=plan.compiler,
        cpu=cpu_name(),
        cpu_key=cpu_key(),
        built_at=datetime.now(UTC).isoformat(timespec="seconds"),
        seconds=round(time.monotonic() - began, 1),
        notes=plan.notes,
    )
    _write(build)
    shutil.rmtree(target, ignore_errors=True)
    aside.rename(target)
    shutil.rmtree(work, ignore_errors=True)
    return replace(build, folder=target)


def cure_amx(source: Path) -> None:
    """Keep GCC 12 from dropping the stores that fill the AMX tile configuration; harmless to every other compiler."""
    file = source / AMX_FILE
    text = file.read_text(encoding="utf-8")
    if AMX_CURE not in text:
        file.write_text(text.replace(AMX_CALL, AMX_CURE), encoding="utf-8")


def _collect(made: Path, target: Path) -> None:
    """The programs and the libraries that they load, links kept."""
    target.mkdir(parents=True)
    for path in sorted(made.iterdir()):
        if path.name.removesuffix(".exe") in PROGRAMS or re.search(r"\.(so|dylib|dll|metal)", path.name):
            shutil.copy2(path, target / path.name, follow_symlinks=False)


def _follow(command: list[str], environment: dict[str, str], log: Path, hear: Callable[[str], None]) -> None:
    """Run a tool, every line into the log and to `hear`. Ends it when we are stopped; raises for a failure."""
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, errors="replace",
    ) as child, log.open("a", encoding="utf-8") as sink:  # fmt: skip
        try:
            for line in _lines(child):
                sink.write(line)
                hear(line)
        finally:
            if child.poll() is None:
                child.terminate()
    if child.returncode:
        raise MofangError("engine.build_failed", why=_first_error(log), log=log)


def _lines(child: "subprocess.Popen[str]") -> Iterator[str]:
    assert child.stdout
    yield from child.stdout


def _first_error(log: Path) -> str:
    """The line that says what went wrong: the compiler's first error, else the last line."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    wrong = [line for line in lines if re.search(r"\berror\b|CMake Error|No space left", line, re.IGNORECASE)]
    return (wrong or lines[-1:] or ["-"])[0].strip()[:300]
