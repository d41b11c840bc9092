"""Pull, against a hub on loopback: whole or nothing, resumed, checked, explained."""

import asyncio
import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

import tiny_eye
from mofang.errors import Conflict, Denied, Invalid, MofangError, NoSpace, NotFound, TooLarge, Unreachable, Unreadable
from mofang.models import projectors
from mofang.models import pull as pull_module
from mofang.models.catalogue import CatalogueEntry
from mofang.models.pull import discard, pull, pull_default
from mofang.models.sources import base
from mofang.models.sources import download as download_module
from mofang.models.store import ModelStore
from mofang.platform import Memory
from mofang.settings import Settings
from stand_in import FILE, REPO, Hub, Told, sha256, tiny_gguf

Offer = Callable[..., CatalogueEntry]
MIB = 1 << 20
HF = {"kind": "huggingface", "repo": REPO, "files": [FILE]}
MS = {"kind": "modelscope", "repo": REPO, "files": [FILE]}


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A model of a little more than 4 MiB: five chunks of a download."""
    return tiny_gguf(tmp_path_factory.mktemp("m") / "m.gguf", weights_bytes=4 * MIB).read_bytes()


@pytest.fixture
def hub(hub: Hub, content: bytes) -> Hub:
    hub.files[FILE] = content
    return hub


@pytest.fixture
def store(home: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> ModelStore:
    monkeypatch.setattr(download_module, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(download_module, "LONGEST_PAUSE_S", 0.05)
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "MODELSCOPE_API_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    settings = Settings(home=home, hf_endpoint=hub.url, modelscope_endpoint=hub.url, hub_timeout_s=5.0)
    return ModelStore(settings)


def _left(store: ModelStore) -> list[str]:
    """What lies in the models folder besides lock files."""
    found = (path for path in store.folder.rglob("*") if path.suffix != ".lock" and not _holds_something(path))
    return sorted(path.relative_to(store.folder).as_posix() for path in found)


def _holds_something(path: Path) -> bool:
    return path.name == ".staging" or (path.is_dir() and any(path.iterdir()))


# ---- the straight way ----


@pytest.mark.parametrize("kind", ["huggingface", "modelscope"])
async def test_a_repository_that_is_a_folder(kind: str, store: ModelStore, hub: Hub, told: Told) -> None:
    config = json.dumps({"architectures": ["LlamaForCausalLM"], "model_type": "llama", "max_position_embeddings": 77})
    weights = (2).to_bytes(8, "little") + b"{}"
    brought = {"config.json": config.encode(), "model.safetensors": weights, "tokenizer.json": b"{}"}
    hub.files = {**brought, "pytorch_model.bin": b"pickle", "modeling.py": b"import os", "README.md": b"#"}
    ref = await pull(store, "folder", source=f"{kind}:{REPO}", progress=told)
    assert {path.name for path in ref.path.iterdir()} == {*brought, "manifest.json"}
    assert (ref.format, ref.kind, ref.runnable, ref.sha256) == ("hf", "base", True, sha256(weights))
    assert ref.path == store.folder / "folder" and store.facts(ref).n_ctx_train == 77
    assert [file["name"] for file in ref.manifest["files"]] == sorted(brought)


@pytest.mark.parametrize("kind", ["huggingface", "modelscope"])
async def test_a_model_and_what_it_sees_with(
    kind: str, store: ModelStore, hub: Hub, content: bytes, told: Told, tmp_path: Path
) -> None:
    eye = tiny_eye.write(tmp_path / "eye.gguf").read_bytes()
    hub.files = {FILE: content, "mmproj-f16.gguf": eye, "other.gguf": content}
    ref = await pull(store, "seer", source=f"{kind}:{REPO}/{FILE},mmproj-f16.gguf", progress=told)
    assert (ref.path.name, ref.kind, ref.size_bytes) == (FILE, "chat", len(content) + len(eye))
    assert ref.path.with_name("mmproj-f16.gguf").read_bytes() == eye
    assert _left(store) == sorted(["seer/manifest.json", f"seer/{FILE}", "seer/mmproj-f16.gguf"])
    assert projectors.beside_bytes(ref, ref.path.with_name("mmproj-f16.gguf")) == 0, "it is in the model's own size"


async def test_a_repository_of_pickles_is_refused_in_words(store: ModelStore, hub: Hub, told: Told) -> None:
    hub.files = {"config.json": b"{}", "pytorch_model.bin": b"pickle"}
    with pytest.raises(NotFound) as raised:
        await pull(store, "folder", source=f"huggingface:{REPO}", progress=told)
    assert raised.value.code == "no_safetensors" and ".bin" in raised.value.hint("zh")
    assert not hub.got("GET", "/cdn/")


async def test_hugging_face(store: ModelStore, hub: Hub, content: bytes, offer: Offer, told: Told) -> None:
    offer("小模型", [HF])
    ref = await pull(store, "小模型", progress=told)
    assert ref == store.get("小模型")
    assert ref.path == store.folder / "小模型" / FILE
    assert ref.path.read_bytes() == content
    assert (ref.kind, ref.format, ref.managed, ref.source) == ("chat", "gguf", True, "huggingface")
    assert (ref.sha256, ref.size_bytes) == (sha256(content), len(content))
    (origin,) = ref.manifest["from"]
    assert origin == {
        "url": f"{hub.url}/{REPO}/resolve/main/{FILE}",
        "sha256": sha256(content),
        "digest_stated_by": "hub",
    }
    assert ref.manifest["licence"] == "Apache-2.0"
    assert _left(store) == ["小模型/manifest.json", f"小模型/{FILE}"]
    assert len(hub.got("GET", "/cdn/")) == 1
    assert told.stages == ["probe", "download"]
    last = told[-1]
    assert last.done == last.total == len(content)
    assert last.unit == "bytes"


async def test_modelscope(store: ModelStore, hub: Hub, content: bytes, offer: Offer, told: Told) -> None:
    offer("m", [MS])
    ref = await pull(store, "m", progress=told)
    assert ref.path.read_bytes() == content
    assert ref.manifest["from"][0]["url"] == f"{hub.url}/models/{REPO}/resolve/master/{FILE}"
    assert ref.manifest["from"][0]["digest_stated_by"] == "hub"


async def test_a_mirror_that_states_the_digest_only_in_its_list(
    store: ModelStore, hub: Hub, content: bytes, offer: Offer, told: Told
) -> None:
    hub.list_only = True
    offer("m", [HF])
    ref = await pull(store, "m", progress=told)
    assert ref.manifest["from"][0]["sha256"] == sha256(content)


async def test_a_mirror_that_states_nothing_is_recorded_as_such(
    store: ModelStore, hub: Hub, content: bytes, offer: Offer, told: Told
) -> None:
    hub.states_nothing = True
    offer("m", [HF])
    ref = await pull(store, "m", progress=told)
    assert ref.manifest["from"][0] == {
        "url": f"{hub.url}/{REPO}/resolve/main/{FILE}",
        "sha256": None,
        "digest_stated_by": "nobody",
    }
    assert ref.sha256 == sha256(content), "computed here all the same"


async def test_a_split_model(store: ModelStore, hub: Hub, tmp_path: Path, offer: Offer, told: Told) -> None:
    names = [f"大-0000{n}-of-00002.gguf" for n in (1, 2)]
    hub.files = {name: tiny_gguf(tmp_path / name).read_bytes() for name in names}
    offer("大", [{"kind": "huggingface", "repo": REPO, "files": ["大-00001-of-00002.gguf", "大-00002-of-00002.gguf"]}])
    ref = await pull(store, "大", progress=told)
    assert ref.path.name == names[0]
    assert [file["name"] for file in ref.manifest["files"]] == names
    assert ref.size_bytes == sum(map(len, hub.files.values()))


async def test_an_installed_model_is_not_asked_for_again(store: ModelStore, hub: Hub, offer: Offer, told: Told) -> None:
    offer("m", [HF])
    first = await pull(store, "m", progress=told)
    hub.requests.clear()
    assert await pull(store, "m", progress=told) == first
    assert hub.requests == []


async def test_an_address_of_ones_own(store: ModelStore, hub: Hub, content: bytes, told: Told, tmp_path: Path) -> None:
    for name, source in {
        "a": f"huggingface:{REPO}/{FILE}",
        "b": f"modelscope:{REPO}/{FILE}",
        "c": f"{hub.url}/cdn/{FILE}",
        "d": f"{hub.url}/cdn/{FILE}#sha256={sha256(content)}",
    }.items():
        assert (await pull(store, name, source=source, progress=told)).path.read_bytes() == content
    assert store.get("d").manifest["from"][0]["digest_stated_by"] == "pinned"
    path = tmp_path / "本地.gguf"
    path.write_bytes(content)
    ref = await pull(store, "e", source=f"path:{path}", progress=told)
    assert (ref.source, ref.managed) == ("path", True)
    assert path.exists()


# ---- choosing a source ----


async def test_a_silent_hub_costs_its_timeout_once(
    home: Path, hub: Hub, content: bytes, offer: Offer, told: Told
) -> None:
    offer("a", [HF, MS])
    offer("b", [HF, MS])
    with Hub(silent=True) as silent:
        settings = Settings(home=home, hf_endpoint=silent.url, modelscope_endpoint=hub.url, hub_timeout_s=1.0)
        store = ModelStore(settings)
        started = time.monotonic()
        ref = await pull(store, "a", progress=told)
        first = time.monotonic() - started
        await pull(store, "b", progress=told)
        assert len(silent.requests) == 1, "a second pull does not wait for it again"
    assert ref.source == "modelscope"
    assert first >= 1.0
    assert ref.manifest["tried"] == [{"source": "huggingface", "code": "hub_silent"}]
    assert "Hugging Face" in told.notices(), "the change of source is said"


async def test_all_hubs_silent(home: Path, offer: Offer, told: Told) -> None:
    offer("m", [HF, MS])
    with Hub(silent=True) as silent:
        settings = Settings(
            home=home, hf_endpoint=silent.url, modelscope_endpoint=f"{silent.url}/ms", hub_timeout_s=1.5
        )
        started = time.monotonic()
        with pytest.raises(Unreachable) as caught:
            await pull(ModelStore(settings), "m", progress=told)
        assert time.monotonic() - started < 2.9, "they are asked at the same time"
    assert caught.value.code == "no_source_answers"
    for word in ("huggingface", "modelscope"):
        assert word in caught.value.message()
    assert "HF_ENDPOINT" in caught.value.hint()


async def test_nobody_listens(home: Path, offer: Offer, told: Told) -> None:
    offer("m", [HF])
    settings = Settings(home=home, hf_endpoint="http://127.0.0.1:9", hub_timeout_s=0.5)
    with pytest.raises(Unreachable) as caught:
        await pull(ModelStore(settings), "m", progress=told)
    assert caught.value.code == "hub_silent"
    assert "http://127.0.0.1:9" in caught.value.message()


async def test_a_missing_file_leads_to_the_next_source(
    store: ModelStore, hub: Hub, content: bytes, offer: Offer, told: Told
) -> None:
    offer("m", [{**HF, "repo": "no/such"}, MS])
    ref = await pull(store, "m", progress=told)
    assert ref.source == "modelscope"
    assert ref.manifest["tried"] == [{"source": "huggingface", "code": "file_not_found"}]
    assert "no/such" in told.notices()


@pytest.mark.parametrize(
    "spec", [{**HF, "files": ["没有.gguf"]}, {**MS, "files": ["没有.gguf"]}, {**MS, "repo": "no/such"}]
)
async def test_404(store: ModelStore, offer: Offer, told: Told, spec: dict[str, Any]) -> None:
    offer("m", [spec])
    with pytest.raises(NotFound) as caught:
        await pull(store, "m", progress=told)
    assert caught.value.code == "file_not_found"
    assert _left(store) == []


async def test_a_login_page_is_not_a_hub(store: ModelStore, hub: Hub, offer: Offer, told: Told) -> None:
    hub.portal = True
    offer("a", [MS])
    with pytest.raises(Unreachable) as caught:
        await pull(store, "a", progress=told)
    assert caught.value.code == "hub_nonsense"
    offer("b", [HF])
    with pytest.raises(Unreachable) as caught:
        await pull(store, "b", progress=told)
    assert caught.value.code == "hub_nonsense"


@pytest.mark.parametrize("status", [401, 403])
async def test_gated(store: ModelStore, hub: Hub, offer: Offer, told: Told, status: int) -> None:
    hub.gated = status
    offer("m", [HF])
    with pytest.raises(Denied) as caught:
        await pull(store, "m", progress=told)
    assert caught.value.code == "gated"
    assert str(status) in caught.value.message()
    assert "HF_TOKEN" in caught.value.hint()


async def test_the_token_goes_to_the_hub_and_no_further(
    store: ModelStore, hub: Hub, offer: Offer, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.gated = 401
    monkeypatch.setenv("HF_TOKEN", hub.token)
    offer("m", [HF])
    ref = await pull(store, "m", progress=told)
    assert all("authorization" not in headers for headers in hub.got("GET", "/cdn/"))
    assert hub.token not in json.dumps(ref.manifest)


async def test_source_by_name(store: ModelStore, offer: Offer, told: Told) -> None:
    offer("m", [HF, MS])
    assert (await pull(store, "m", source="modelscope", progress=told)).source == "modelscope"
    offer("n", [HF])
    with pytest.raises(Invalid) as caught:
        await pull(store, "n", source="pypi", progress=told)
    assert caught.value.code == "no_such_source"
    assert "huggingface" in caught.value.message()


@pytest.mark.parametrize(
    ("name", "source", "code"),
    [
        ("没有这个", None, "not_in_catalogue"),
        ("../x", None, "bad_name"),
        ("m", "huggingface:../../etc/x.gguf", "bad_source"),
        ("m", "huggingface:a/b/../../c.gguf", "bad_source"),
        ("m", "huggingface:a/b/c.bin", "bad_source"),
        ("m", "huggingface:a/b/c.gguf,../x.gguf", "bad_source"),
        ("m", "huggingface:a/b/c.gguf,d.bin", "bad_source"),
        ("m", "modelscope:a", "bad_source"),
        ("m", "file:///etc/passwd", "unknown_name"),
        ("m", "ftp://host/x.gguf", "unknown_name"),
        ("m", "https://host/x.zip", "bad_source"),
        ("m", "https://host/x.gguf#sha256=abc", "bad_source"),
        ("m", "path:relative.gguf", "bad_source"),
        ("m", "pypi:evil", "bad_source"),
    ],
)
async def test_bad_requests(store: ModelStore, told: Told, name: str, source: str | None, code: str) -> None:
    with pytest.raises(MofangError) as caught:
        await pull(store, name, source=source, progress=told)
    assert caught.value.code == code
    assert caught.value.message("zh") and caught.value.message("en")
    assert not store.folder.exists()


# ---- broken connections ----


async def test_cut_connections_are_taken_up_where_they_broke(
    store: ModelStore, hub: Hub, content: bytes, offer: Offer, told: Told
) -> None:
    hub.cuts = [2 * MIB + 5, MIB + 7, 0, 0]
    offer("m", [HF])
    ref = await pull(store, "m", progress=told)
    assert ref.path.read_bytes() == content
    first, second, *_, last = hub.got("GET", "/cdn/")
    assert "range" not in first
    assert 0 < int(second["range"].removeprefix("bytes=").rstrip("-")) <= 2 * MIB + 5
    assert int(last["range"].removeprefix("bytes=").rstrip("-")) >= 2 * MIB
    downloaded = [progress.done for progress in told if progress.stage == "download"]
    assert downloaded == sorted(downloaded)


async def test_a_server_without_ranges_begins_anew(
    store: ModelStore, hub: Hub, content: bytes, offer: Offer, told: Told
) -> None:
    hub.cuts, hub.ignores_range = [3 * MIB], True
    offer("m", [HF])
    assert (await pull(store, "m", progress=told)).path.read_bytes() == content


async def test_an_overloaded_server_is_asked_again(
    store: ModelStore, hub: Hub, content: bytes, offer: Offer, told: Told
) -> None:
    hub.failures = [503, 429, 500]
    offer("m", [HF])
    assert (await pull(store, "m", progress=told)).path.read_bytes() == content


async def test_a_line_that_never_holds_is_given_up_and_the_part_kept(
    store: ModelStore, hub: Hub, content: bytes, offer: Offer, told: Told
) -> None:
    hub.cuts = [3 * MIB, *[0] * 50]
    offer("m", [HF])
    with pytest.raises(Unreachable) as caught:
        await pull(store, "m", progress=told)
    assert caught.value.code == "download_broken"
    assert "MB" in caught.value.message()
    assert not (store.folder / "m").exists()
    hub.cuts, hub.requests = [], []
    assert (await pull(store, "m", progress=told)).path.read_bytes() == content
    (resumed,) = hub.got("GET", "/cdn/")
    assert int(resumed["range"].removeprefix("bytes=").rstrip("-")) >= 2 * MIB


async def test_a_file_without_a_digest_that_changed_meanwhile_begins_anew(
    store: ModelStore, hub: Hub, content: bytes, told: Told
) -> None:
    hub.cuts = [3 * MIB, *[0] * 50]
    source = f"{hub.url}/cdn/{FILE}"
    with pytest.raises(Unreachable):
        await pull(store, "m", source=source, progress=told)
    hub.cuts = []
    first_weight = len(content) - 4 * MIB
    changed = content[:first_weight] + b"\x01" * 8 + content[first_weight + 8 :]
    hub.files[FILE] = changed
    assert (await pull(store, "m", source=source, progress=told)).path.read_bytes() == changed


async def test_cancelled_then_resumed(store: ModelStore, hub: Hub, content: bytes, offer: Offer, told: Told) -> None:
    hub.pace_s = 0.02
    offer("m", [HF])
    task = asyncio.create_task(pull(store, "m", progress=told))
    while not any(progress.done >= 2 * MIB for progress in told):
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not (store.folder / "m").exists()
    assert store.list() == []
    hub.pace_s, hub.requests = 0.0, []
    assert (await pull(store, "m", progress=told)).path.read_bytes() == content
    (resumed,) = hub.got("GET", "/cdn/")
    assert int(resumed["range"].removeprefix("bytes=").rstrip("-")) >= 2 * MIB
    assert _left(store) == ["m/manifest.json", f"m/{FILE}"]


async def test_discarded(store: ModelStore, hub: Hub, told: Told) -> None:
    hub.pace_s = 0.02
    task = asyncio.create_task(pull(store, "m", source=f"{hub.url}/cdn/{FILE}", progress=told))
    while not any(progress.done >= MIB for progress in told):
        await asyncio.sleep(0.01)
    with pytest.raises(Conflict):
        await asyncio.to_thread(discard, store, "m")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert list((store.folder / ".staging" / "m").rglob("*.part"))
    discard(store, "m")
    discard(store, "m")
    assert not (store.folder / ".staging" / "m").exists()
    with pytest.raises(Invalid):
        discard(store, "../m")


CHILD = """
import asyncio, sys
from mofang.models.pull import pull
from mofang.models.store import ModelStore
from mofang.settings import Settings
store = ModelStore(Settings(home=sys.argv[1]))
asyncio.run(pull(store, "m", source=sys.argv[2], progress=lambda p: print(p.done, flush=True)))
"""


async def test_killed_then_resumed(store: ModelStore, hub: Hub, content: bytes, told: Told) -> None:
    hub.pace_s = 0.02
    source = f"{hub.url}/cdn/{FILE}"
    arguments = [sys.executable, "-c", CHILD, str(store.settings.home), source]
    child = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)
    assert child.stdout
    for line in child.stdout:
        if int(line) >= 2 * MIB:
            break
    with pytest.raises(Conflict) as caught:
        await pull(store, "m", source=source, progress=told)
    assert caught.value.code == "being_pulled"
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    assert store.list() == store.problems() == []
    hub.pace_s, hub.requests = 0.0, []
    assert (await pull(store, "m", source=source, progress=told)).path.read_bytes() == content
    (resumed,) = hub.got("GET", "/cdn/")
    assert int(resumed["range"].removeprefix("bytes=").rstrip("-")) >= 2 * MIB


async def test_killed_between_checking_and_naming(
    store: ModelStore, hub: Hub, content: bytes, offer: Offer, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer("m", [HF])
    with monkeypatch.context() as patch:
        patch.setattr(ModelStore, "publish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            await pull(store, "m", progress=told)
    assert store.list() == []
    hub.requests = []
    assert (await pull(store, "m", progress=told)).path.read_bytes() == content
    assert hub.got("GET", "/cdn/") == [], "nothing is fetched twice"
    assert _left(store) == ["m/manifest.json", f"m/{FILE}"]


# ---- wrong content ----


async def test_a_wrong_digest_deletes_the_file_and_names_both(
    store: ModelStore, hub: Hub, content: bytes, offer: Offer, told: Told
) -> None:
    hub.lies = True
    offer("m", [HF, MS])
    with pytest.raises(Unreadable) as caught:
        await pull(store, "m", progress=told)
    assert caught.value.code == "digest_mismatch"
    assert sha256(content) in caught.value.message()
    assert sha256(content + b"!") in caught.value.message()
    assert _left(store) == []
    assert store.list() == []


async def test_a_pinned_digest_wins_over_the_hubs(store: ModelStore, offer: Offer, told: Told) -> None:
    offer("m", [{**HF, "sha256": {FILE: "0" * 64}}])
    with pytest.raises(Unreadable) as caught:
        await pull(store, "m", progress=told)
    assert caught.value.code == "digest_mismatch"
    assert "0" * 64 in caught.value.message()


@pytest.mark.parametrize("wrong", [-1000, 1000])
async def test_a_wrong_size(store: ModelStore, hub: Hub, offer: Offer, told: Told, wrong: int) -> None:
    hub.wrong_size = wrong
    offer("m", [HF])
    with pytest.raises(MofangError) as caught:
        await pull(store, "m", progress=told)
    assert caught.value.code == "size_mismatch"
    assert store.list() == []
    assert not any(name.endswith(".gguf") or name.endswith(".part") for name in _left(store))


@pytest.mark.parametrize("bad", [b"", b"<html>", os.urandom(100_000), None])
async def test_what_is_no_sound_model_never_gets_its_name(
    store: ModelStore, hub: Hub, content: bytes, offer: Offer, told: Told, bad: bytes | None
) -> None:
    hub.files[FILE] = content[: -3 * MIB] if bad is None else bad
    offer("m", [HF])
    with pytest.raises(Unreadable) as caught:
        await pull(store, "m", progress=told)
    assert caught.value.code in ("gguf_truncated", "not_gguf", "file_empty")
    assert _left(store) == []


# ---- disk ----


async def test_free_disk_is_checked_before_anything_is_fetched(
    store: ModelStore, hub: Hub, content: bytes, offer: Offer, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "free_disk", lambda _: len(content))
    offer("m", [HF])
    with pytest.raises(NoSpace) as caught:
        await pull(store, "m", progress=told)
    assert caught.value.code == "no_space"
    assert hub.got("GET", "/cdn/") == []
    assert _left(store) == []


class _FullDisk:
    """A file on a disk with room for `room` bytes."""

    def __init__(self, file: Any, room: int) -> None:
        self.file, self.room = file, room

    def write(self, data: Any) -> int:
        if self.room <= 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        written: int = self.file.write(data[: self.room])
        self.room -= written
        return written

    def __enter__(self) -> "_FullDisk":
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


async def test_disk_full_in_the_middle_keeps_the_part(
    store: ModelStore, hub: Hub, content: bytes, offer: Offer, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer("m", [HF])
    real = Path.open

    def opened(path: Path, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        file = real(path, mode, *args, **kwargs)
        return _FullDisk(file, 2 * MIB + 100) if path.suffix == ".part" and "a" in mode else file

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", opened)
        with pytest.raises(NoSpace) as caught:
            await pull(store, "m", progress=told)
    assert caught.value.code == "disk_full"
    assert "2.10 MB" in caught.value.message(), "what is kept is said"
    assert store.list() == []
    hub.requests = []
    assert (await pull(store, "m", progress=told)).path.read_bytes() == content
    (resumed,) = hub.got("GET", "/cdn/")
    assert resumed["range"] == f"bytes={2 * MIB + 100}-"


# ---- one at a time ----


async def test_two_pulls_of_one_model(store: ModelStore, hub: Hub, offer: Offer, told: Told) -> None:
    hub.pace_s = 0.005
    offer("m", [HF])
    results = await asyncio.gather(*(pull(store, "m", progress=told) for _ in range(3)), return_exceptions=True)
    refused = [result for result in results if isinstance(result, Conflict)]
    assert len(refused) == 2
    assert all(error.code == "being_pulled" for error in refused)
    assert len(hub.got("GET", "/cdn/")) == 1


async def test_the_lock_holds_over_processes_and_dies_with_them(store: ModelStore, offer: Offer, told: Told) -> None:
    offer("m", [HF])
    (store.folder / ".staging").mkdir(parents=True)
    with FileLock(store.folder / ".staging" / "m.lock"), pytest.raises(Conflict):
        await pull(store, "m", progress=told)
    await pull(store, "m", progress=told)


# ---- defaults ----


async def test_the_first_default_whose_source_answers(home: Path, hub: Hub, offer: Offer, told: Told) -> None:
    offer("big", [HF], default=True)
    offer("small", [MS], default=True)
    with Hub(silent=True) as silent:
        settings = Settings(home=home, hf_endpoint=silent.url, modelscope_endpoint=hub.url, hub_timeout_s=1.0)
        ref = await pull_default(ModelStore(settings), "chat", progress=told)
    assert ref.name == "small"
    assert "big" in told.notices()


async def test_an_installed_default_is_kept(store: ModelStore, hub: Hub, offer: Offer, told: Told) -> None:
    offer("big", [HF], default=True)
    offer("small", [HF], default=True)
    await pull(store, "small", progress=told)
    assert (await pull_default(store, "chat", progress=told)).name == "small"


async def test_a_default_larger_than_free_memory_is_passed_over(
    store: ModelStore, hub: Hub, offer: Offer, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = {"kv_bytes_per_token": 1000, "n_vocab": 100, "n_embd": 64, "n_ff": 64, "n_ctx_train": 2048}
    offer("big", [HF], default=True, size_bytes=8 << 30, **figures)
    offer("small", [HF], default=True, size_bytes=1 << 20, **figures)
    monkeypatch.setattr(pull_module, "memory", lambda: Memory(4 << 30, 2 << 30))
    assert (await pull_default(store, "chat", progress=told)).name == "small"
    assert "big" in told.notices()
    monkeypatch.setattr(pull_module, "memory", lambda: Memory(4 << 30, 1 << 20))
    store.remove("small")
    with pytest.raises(TooLarge) as caught:
        await pull_default(store, "chat", progress=told)
    assert caught.value.code == "nothing_fits"


async def test_no_default(store: ModelStore, offer: Offer, told: Told) -> None:
    offer("m", [HF])
    with pytest.raises(NotFound) as caught:
        await pull_default(store, "reranker", progress=told)
    assert caught.value.code == "no_default"
