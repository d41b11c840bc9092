"""How a gateway ends and whom it lets in, seen on a real `mofang serve`."""

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
from typing import Any

import httpx
import pytest

from fakes import install_model
from mofang import api, settings
from mofang.errors import Invalid
from mofang.launch import home as homes
from mofang.launch import local


@contextmanager
def serve(home: Path, **env: str) -> Iterator[tuple["subprocess.Popen[bytes]", httpx.Client]]:
    with (home / "said.txt").open("wb") as said:
        child = subprocess.Popen(
            [sys.executable, "-m", "mofang", "serve", "--port", "0"],
            stdout=said,
            stderr=said,
            env={**os.environ, **env},
        )
    try:
        deadline = time.monotonic() + 60
        while (owner := homes.find(home)) is None:
            assert child.poll() is None and time.monotonic() < deadline, (home / "said.txt").read_text()
            time.sleep(0.05)
        with httpx.Client(base_url=owner.url, trust_env=False, timeout=20) as http:
            yield child, http
    finally:
        child.kill()
        child.wait()


def answer(http: httpx.Client, text: str) -> Any:
    body = {"model": "echo", "messages": [{"role": "user", "content": text}], "stream": True}
    return http.stream("POST", "/v1/chat/completions", json=body)


@pytest.fixture
def slow_echo(home: Path) -> Path:
    install_model(home, "echo", echo={"delay_s": 0.02})
    install_model(home, "hash", kind="embedding", engine="hash")
    return home


@pytest.mark.slow
def test_running_answers_finish_and_new_ones_are_refused(slow_echo: Path) -> None:
    with serve(slow_echo, MOFANG_SHUTDOWN_GRACE_S="20") as (child, http):
        with answer(http, "字" * 100) as running:
            lines = running.iter_lines()
            next(lines)
            child.send_signal(signal.SIGTERM)
            refused = _until_refused(http)
            assert refused.headers["retry-after"] == "20" and refused.json()["error"]["code"] == "leaving"
            assert http.get("/readyz").status_code == 503
            assert "data: [DONE]" in list(lines)
        began = time.monotonic()
        assert child.wait(timeout=20) == 0
        assert time.monotonic() - began < 10, "no grace is waited for when nothing runs"
    logged = [json.loads(line) for line in (slow_echo / "logs" / "requests.jsonl").read_text().splitlines()]
    chat = next(line for line in logged if line["route"] == "/v1/chat/completions" and line["status"] == 200)
    assert chat["completion_tokens"] == 100 and chat["client_gone"] is False
    assert "字" not in (slow_echo / "logs" / "requests.jsonl").read_text()


def _until_refused(http: httpx.Client) -> httpx.Response:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        refused = http.get("/v1/models")
        if refused.status_code == 503:
            return refused
    raise AssertionError("never refused")


@pytest.mark.slow
def test_when_the_grace_is_over_answers_end_with_an_error_and_a_second_signal_ends_at_once(slow_echo: Path) -> None:
    with serve(slow_echo, MOFANG_SHUTDOWN_GRACE_S="0.2") as (child, http):
        with answer(http, "字" * 2000) as running:
            lines = running.iter_lines()
            next(lines)
            child.send_signal(signal.SIGINT)
            last = [line for line in lines if line][-1]
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == "interrupted"
        assert child.wait(timeout=20) == 0
    with serve(slow_echo, MOFANG_SHUTDOWN_GRACE_S="600") as (child, http):
        with answer(http, "字" * 2000) as running:
            lines = running.iter_lines()
            next(lines)
            child.send_signal(signal.SIGTERM)
            _until_refused(http)
            child.send_signal(signal.SIGTERM)
            assert child.wait(timeout=10) == 130
    assert homes.read(slow_echo) is None


def test_a_stored_key_opens_an_address_that_others_reach(slow_echo: Path) -> None:
    open_to_all = settings.load(host="0.0.0.0", port=0, ui_port=0)
    with api.gateway() as client:
        key = client.create_key("同事")
    with local.gateway(open_to_all) as running:
        assert httpx.get(f"{running.url}/v1/models", trust_env=False).status_code == 401, "also from this machine"
        bearer = {"Authorization": f"Bearer {key['key']}"}
        assert httpx.get(f"{running.url}/v1/models", headers=bearer, trust_env=False).status_code == 200
        with api.gateway() as owner:  # finds its key in gateway.json, which only this user can read
            owner.revoke_key(key["id"])
    with pytest.raises(Invalid) as caught:
        local.check_exposure(open_to_all)
    assert caught.value.code == "key_needed"


def test_any_web_page_needs_a_key(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOFANG_CORS_ORIGINS", "https://a.example, *")
    with pytest.raises(Invalid) as caught:
        local.check_exposure(settings.load())
    assert caught.value.code == "cors_needs_key"
    monkeypatch.setenv("MOFANG_API_KEY", "k")
    local.check_exposure(settings.load())
    monkeypatch.setenv("MOFANG_CORS_ORIGINS", "https://a.example/path")
    with pytest.raises(Invalid) as wrong:
        settings.load()
    assert wrong.value.code == "bad_setting" and "cors_origins" in wrong.value.message()


def test_contents_in_the_log_are_warned_of(slow_echo: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = str(other.getsockname()[1])
        env = {**os.environ, "MOFANG_LOG_CONTENTS": "1"}
        command = [sys.executable, "-m", "mofang", "serve", "--port", taken]
        said = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60).stderr
    assert "log_contents" in said and "requests.jsonl" in said
