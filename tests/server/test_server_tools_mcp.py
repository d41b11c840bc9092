"""MCP servers as tools: a real one as a child process (mcp_child.py), one that crashes, one that is deaf, one by HTTP."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import mcp_child
import psutil
import pytest
import uvicorn
from served import Gateway, serving, wait_until

from fakes import FakeLibrary, FakePool, ScriptedEngine
from mofang.errors import Invalid, MissingExtra, MofangError, Unreachable
from mofang.server.backend import LocalBackend
from mofang.server.tools import mcp
from mofang.server.tools.mcp import Group, Servers, check
from mofang.settings import Settings
from tool_caller import ToolCaller

CHILD = str(Path(mcp_child.__file__))
SECRET = "geheim-4711"


def child(*arguments: str, **fields: Any) -> dict[str, Any]:
    return {"command": sys.executable, "args": [CHILD, *arguments], **fields}


def write(home: Path, **servers: Any) -> Path:
    file = home / "mcp.json"
    file.write_text(json.dumps({"mcpServers": servers}, ensure_ascii=False), encoding="utf-8")
    return file


@pytest.fixture
async def servers(home: Path) -> AsyncIterator[Servers]:
    found = Servers(home / "mcp.json", home / "logs")
    yield found
    await found.close()


def told(fault: MofangError | None) -> str:
    assert fault is not None
    return f"{fault.message()} {fault.hint()}"


async def pid_of(servers: Servers) -> int:
    return int((await servers.call("甲__pid", {})).text)


# ---- what works ----


async def test_tools_are_listed_and_called(servers: Servers, home: Path) -> None:
    assert await servers.listed() == [], "without a file there are none"
    write(home, 甲=child(env={"CHILD_TOKEN": SECRET}))
    [group] = await servers.listed()
    tools = {tool.name: tool for tool in group.tools}
    assert group.fault is None and group.server == "甲"
    assert (tools["甲__add"].title, tools["甲__add"].description, tools["甲__add"].server) == (
        "相加",
        "两个数的和",
        "甲",
    )
    assert tools["甲__add"].parameters["required"] == ["a", "b"] and tools["甲__pid"].title == "pid"
    assert (await servers.call("甲__add", {"a": 2, "b": 40})).text == "42"
    assert (await servers.call("甲__environment", {"name": "CHILD_TOKEN"})).text == SECRET
    assert await pid_of(servers) == await pid_of(servers), "one process, kept"


async def test_a_child_gets_nothing_of_our_environment_that_it_was_not_given(
    servers: Servers, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOFANG_API_KEY", SECRET)
    write(home, 甲=child())
    assert (await servers.call("甲__environment", {"name": "MOFANG_API_KEY"})).text == "-"


async def test_failures_of_tools_are_results(servers: Servers, home: Path) -> None:
    write(home, 甲=child())
    failed = await servers.call("甲__fail", {})
    assert failed.failed and "这样不行" in failed.text
    with pytest.raises(Invalid) as wrong:
        await servers.call("甲__add", {"a": 1, "b": -1})
    assert wrong.value.code == "bad_arguments" and "b" in told(wrong.value)
    with pytest.raises(Invalid) as unknown:
        await servers.call("甲__nothing", {})
    assert unknown.value.code == "unknown_tool"
    assert await servers.tool("乙__add") is None


async def test_the_file_is_followed(servers: Servers, home: Path) -> None:
    write(home, 甲=child())
    first = await pid_of(servers)
    write(home, 甲=child(), 乙=child(env={"X": "1"}))
    assert [group.server for group in await servers.listed()] == ["甲", "乙"]
    assert await pid_of(servers) == first, "what did not change goes on"
    write(home, 甲=child(env={"Y": "a longer value"}), 丙=child(disabled=True))
    assert [group.server for group in await servers.listed()] == ["甲"]
    assert await pid_of(servers) != first and not psutil.pid_exists(first)
    (home / "mcp.json").unlink()
    assert await servers.listed() == []


# ---- what does not ----


async def test_one_that_does_not_work_leaves_the_others_alone(servers: Servers, home: Path) -> None:
    write(
        home,
        甲=child(),
        坏=child("crash", env={"TOKEN": SECRET}),
        无={"command": "no-such-program-here"},
        旧={"type": "sse", "url": "http://127.0.0.1:1/sse"},
        空={},
        错={"command": "x", "envv": {"TOKEN": SECRET}},
        密={"command": "x", "env": {"TOKEN": 4711}},
        **{"a__b": child(), "a/b": child()},
    )
    groups = {group.server: group for group in await servers.listed()}
    assert groups["甲"].fault is None and groups["甲"].tools
    faults = {name: group.fault for name, group in groups.items() if group.fault}
    codes = {name: fault.code for name, fault in faults.items()}
    assert codes == {
        "坏": "server_failed", "无": "no_command", "旧": "bad_server", "空": "bad_server", "错": "bad_server", "密": "bad_server",
        "a__b": "bad_server_name", "a/b": "bad_server_name",
    }  # fmt: skip
    assert (
        "no-such-program-here" in told(faults["无"])
        and "envv" in told(faults["错"])
        and "headers" in told(faults["错"])
    )
    assert "mcp-坏.log" in told(faults["坏"]) and "没有配置文件" in (home / "logs" / "mcp-坏.log").read_text()
    assert all(SECRET not in told(fault) and "4711" not in told(fault) for fault in faults.values())
    with pytest.raises(Invalid) as caught:
        await servers.tool("错__add")
    assert caught.value.code == "bad_server", "who names its tool hears what is wrong"


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"mcpServers": []}', "\xff", "[" * 100_000])
async def test_a_file_that_cannot_be_read(servers: Servers, home: Path, text: str) -> None:
    (home / "mcp.json").write_text(text, encoding="latin-1")
    [group] = await servers.listed()
    assert group.server == "" and group.fault is not None and group.fault.code == "bad_file"
    assert str(home / "mcp.json") in told(group.fault) and "mcpServers" in told(group.fault)
    with pytest.raises(Invalid):
        await servers.tool("甲__add")


async def test_a_child_that_died_is_started_again(servers: Servers, home: Path) -> None:
    write(home, 甲=child())
    first = await pid_of(servers)
    os.kill(first, signal.SIGKILL)
    second = await pid_of(servers)
    assert second != first
    assert (await servers.call("甲__add", {"a": 1, "b": 1})).text == "2"


async def test_a_call_that_ends_its_server_is_not_made_again(servers: Servers, home: Path) -> None:
    write(home, 甲=child())
    first = await pid_of(servers)
    with pytest.raises(Unreachable) as caught:
        await servers.call("甲__die", {})
    assert caught.value.code == "server_failed"
    assert await pid_of(servers) != first


async def test_a_call_has_a_time_limit(servers: Servers, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(home, 甲=child())
    first = await pid_of(servers)
    monkeypatch.setattr(mcp, "CALL_S", 0.5)
    with pytest.raises(Unreachable) as caught:
        await servers.call("甲__hang", {})
    assert caught.value.code == "call_timed_out"
    assert await pid_of(servers) == first, "the server goes on"


@pytest.mark.slow
async def test_a_deaf_server_is_given_up_and_tried_later(
    servers: Servers, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mcp, "START_S", 1.0)
    write(home, 聋=child("deaf"))
    [group] = await servers.listed()
    assert group.fault is not None and group.fault.code == "server_failed" and "1 秒" in told(group.fault)
    began = time.monotonic()
    assert (await servers.listed())[0].fault is group.fault and time.monotonic() - began < 0.5, "not tried at once"
    [again] = await servers.listed(again=True)
    assert again.fault is not None and again.fault is not group.fault
    assert not children(), "nothing is left of it"


@pytest.mark.slow
async def test_a_server_that_falls_silent_is_started_again(
    servers: Servers, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(home, 甲=child())
    first = await pid_of(servers)
    os.kill(first, signal.SIGSTOP)
    monkeypatch.setattr(mcp, "LIST_S", 0.5)
    assert await pid_of(servers) != first and not psutil.pid_exists(first)


def test_arguments_are_judged_by_the_schema_and_nothing_is_fetched() -> None:
    check({"type": "object"}, {"x": 1})
    check({"type": "nonsense"}, {"x": 1})
    check({"$ref": "http://127.0.0.1:1/schema.json"}, {"x": 1})
    check({"properties": {"x": {"$ref": "file:///etc/passwd"}}}, {"x": 1})
    with pytest.raises(Invalid) as caught:
        check({"properties": {"x": {"type": "array", "items": {"type": "string"}}}}, {"x": ["a", 5]})
    assert "x.1" in told(caught.value)


async def test_without_the_extra_the_line_to_type_is_said(
    servers: Servers, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mcp, "find_spec", lambda name: None)
    write(home, 甲=child())
    [group] = await servers.listed()
    assert isinstance(group.fault, MissingExtra) and "mofang[mcp]" in told(group.fault)


# ---- the end ----


def children() -> list[psutil.Process]:
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if CHILD in process.cmdline() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


async def test_children_end_with_us(home: Path) -> None:
    servers = Servers(home / "mcp.json", home / "logs")
    write(home, 甲=child(), 乙=child())
    assert await pid_of(servers) and len(await servers.listed()) == 2
    assert len(children()) == 2
    await servers.close()
    assert children() == []
    await servers.close()


KILLED = """
import asyncio, os, sys
from pathlib import Path
from mofang.server.tools import mcp
async def main():
    home = Path(sys.argv[1])
    servers = mcp.Servers(home / "mcp.json", home / "logs")
    asyncio.get_running_loop().call_later(60, os._exit, 1)
    await servers.listed()
asyncio.run(main())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a program that hangs is not ours to end")
def test_a_child_that_hangs_ends_with_a_gateway_that_was_killed(home: Path) -> None:
    write(home, 聋=child("deaf"))
    log = home / "logs" / "mcp-聋.log"
    gateway = subprocess.Popen([sys.executable, "-c", KILLED, str(home)])
    try:
        wait_until(lambda: log.exists() and log.read_text(), timeout_s=30)
        [deaf] = [one for one in psutil.Process(gateway.pid).children(recursive=True) if CHILD in one.cmdline()]
        gateway.kill()
        wait_until(lambda: not deaf.is_running() or deaf.status() == psutil.STATUS_ZOMBIE)
    finally:
        gateway.kill()
        gateway.wait()


# ---- by HTTP ----


@contextmanager
def listening(key: str) -> Iterator[str]:
    """The same server behind HTTP; it wants a header."""
    inner = mcp_child.server().streamable_http_app()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and (b"x-key", key.encode()) not in scope["headers"]:
            await send({"type": "http.response.start", "status": 401, "headers": []})
            await send({"type": "http.response.body", "body": b""})
        else:
            await inner(scope, receive, send)

    running = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", ws="none", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=running.run, daemon=True)
    thread.start()
    wait_until(lambda: running.started)
    try:
        yield f"http://127.0.0.1:{running.servers[0].sockets[0].getsockname()[1]}/mcp"
    finally:
        running.should_exit = True
        thread.join(10)


async def test_a_server_by_its_address(servers: Servers, home: Path) -> None:
    with listening(SECRET) as url:
        write(home, 网={"url": url, "headers": {"X-Key": SECRET}}, 错={"url": f"{url}?key={SECRET}"})
        groups = {group.server: group for group in await servers.listed()}
        assert "网__add" in [tool.name for tool in groups["网"].tools]
        assert (await servers.call("网__add", {"a": 2, "b": 40})).text == "42"
        assert isinstance(groups["错"].fault, Unreachable) and SECRET not in told(groups["错"].fault)
        await servers.close()
    [gone, _] = await servers.listed(again=True)
    assert isinstance(gone, Group) and isinstance(gone.fault, Unreachable)


# ---- through the gateway ----


@pytest.fixture
def engine() -> ScriptedEngine:
    return ToolCaller("echo")


def test_a_conversation_calls_a_tool_of_a_server(gateway: Gateway, home: Path) -> None:
    write(home, 甲=child(), 坏=child("crash"))
    with gateway.client() as client:
        listing = client.tools()
        assert "甲__add" in [tool["name"] for tool in listing["data"]]
        assert {server["name"]: bool(server["fault"]) for server in listing["servers"]} == {"甲": False, "坏": True}
        home_ = client.create_conversation(tools=["甲__long"])["id"]
        shape = client.generate({"conversation_id": home_, "messages": [{"role": "user", "content": "甲__long"}]})
        list(client.follow_generation(shape["id"]))
        call = client.conversation(home_)["messages"][-1]["tool_calls"][0]["id"]
        result = client.decide_call(home_, shape["message_id"], call, "run")
        assert (
            result["outcome"] == "done" and result["content"].startswith("字" * 8_000) and "20000" in result["content"]
        )


def test_servers_end_with_the_gateway(settings: Settings, pool: FakePool, library: FakeLibrary, home: Path) -> None:
    write(home, 甲=child())
    with serving(LocalBackend(settings, engines=pool, library=library)) as running, running.client() as client:
        assert client.tools()["servers"][0]["n_tools"] and len(children()) == 1
    assert children() == []
