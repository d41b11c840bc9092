"""`mofang up` and `mofang serve` as a user types them, with models that need no weights."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest

from mofang import api, settings
from mofang.errors import Conflict, Invalid
from mofang.launch import home as homes
from mofang.launch import local


@pytest.fixture
def small_models(home: Path) -> Path:
    """A home with an echo for chat and hashes for embeddings: nothing has to be brought."""
    for name, kind in (("echo", "chat"), ("hash", "embedding")):
        folder = home / "models" / name
        folder.mkdir(parents=True)
        manifest = {"name": name, "kind": kind, "format": "gguf", "engine": name}
        (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    return home


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def _mofang(*arguments: str, **env: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "mofang", *arguments]
    child = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ, **env}
    )
    try:
        yield child
    finally:
        if child.poll() is None:
            child.kill()
        child.wait(timeout=10)
        assert child.stdout
        child.stdout.close()


def _until(home: Path, *, workbench: bool, timeout_s: float = 60) -> homes.Owner:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        owner = homes.find(home)
        if owner and (owner.workbench or not workbench):
            return owner
        time.sleep(0.05)
    raise AssertionError("the gateway did not come up")


def test_the_api_answers_through_a_passing_gateway(small_models: Path) -> None:
    with api.gateway() as client:
        assert {model["id"] for model in client.models()} == {"echo", "hash"}
        with client.chat_stream({"messages": [{"role": "user", "content": "你好🙂"}]}) as chunks:
            text = "".join(c["choices"][0]["delta"].get("content") or "" for c in chunks if c["choices"])
        assert text == "你好🙂"
    assert homes.find(small_models) is None


def test_a_passing_gateway_is_closed_to_others(small_models: Path) -> None:
    with local.passing_gateway(settings.load()) as running:
        assert httpx.get(f"{running.url}/v1/models", trust_env=False).status_code == 401


def test_a_second_gateway_on_one_home_is_refused(small_models: Path) -> None:
    with (
        local.passing_gateway(settings.load()),
        pytest.raises(Conflict) as caught,
        local.passing_gateway(settings.load()),
    ):
        pass
    assert caught.value.code == "home_in_use"


def test_the_command_line_uses_the_gateway_that_runs(small_models: Path) -> None:
    with local.passing_gateway(settings.load()) as running, api.gateway() as client:
        assert client.url == running.url


def test_a_taken_port_is_named(small_models: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with _mofang("serve", "--port", str(port)) as child:
            assert child.wait(timeout=30) == 1
            assert child.stdout
            said = child.stdout.read()
    assert str(port) in said and "MOFANG_PORT" in said
    assert "Traceback" not in said
    assert homes.read(small_models) is None


def test_an_open_address_needs_a_key(small_models: Path) -> None:
    with pytest.raises(Invalid) as caught, local.gateway(settings.load(host="0.0.0.0", port=0)):
        pass
    assert caught.value.code == "key_needed"
    assert "MOFANG_API_KEY=" in caught.value.hint()


@pytest.mark.parametrize(("host", "loopback"), [("127.0.0.1", True), ("::1", True), ("localhost", True),
                                                ("127.9.9.9", True), ("0.0.0.0", False), ("::", False),
                                                ("192.168.1.5", False), ("example.com", False)])  # fmt: skip
def test_what_counts_as_loopback(host: str, loopback: bool) -> None:
    assert local.is_loopback(host) is loopback


@pytest.mark.slow
def test_up_serves_page_and_api_and_ctrl_c_ends_all(small_models: Path) -> None:
    port = _free_port()
    with _mofang("up", MOFANG_PORT=str(port), MOFANG_UI_PORT=str(_free_port())) as child:
        owner = _until(small_models, workbench=True)
        assert owner.url == f"http://127.0.0.1:{port}" and owner.workbench
        assert httpx.get(f"{owner.workbench}/_stcore/health", trust_env=False).is_success
        front = httpx.get(owner.url, trust_env=False, follow_redirects=False)
        assert front.headers["location"].rstrip("/") == owner.workbench
        family = psutil.Process(child.pid).children(recursive=True)
        assert family
        sockets = [each for one in (psutil.Process(child.pid), *family) for each in one.net_connections("tcp")]
        listening = {each.laddr.ip for each in sockets if each.status == psutil.CONN_LISTEN}
        assert listening == {"127.0.0.1"}
        child.send_signal(signal.SIGINT)
        assert child.wait(timeout=20) == 0
        _, alive = psutil.wait_procs(family, timeout=3)
        assert alive == []
    assert homes.read(small_models) is None


@pytest.mark.slow
def test_killed_in_cold_blood_it_leaves_no_orphan(small_models: Path) -> None:
    with _mofang("up", MOFANG_PORT="0") as child:
        _until(small_models, workbench=True)
        family = psutil.Process(child.pid).children(recursive=True)
        child.kill()
        _, alive = psutil.wait_procs(family, timeout=3)
        assert alive == []


@pytest.mark.slow
def test_the_handbook_is_there_after_the_first_start(small_models: Path) -> None:
    with _mofang("serve", "--port", "0"):
        _until(small_models, workbench=False)
        deadline = time.monotonic() + 60
        with api.gateway() as client:
            while time.monotonic() < deadline:
                bases = {base["name"]: base for base in client.knowledge()}
                if "handbook" in bases and "faq.md" in {page["name"] for page in client.documents("handbook")}:
                    break
                time.sleep(0.2)
            assert bases["handbook"]["n_chunks"] > 20
            hits = client.search(["handbook"], "端口 8642 被占用了怎么办")
            assert any("MOFANG_PORT" in hit["text"] for hit in hits)
