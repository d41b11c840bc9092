"""A scripted gateway, the workbench as its own process, and a real Chromium that reports what it must not do."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fake_gateway
import httpx
import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from mofang.platform import end_child, start_child

CHROMIUM = "/usr/bin/chromium"
expect.set_options(timeout=20_000)  # milliseconds; as for every other wait here, on cores that other tests share


@pytest.fixture
def state() -> fake_gateway.State:
    return fake_gateway.furnished()


@pytest.fixture
def gateway(state: fake_gateway.State, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The scripted gateway's URL, told to this process as the workbench's own."""
    with fake_gateway.serving(state) as url:
        monkeypatch.setenv("WORKBENCH_GATEWAY", url)
        monkeypatch.delenv("WORKBENCH_KEY", raising=False)
        monkeypatch.delenv("WORKBENCH_LANG", raising=False)
        yield url


def free_port() -> int:
    with fake_gateway.socket.create_server(("127.0.0.1", 0)) as bound:
        return int(bound.getsockname()[1])


class Bench:
    """A workbench process in front of a scripted gateway; `state` is the gateway's, to set and to look at."""

    def __init__(self, folder: Path, **env: str) -> None:
        self.state = fake_gateway.furnished()
        self.gateway_port = free_port()
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = folder / "workbench.log"
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("MOFANG_", "WORKBENCH_"))}
        self._env = {
            **clean,
            "MOFANG_HOME": str(folder),
            "WORKBENCH_GATEWAY": f"http://127.0.0.1:{self.gateway_port}",
            "WORKBENCH_PORT": str(self.port),
            **env,
        }

    def __enter__(self) -> "Bench":
        self._child = start_child([sys.executable, "-m", "mofang.ui.run"], log=self.log, env=self._env)
        deadline = time.monotonic() + 60
        while True:
            assert self._child.poll() is None and time.monotonic() < deadline, self.log.read_text()
            try:
                if httpx.get(f"{self.url}/_stcore/health", trust_env=False).is_success:
                    return self
            except httpx.TransportError:
                time.sleep(0.1)

    def __exit__(self, *_: object) -> None:
        end_child(self._child)

    @property
    def pid(self) -> int:
        return self._child.pid

    def gateway(self) -> Any:
        return fake_gateway.serving(self.state, self.gateway_port)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with Bench(tmp_path_factory.mktemp("bench")) as bench, bench.gateway():
        yield bench


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Closed with each file: while Playwright runs its loop, no test of another room could run one of its own."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


Open = Callable[..., Page]


@pytest.fixture
def visit(browser: Browser) -> Iterator[Open]:
    """Opens pages; afterwards no console said an error and no request left this machine."""
    faults: list[str] = []
    contexts = []

    def open_page(url: str, *, width: int = 1280, scheme: str = "light", **options: Any) -> Page:
        context = browser.new_context(
            viewport={"width": width, "height": 844},
            color_scheme="dark" if scheme == "dark" else "light",
            permissions=["clipboard-read", "clipboard-write"],
            **options,
        )
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(20_000)
        page.on("console", lambda said: faults.append(said.text) if said.type == "error" else None)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("request", lambda request: faults.append(request.url) if is_foreign(request.url) else None)
        page.goto(url)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not faults


def is_foreign(url: str) -> bool:
    return not url.startswith(("http://127.0.0.1:", "ws://127.0.0.1:", "data:", "blob:"))
