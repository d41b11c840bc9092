"""`mofang mcp` as a program that speaks the protocol: the SDK's own client over stdio, a real gateway behind it."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from mcp import Client, StdioServerParameters
from served import Gateway, serving

from fakes import install_model
from mofang.errors import MissingExtra
from mofang.server.backend import LocalBackend
from mofang.settings import Settings

WARRANTY = "# 保修\n\n保修期为两年，凭发票办理。\n"


def program(home: Path, *arguments: str, **env: str) -> StdioServerParameters:
    passed = {name: os.environ[name] for name in ("PYTHONPATH",) if name in os.environ}
    env = {**passed, "MOFANG_HOME": str(home), "PYTHONUTF8": "1", **env}
    return StdioServerParameters(command=sys.executable, args=["-m", "mofang", "mcp", *arguments], env=env)


@pytest.fixture
def gateway(home: Path) -> Iterator[Gateway]:
    install_model(home, "echo")
    install_model(home, "hash", kind="embedding", engine="hash")
    settings = Settings(home=home, port=0, api_key="sk-owner", n_ctx=4096)  # type: ignore[arg-type]
    with serving(LocalBackend(settings), "sk-owner") as running:
        with running.client() as owner:
            for name, text in (("手册", WARRANTY), ("日记", "今天天气很好，出去走了走。")):
                owner.create_knowledge(name, title=f"我的{name}")
                list(owner.follow_job(owner.add_documents(name, [(f"{name}.md", text.encode())])["id"]))
        yield running


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """The home of the program that connects: another machine has another one."""
    return tmp_path / "elsewhere"


async def test_what_is_offered(gateway: Gateway, elsewhere: Path) -> None:
    async with Client(program(elsewhere, "--url", gateway.url, MOFANG_API_KEY="sk-owner")) as client:
        tools = {tool.name: tool for tool in (await client.list_tools()).tools}
        assert tools.keys() == {"list_knowledge", "search", "ask"}
        assert "知识库" in (tools["search"].description or "") and tools["search"].input_schema["required"] == ["query"]
        bases = (await client.call_tool("list_knowledge", {})).structured_content
        assert bases == {
            "result": [
                {"name": "手册", "title": "我的手册", "n_documents": 1},
                {"name": "日记", "title": "我的日记", "n_documents": 1},
            ]
        }


async def test_searching_and_asking(gateway: Gateway, elsewhere: Path) -> None:
    async with Client(program(elsewhere, "--url", gateway.url, MOFANG_API_KEY="sk-owner")) as client:
        found = await client.call_tool("search", {"query": "保修期多长", "k": 1})
        assert found.structured_content
        [passage] = found.structured_content["result"]
        assert (passage["knowledge"], passage["document"]) == ("手册", "手册.md") and "两年" in passage["text"]
        assert WARRANTY[passage["start"] :].strip() and passage["end"] > passage["start"]
        assert "两年" in str(found.content), "a client without structured content reads it too, in Chinese"
        asked = await client.call_tool("ask", {"question": "保修期多长？", "knowledge": ["手册"]})
        assert asked.structured_content and not asked.is_error
        assert "保修期多长？" in asked.structured_content["answer"], "the echo engine says what it was asked"
        assert asked.structured_content["sources"][0]["document"] == "手册.md"
        assert asked.structured_content["sources"][0]["number"] == 1


async def test_refusals_are_told_as_the_person_would_be(gateway: Gateway, elsewhere: Path) -> None:
    options = ("--url", gateway.url, "--kb", "手册")
    async with Client(program(elsewhere, *options, MOFANG_API_KEY="sk-owner")) as client:
        bases = (await client.call_tool("list_knowledge", {})).structured_content
        assert bases and [base["name"] for base in bases["result"]] == ["手册"]
        for tool, arguments in (("search", {"query": "天气"}), ("ask", {"question": "天气"})):
            refused = await client.call_tool(tool, {**arguments, "knowledge": ["日记"]})
            assert refused.is_error and "日记" in str(refused.content) and "手册" in str(refused.content)
        empty = await client.call_tool("search", {"query": ""})
        assert empty.is_error
    async with Client(program(elsewhere, "--url", gateway.url, MOFANG_API_KEY="sk-wrong")) as client:
        denied = await client.call_tool("search", {"query": "保修"})
        assert denied.is_error and "sk-wrong" not in str(denied.content)


async def test_a_key_sees_its_own_bases_only(gateway: Gateway, elsewhere: Path) -> None:
    with gateway.client() as owner:
        key = owner.create_key("客人")
        owner.share_knowledge("日记", key["id"])
    async with Client(program(elsewhere, "--url", gateway.url, MOFANG_API_KEY=key["key"])) as client:
        found = await client.call_tool("search", {"query": "保修期多长"})
        assert found.structured_content
        assert {passage["knowledge"] for passage in found.structured_content["result"]} <= {"日记"}


@pytest.mark.slow
async def test_without_a_gateway_it_brings_its_own(home: Path) -> None:
    install_model(home, "echo")
    install_model(home, "hash", kind="embedding", engine="hash")
    async with Client(program(home)) as client:
        assert (await client.call_tool("list_knowledge", {})).structured_content == {"result": []}
        nothing = await client.call_tool("search", {"query": "保修"})
        assert nothing.is_error and "mofang kb create" in str(nothing.content)


def test_without_the_extra_the_line_to_type_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    from mofang.integrations import mcp

    monkeypatch.setattr(mcp, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra) as caught:
        mcp.server(None)  # type: ignore[arg-type]
    assert "mofang[mcp]" in caught.value.hint()
