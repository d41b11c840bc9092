"""The workbench as people wait for it: first page, a click while an answer streams, many sessions at once.

    python bench/workbench.py [--sessions 20] [--rounds 5] [--speed 30] [--chromium /usr/bin/chromium] [--json FILE]

A gateway and a workbench of their own, in a home of their own; answers come from the echo engine at --speed characters
(tokens) a second. Chromium runs on the same cores and is part of what is measured: on a machine of two, twenty open pages
take most of it. People bring a machine of their own for their page, so while twenty are open Chromium gets the last
place in the line, and the processor time that each side takes is printed. Four parts:

first page   from the address to a question that can be typed, in a fresh browser context (median, worst)
click        from a click on the settings of the conversation to their being open, while an answer streams
sessions     pages that stream at once: characters a second that each shows, the longest time in which one stood still,
             and cores that the workbench, the gateway and the browsers keep busy meanwhile
gateway      tokens a second of eight API clients with no page open, and with all of them open (idle, then streaming)
"""

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
from playwright.async_api import Browser, Page, async_playwright

from mofang.engine.llama.native import free_port
from mofang.platform import end_child, start_child

TEXT = "模型把文字切成词元，再一个接一个地往下写。" * 40
INPUT = "[data-testid=stChatInput] textarea"
ANSWER = "[class*=st-key-answer_] [data-testid=stMarkdown]"
CLIENTS, CLIENT_CHARACTERS = 8, 2000
WATCHED_S = 10.0
"""For how long pages are looked at while all of them stream."""
SIDES = {"workbench": "mofang.ui.run", "gateway": "mofang serve", "browsers": "chromium"}
"""Words of their command lines."""
WATCH = """
() => {
  const seen = window.mofangSeen = { last: 0, at: performance.now(), longest: 0, first: 0, n: 0 };
  const look = () => {
    const parts = [...document.querySelectorAll('%s')];
    const n = parts.length ? parts[parts.length - 1].innerText.length : 0;
    const now = performance.now();
    if (n > seen.last) {
      if (seen.last) seen.longest = Math.max(seen.longest, now - seen.at);
      else { seen.first = now; seen.n = n; }
      seen.last = n; seen.at = now;
    }
  };
  new MutationObserver(look).observe(document.body, { subtree: true, childList: true, characterData: true });
}
"""


@contextmanager
def running(home: Path, speed: float) -> Iterator[tuple[str, str]]:
    """(the gateway's URL, the workbench's)."""
    for name, delay in (("echo", 1 / speed), ("fast", 0.0)):
        folder = home / "models" / name
        folder.mkdir(parents=True)
        shape = {"name": name, "kind": "chat", "format": "gguf", "engine": "echo"}
        (folder / "manifest.json").write_text(json.dumps({**shape, "echo": {"delay_s": delay, "n_slots": 64}}))
    port, page_port = free_port(), free_port()
    gateway, workbench = (f"http://127.0.0.1:{each}" for each in (port, page_port))
    env = {
        **os.environ, "MOFANG_HOME": str(home), "MOFANG_PORT": str(port), "MOFANG_UI_PORT": str(page_port),
        "MOFANG_CHAT_MODEL": "echo", "MOFANG_MODEL_PATH": "", "WORKBENCH_GATEWAY": gateway, "WORKBENCH_PORT": str(page_port),
    }  # fmt: skip
    children = []
    try:
        for command, url in (
            (["-m", "mofang", "serve"], f"{gateway}/healthz"),
            (["-m", "mofang.ui.run"], f"{workbench}/_stcore/health"),
        ):
            children.append(start_child([sys.executable, *command], log=home / f"{len(children)}.log", env=env))
            wait_for(url)
        yield gateway, workbench
    finally:
        for child in children:
            end_child(child)


def wait_for(url: str) -> None:
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        try:
            if httpx.get(url, trust_env=False).is_success:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    sys.exit(f"{url} does not answer")


async def opened(browser: Browser, url: str) -> Page:
    context = await browser.new_context(viewport={"width": 1280, "height": 844})
    page = await context.new_page()
    page.set_default_timeout(60_000)
    await page.goto(url)
    await page.locator(f"{INPUT}:enabled").wait_for()
    return page


async def ask(page: Page) -> None:
    await page.fill(INPUT, TEXT)
    await page.press(INPUT, "Enter")
    await page.locator(".mf-cursor").wait_for()


def busy(seconds: dict[str, float]) -> dict[str, float]:
    """Processor seconds of each side until now, less those of `seconds`."""
    now = dict.fromkeys(SIDES, 0.0)
    for process in psutil.process_iter(["cmdline", "cpu_times"]):
        command = " ".join(process.info["cmdline"] or ())
        for side, words in SIDES.items():
            if words in command and process.info["cpu_times"]:
                now[side] += process.info["cpu_times"].user + process.info["cpu_times"].system
    return {side: value - seconds.get(side, 0.0) for side, value in now.items()}


def last_in_line(chromium: str, place: Path) -> Path:
    """A Chromium that runs where nobody else wants to. It sets its own priority back, so a class that it does not know."""
    script = place / "chromium-idle"
    script.write_text(f'#!/bin/sh\nexec chrt --idle 0 {chromium} "$@"\n')
    script.chmod(0o755)
    return script


async def clients(gateway: str) -> float:
    """Tokens a second of CLIENTS streams at once, from an engine that does not wait."""

    async def one(http: httpx.AsyncClient) -> int:
        body = {"model": "fast", "stream": True, "messages": [{"role": "user", "content": "字" * CLIENT_CHARACTERS}]}
        n = 0
        async with http.stream("POST", "/v1/chat/completions", json=body) as answer:
            async for line in answer.aiter_lines():
                n += line.startswith("data: {")
        return n

    async with httpx.AsyncClient(base_url=gateway, trust_env=False, timeout=300) as http:
        await one(http)
        begun = time.monotonic()
        found = await asyncio.gather(*(one(http) for _ in range(CLIENTS)))
        return sum(found) / (time.monotonic() - begun)


async def measure(given: argparse.Namespace, place: Path, gateway: str, workbench: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=given.chromium, args=["--no-sandbox"])
        await (await opened(browser, workbench)).context.close()  # what the first visitor ever loads
        first = []
        for _ in range(given.rounds):
            begun = time.monotonic()
            page = await opened(browser, workbench)
            first.append(time.monotonic() - begun)
            await page.context.close()
        found["first_page_s"] = {"median": statistics.median(first), "worst": max(first)}
        print(f"first page   {statistics.median(first):.2f} s, worst {max(first):.2f} s", flush=True)

        page = await opened(browser, workbench)
        await ask(page)
        clicks = []
        for _ in range(given.rounds):
            begun = time.monotonic()
            await page.locator("[class*=st-key-settings_] button").first.click()
            await page.locator("[data-testid=stPopoverBody]").wait_for()
            clicks.append(time.monotonic() - begun)
            await page.keyboard.press("Escape")
            await page.wait_for_timeout(400)
        assert await page.locator(".mf-cursor").count(), "the answer ended before the clicks"
        found["click_s"] = {"median": statistics.median(clicks), "worst": max(clicks)}
        print(f"click        {1000 * statistics.median(clicks):.0f} ms, worst {1000 * max(clicks):.0f} ms", flush=True)
        await page.context.close()

        alone = statistics.median([await clients(gateway) for _ in range(3)])
        await browser.close()
        idle_chromium = last_in_line(given.chromium, place)
        browser = await playwright.chromium.launch(executable_path=idle_chromium, args=["--no-sandbox"])
        pages = [await opened(browser, workbench) for _ in range(given.sessions)]
        idle = statistics.median([await clients(gateway) for _ in range(3)])
        for page in pages:
            await page.evaluate(WATCH % ANSWER.replace("'", "\\'"))
        for page in pages:
            await ask(page)
        before = busy({})
        await pages[0].wait_for_timeout(1000 * WATCHED_S)
        cores = {side: seconds / WATCHED_S for side, seconds in busy(before).items()}
        seen = [await page.evaluate("() => window.mofangSeen") for page in pages]
        streaming = await clients(gateway)
        rates = [1000 * (one["last"] - one["n"]) / max(1.0, one["at"] - one["first"]) for one in seen]
        stalls = [one["longest"] / 1000 for one in seen]
        found["sessions"] = {
            "n": len(pages),
            "characters_per_s": statistics.median(rates),
            "slowest": min(rates),
            "longest_stall_s": max(stalls),
            "median_stall_s": statistics.median(stalls),
            "cores": cores,
        }
        print(
            f"sessions     {len(pages)} at once: {statistics.median(rates):.1f} characters/s (slowest {min(rates):.1f}, "
            f"asked {given.speed:g}); longest stall {max(stalls):.1f} s, median of pages {statistics.median(stalls):.1f} s; "
            f"cores busy: {', '.join(f'{side} {share:.2f}' for side, share in cores.items())}",
            flush=True,
        )
        found["gateway_tokens_per_s"] = {"alone": alone, "pages_open": idle, "pages_streaming": streaming}
        print(
            f"gateway      {alone:.0f} tokens/s alone; with {len(pages)} pages open {idle:.0f} ({idle / alone:.2f}×); "
            f"with them streaming {streaming:.0f} ({streaming / alone:.2f}×)",
            flush=True,
        )
        await browser.close()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sessions", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--speed", type=float, default=30.0, help="tokens a second of an answer")
    parser.add_argument("--chromium", default="/usr/bin/chromium")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as home, running(Path(home), given.speed) as (gateway, workbench):
        found = asyncio.run(measure(given, Path(home), gateway, workbench))
    if given.json:
        given.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
