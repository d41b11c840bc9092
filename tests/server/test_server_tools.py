"""Tools of answers: what ours do, and calls that are made once, after a person said so."""

import ast
import asyncio
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st
from served import Gateway, serving, wait_until

from fakes import FakeLibrary, FakePool, ScriptedEngine, install_model, spoken
from mofang.client import ApiError, Client
from mofang.errors import Invalid
from mofang.messages import Delta, Message, Usage
from mofang.server import tools as room
from mofang.server.backend import LocalBackend
from mofang.server.store import Store
from mofang.server.tools import Tools
from mofang.server.tools.base import Result
from mofang.server.tools.calculate import BITS, FUNCTIONS, calculate
from mofang.settings import Settings
from mofang.strings import speaking
from tool_caller import ToolCaller

# ---- calculate ----


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("6 * 7", 42),
        ("2 ** 10 - 24", 1000),
        ("（1 + 2）× 3 ÷ 4", 2.25),
        ("2^3", 8),
        ("-7 // 2", -4),
        ("7 % 4", 3),
        ("1_000 + 0x10", 1016),
        ("sqrt(2) * sqrt(2)", 2.0000000000000004),
        ("round(2.5)", 2),
        ("round(3.14159, 2)", 3.14),
        ("max(1, 2, 3) + min(4, 5)", 7),
        ("log(8, 2)", 3.0),
        ("factorial(20)", 2432902008176640000),
        ("cos(pi)", -1.0),
        ("123456789 ** 5", 123456789**5),
    ],
)
def test_what_is_calculated(expression: str, value: float) -> None:
    assert calculate(expression) == value


@pytest.mark.parametrize(
    "expression",
    [
        "", "1 +", "1 / 0", "x", "__import__('os')", "().__class__", "(1).real", "[1][0]", "'a' * 3", "True", "1 if 1 else 2",
        "1 < 2", "1 and 2", "lambda: 1", "sqrt(-1)", "(-8) ** 0.5", "1j", "abs", "open(1)", "sqrt(x=1)", "1e308 * 10",
        "9 ** 9 ** 9", "2 ** 100000", "10.0 ** 1000", f"{'9' * 900} ** 90", "factorial(100000)", "factorial(-1)", "round(5, -99999999)",
        "(" * 400 + "1" + ")" * 400, "-" * 5000 + "1", "1\x00", "\ud800", "f'{1}'", "print(1)", "1; 2", "a := 1", "min()", "gcd(1.5)",
    ],
)  # fmt: skip
def test_what_is_not(expression: str) -> None:
    with pytest.raises(Invalid) as caught:
        calculate(expression)
    assert caught.value.code == "cannot_calculate" and str(caught.value)


numbers = st.integers(-50, 50).map(str) | st.floats(-50, 50, width=16, allow_subnormal=False).map(repr)
plain = st.recursive(
    numbers.map(lambda text: f"({text})"),
    lambda inner: st.tuples(inner, st.sampled_from(["+", "-", "*", "/", "//", "%"]), inner).map(
        lambda parts: f"({' '.join(parts)})"
    ),
    max_leaves=12,
)


@given(plain)
def test_plain_expressions_are_pythons(expression: str) -> None:
    try:
        wanted = eval(expression, {"__builtins__": {}})
    except ZeroDivisionError:
        wanted = None
    if isinstance(wanted, float) and wanted in (float("inf"), float("-inf")):
        wanted = None
    try:
        assert calculate(expression) == wanted
    except Invalid:
        assert wanted is None


@given(
    st.text(alphabet="0123456789.+-*/%() ,eE_jx'\"[]:", max_size=60)
    | st.text(max_size=30)
    | st.lists(st.sampled_from([*FUNCTIONS, "(", ")", ",", "9", "**", "-", "1e9", "pi"]), max_size=20).map("".join)
)
def test_nothing_but_its_own_fault_comes_out(expression: str) -> None:
    try:
        value = calculate(expression)
    except Invalid:
        return
    assert type(value) in (int, float) and value == value
    assert not isinstance(value, int) or value.bit_length() <= BITS
    ast.literal_eval(str(value))


# ---- the others, and the table ----


@pytest.fixture
def engine() -> ScriptedEngine:
    return ToolCaller("echo")


@pytest.fixture
def tools(backend: LocalBackend) -> Iterator[Tools]:
    yield backend.tools
    backend.store.close()


async def test_the_time_of_a_zone(tools: Tools) -> None:
    told = await tools.call("current_time", '{"zone": "Asia/Shanghai"}', "zh")
    moment = datetime.fromisoformat(" ".join(told.text.split()[:2]))
    assert not told.failed and abs((moment - datetime.now(ZoneInfo("UTC"))).total_seconds()) < 60
    assert told.text.split()[1].endswith("+08:00") and "星期" in told.text and "Asia/Shanghai" in told.text
    assert not (await tools.call("current_time", '{"zone": null}', "en")).failed
    for zone in ("Asia", "../../etc/passwd", "Nowhere/Land", "/etc/localtime"):
        wrong = await tools.call("current_time", f'{{"zone": "{zone}"}}', "zh")
        assert wrong.failed and zone in wrong.text and "Asia/Shanghai" in wrong.text


async def test_documents_are_searched(tools: Tools, library: FakeLibrary, tmp_path: Path) -> None:
    none = await tools.call("search_documents", '{"query": "保修"}', "zh")
    assert none.failed and "mofang kb create" in none.text
    library.create("手册", embedding_model="hash")
    (tmp_path / "保修.md").write_text("保修期为两年")
    await library.add("手册", [("保修.md", tmp_path / "保修.md")], progress=lambda _: None)
    found = await tools.call("search_documents", '{"query": "保修多久"}', "zh")
    assert found == Result("[1] 保修.md\n保修期为两年")
    nothing = await tools.call("search_documents", '{"query": "xyz", "knowledge": "手册"}', "en")
    assert not nothing.failed and "Nothing" in nothing.text and "手册" in nothing.text
    assert (await tools.call("search_documents", '{"query": "保修", "knowledge": "没有"}', "zh")).failed


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("{", "JSON"),
        ("[1]", "JSON"),
        ("[" * 100_000, "JSON"),
        ("{}", "expression"),
        ('{"expression": 5}', "expression"),
        ('{"expresion": "1"}', "expression"),
        ('{"expression": "1/0"}', "zero"),
    ],
)
async def test_bad_arguments_are_told_to_the_model(tools: Tools, arguments: str, says: str) -> None:
    told = await tools.call("calculate", arguments, "zh")
    assert told.failed and says in told.text


async def test_what_nobody_expected_is_told_without_internals(
    tools: Tools, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(asked: Any, rooms: Any) -> str:
        raise RuntimeError("secret place")

    monkeypatch.setitem(room.OWN, "calculate", replace(room.OWN["calculate"], run=broken))
    told = await tools.call("calculate", '{"expression": "1"}', "zh")
    assert told.failed and "secret" not in told.text and "secret place" in caplog.text


async def test_results_are_cut_and_that_is_said(tools: Tools, monkeypatch: pytest.MonkeyPatch) -> None:
    async def long(asked: Any, rooms: Any) -> str:
        return "长" * 9_000

    monkeypatch.setitem(room.OWN, "calculate", replace(room.OWN["calculate"], run=long))
    told = await tools.call("calculate", '{"expression": "1"}', "zh")
    assert told.text.startswith("长" * 8_000) and "9000" in told.text and len(told.text) < 8_100


@pytest.mark.parametrize("lang", ["zh", "en"])
@pytest.mark.parametrize("name", room.OWN)
def test_each_of_ours_is_described(name: str, lang: str) -> None:
    with speaking(lang):
        listed = room.own(name)
    fields = room.OWN[name].arguments.model_fields
    assert listed.title and listed.description and listed.parameters["properties"].keys() == fields.keys()
    assert all(about["type"] == "string" and about["description"] for about in listed.parameters["properties"].values())
    assert listed.function().function.name == name


# ---- routes ----


def asked(client: Client, text: str, *, chosen: list[str], **fields: Any) -> tuple[str, dict[str, Any]]:
    """A conversation with these tools, and its answer to `text`."""
    home = client.create_conversation(tools=chosen, **fields)["id"]
    return home, answered(client, home, messages=[{"role": "user", "content": text}])


def answered(client: Client, home: str, **body: Any) -> dict[str, Any]:
    shape = client.generate({"conversation_id": home, **body})
    list(client.follow_generation(shape["id"]))
    return next(one for one in client.conversation(home)["messages"] if one["id"] == shape["message_id"])


def test_what_there_is_to_choose_from(gateway: Gateway) -> None:
    with gateway.client(lang="en") as client:
        listing = client.tools()
    assert [tool["name"] for tool in listing["data"]] == ["search_documents", "calculate", "current_time"]
    assert listing["servers"] == [] and listing["data"][1]["title"] == "Calculate"
    assert listing["data"][1]["parameters"]["required"] == ["expression"] and listing["data"][1]["server"] == ""


def test_a_call_is_asked_about_made_and_the_answer_goes_on(gateway: Gateway, engine: ScriptedEngine) -> None:
    with gateway.client() as client:
        home, answer = asked(client, "calculate '6 * 7'", chosen=["calculate"])
        assert answer["finish_reason"] == "tool_calls" and answer["content"] == ""
        [call] = answer["tool_calls"]
        assert call["function"] == {"name": "calculate", "arguments": '{"expression": "6 * 7"}'}
        offered = engine.asked[0][1].options["tools"]
        assert [tool["function"]["name"] for tool in offered] == ["calculate"] and "算式" in str(offered)
        assert len(client.conversation(home)["messages"]) == 2, "nothing was done yet"

        result = client.decide_call(home, answer["id"], call["id"], "run")
        assert (result["role"], result["content"], result["status"]) == ("tool", "42", "done")
        assert (result["outcome"], result["name"], result["tool_call_id"]) == ("done", "calculate", call["id"])
        assert result["parent_id"] == answer["id"] and 0 <= result["seconds"] < 5
        last = answered(client, home, parent_id=result["id"])
        assert last["content"] == "好的：42" and last["parent_id"] == result["id"]
    told = engine.asked[-1][0]
    assert [message.role for message in told] == ["user", "assistant", "tool"]
    assert told[1].tool_calls == answer["tool_calls"] and told[2].tool_call_id == call["id"]


def test_it_goes_on_by_itself_where_that_is_wanted(gateway: Gateway) -> None:
    with gateway.client() as client:
        home, answer = asked(client, "calculate '6 * 7'", chosen=["calculate"])
        client.decide_call(home, answer["id"], answer["tool_calls"][0]["id"], "run", go_on=True)
        wait_until(lambda: client.conversation(home)["messages"][-1]["content"] == "好的：42")
        assert [one["role"] for one in client.conversation(home)["messages"]] == [
            "user",
            "assistant",
            "tool",
            "assistant",
        ]


def test_a_refused_call_is_not_made_and_the_model_is_told(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(*_: Any) -> Result:
        raise AssertionError("it was refused")

    monkeypatch.setattr(Tools, "call", never)
    with gateway.client() as client:
        home, answer = asked(client, "calculate '6 * 7'", chosen=["calculate"])
        result = client.decide_call(home, answer["id"], answer["tool_calls"][0]["id"], "refuse", go_on=True)
        assert result["outcome"] == "refused" and "不允许" in result["content"]
        wait_until(lambda: client.conversation(home)["messages"][-1]["content"].startswith("好的：用户不允许"))


def two_calls() -> list[Any]:
    calls = [
        {"index": n, "id": "", "type": "function", "function": {"name": "calculate", "arguments": f'{{"expression": "{n} + 1"}}'}}
        for n in range(2)
    ]  # fmt: skip
    return [Delta(tool_calls=calls), Delta(finish_reason="tool_calls", usage=Usage(1, 2))]


def test_results_stand_in_the_order_of_the_calls(gateway: Gateway, engine: ScriptedEngine) -> None:
    engine.script = two_calls()
    with gateway.client() as client:
        home, answer = asked(client, "两个", chosen=["calculate"])
        first, second = [call["id"] for call in answer["tool_calls"]]
        assert first and second and first != second, "each has an id of its own, though the model gave none"
        with pytest.raises(ApiError) as early:
            client.decide_call(home, answer["id"], second, "run")
        assert (early.value.status, early.value.code) == (409, "not_yet")
        engine.script = spoken("好")
        one = client.decide_call(home, answer["id"], first, "run", go_on=True)
        other = client.decide_call(home, answer["id"], second, "run", go_on=True)
        assert (one["content"], other["content"], other["parent_id"]) == ("1", "2", one["id"])
        wait_until(lambda: client.conversation(home)["messages"][-1]["content"] == "好")
        assert len(client.conversation(home)["messages"]) == 5, "it went on once, after the last"


def test_a_call_is_made_once_however_often_it_is_clicked(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    async def count(self: Tools, name: str, arguments: str, lang: str) -> Result:
        made.append(name)
        return Result("42")

    monkeypatch.setattr(Tools, "call", count)
    with gateway.client() as client:
        home, answer = asked(client, "calculate '1'", chosen=["calculate"])
        call, codes = answer["tool_calls"][0]["id"], []

        def click() -> None:
            with gateway.client() as own:
                try:
                    own.decide_call(home, answer["id"], call, "run", go_on=True)
                    codes.append("done")
                except ApiError as error:
                    codes.append(error.code)

        clicks = [threading.Thread(target=click) for _ in range(8)]
        for one in clicks:
            one.start()
        for one in clicks:
            one.join(timeout=20)
        assert sorted(codes) == ["call_decided"] * 7 + ["done"] and made == ["calculate"]
        wait_until(lambda: client.conversation(home)["messages"][-1]["status"] == "done")
        assert len(client.conversation(home)["messages"]) == 4


def test_a_slow_call_outlives_who_asked(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    release = gateway.event()

    async def slow(self: Tools, name: str, arguments: str, lang: str) -> Result:
        await release.wait()
        return Result("好了")

    monkeypatch.setattr(Tools, "call", slow)
    with gateway.client() as client:
        home, answer = asked(client, "calculate '1'", chosen=["calculate"])
        result = client.decide_call(home, answer["id"], answer["tool_calls"][0]["id"], "run", wait_s=0)
        assert (result["status"], result["content"]) == ("running", "") and "outcome" not in result
        with pytest.raises(ApiError) as caught:
            client.generate({"conversation_id": home, "parent_id": result["id"]})
        assert caught.value.code == "still_answering"
        gateway.release(release)
        wait_until(lambda: client.conversation(home)["messages"][-1]["content"] == "好了")


def test_a_call_that_takes_too_long_is_stopped(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its result says so to the model, the answer waits for somebody to go on, and what has settled stays as it is."""
    ended = threading.Event()

    async def endless(self: Tools, name: str, arguments: str, lang: str) -> Result:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        return Result("")

    monkeypatch.setattr(Tools, "call", endless)
    with gateway.client() as client:
        home, answer = asked(client, "calculate '1'", chosen=["calculate"])
        result = client.decide_call(home, answer["id"], answer["tool_calls"][0]["id"], "run", go_on=True, wait_s=0.1)
        stopped = client.stop_call(home, result["id"])
        assert (stopped["status"], stopped["outcome"]) == ("done", "stopped") and stopped["seconds"] >= 0.1
        assert "停止" in stopped["content"] and ended.is_set()
        assert client.stop_call(home, result["id"]) == stopped
        assert client.conversation(home)["messages"][-1] == stopped, "no answer went on by itself"
        client.generate({"conversation_id": home, "parent_id": result["id"]})
        wait_until(lambda: client.conversation(home)["messages"][-1]["role"] == "assistant")
        with pytest.raises(ApiError) as caught:
            client.stop_call(home, "msg_none")
        assert caught.value.status == 404


def test_what_cannot_be_decided(gateway: Gateway, engine: ScriptedEngine) -> None:
    with gateway.client() as client:
        home, answer = asked(client, "calculate '1'", chosen=["calculate"])
        call = answer["tool_calls"][0]["id"]
        for place, code in (
            ((home, answer["id"], "call-none"), "no_call"),
            ((home, "msg-none", call), "message_not_found"),
            (("conv-none", answer["id"], call), "conversation_not_found"),
        ):
            with pytest.raises(ApiError) as caught:
                client.decide_call(*place, "run")
            assert (caught.value.status, caught.value.code) == (404, code)
        with pytest.raises(ApiError) as wrong:
            client.decide_call(home, answer["id"], call, "perhaps")
        assert wrong.value.status == 400
        engine.script = [*two_calls()[:1], gateway.event()]
        shape = client.generate({"conversation_id": home, "messages": [{"role": "user", "content": "停"}]})
        wait_until(lambda: engine.open == 1)
        client.stop_generation(shape["id"])
        cut = next(one for one in client.conversation(home)["messages"] if one["id"] == shape["message_id"])
        for half in cut.get("tool_calls") or [{"id": "?"}]:
            with pytest.raises(ApiError) as stopped:
                client.decide_call(home, cut["id"], half["id"], "run")
            assert stopped.value.code == "no_call", "an answer that was stopped may hold half a call"


def test_names_that_are_no_tools_and_both_forms_together(gateway: Gateway, engine: ScriptedEngine) -> None:
    ask = {"messages": [{"role": "user", "content": "问"}]}
    own = {"type": "function", "function": {"name": "mine", "parameters": {"type": "object", "properties": {}}}}
    with gateway.client() as client:
        with pytest.raises(ApiError) as caught:
            client.generate({**ask, "tools": ["calculat"]})
        assert (caught.value.status, caught.value.code) == (400, "unknown_tool") and "calculate" in caught.value.hint()
        shape = client.generate({**ask, "tools": ["current_time", own]})
        list(client.follow_generation(shape["id"]))
        offered = engine.asked[-1][1].options["tools"]
        assert [tool["function"]["name"] for tool in offered] == ["current_time", "mine"]
        with pytest.raises(ApiError) as both:
            client.generate({**ask, "tools": ["calculate"], "prefix": "好"})
        assert both.value.code == "either_field"


def test_a_conversation_keeps_its_tools(gateway: Gateway, engine: ScriptedEngine) -> None:
    with gateway.client() as client:
        home = client.create_conversation(tools=["calculate"])["id"]
        assert client.conversation(home)["tools"] == ["calculate"]
        answered(client, home, messages=[{"role": "user", "content": "问"}], tools=[])
        assert "tools" not in engine.asked[-1][1].options
        last = client.conversation(home)["messages"][0]["id"]
        answered(client, home, parent_id=last, prefix="接着")
        assert "tools" not in engine.asked[-1][1].options, "an answer that goes on is in the middle of its text"
        assert client.change_conversation(home, tools=[])["tools"] == []
        assert client.create_conversation()["tools"] == []


def test_calls_and_results_go_out_and_come_in(gateway: Gateway) -> None:
    with gateway.client() as client:
        home, answer = asked(client, "calculate '6 * 7'", chosen=["calculate"])
        client.decide_call(home, answer["id"], answer["tool_calls"][0]["id"], "run")
        exported = client.request("GET", f"/v1/conversations/{home}/export")
        [made] = client.import_conversations(exported)["data"]
        again = client.conversation(made["id"])
    assert again["tools"] == ["calculate"] and again["messages"][1]["tool_calls"] == answer["tool_calls"]
    result = again["messages"][2]
    assert (result["content"], result["outcome"], result["name"]) == ("42", "done", "calculate") and "seconds" in result


def test_a_call_that_the_end_of_the_gateway_cut_is_told(
    settings: Settings, pool: FakePool, library: FakeLibrary, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def never_ends(self: Tools, name: str, arguments: str, lang: str) -> Result:
        await asyncio.sleep(3600)
        return Result("")

    monkeypatch.setattr(Tools, "call", never_ends)
    with serving(LocalBackend(settings, engines=pool, library=library)) as running, running.client() as client:
        home, answer = asked(client, "calculate '1'", chosen=["calculate"])
        client.decide_call(home, answer["id"], answer["tool_calls"][0]["id"], "run", wait_s=0, go_on=True)
    store = Store(settings.home / "server.db")
    messages = store.conversation(home)["messages"]
    assert messages[-1]["outcome"] == "failed" and "也许" in messages[-1]["content"] and len(messages) == 3
    store.close()


def test_a_call_that_a_killed_process_left_is_told(tmp_path: Path) -> None:
    store = Store(tmp_path / "server.db")
    home = store.create_conversation({})["id"]
    result, call = store.claim_call(home, _asking(store, home), "c1")
    assert result["status"] == "running" and call["id"] == "c1"
    store.close()
    store = Store(tmp_path / "server.db")
    store.lose_calls("不知道做没做")
    store.interrupt_running({"code": "interrupted"})
    kept = store.conversation(home)["messages"][-1]
    assert (kept["status"], kept["outcome"], kept["content"]) == ("done", "failed", "不知道做没做")
    store.close()


def _asking(store: Store, home: str) -> str:
    """The id of an answer that asks for one call, as it is stored."""
    shape, _ = store.begin(model="m", turns=[Message("user", "问")], conversation_id=home, parent_id=None)
    calls = [{"id": "c1", "type": "function", "function": {"name": "calculate", "arguments": "{}"}}]
    message = {"content": "", "reasoning": "", "extra": {"tool_calls": calls}, "sources": [], "usage": None}
    message |= {"timings": None, "model": "m"}
    store.finish(shape["id"], status="done", message=message, finish_reason="tool_calls", error=None, events=[])
    return str(shape["message_id"])


# ---- whose ----


@pytest.fixture
def guarded(home: Path, pool: FakePool, library: FakeLibrary) -> Iterator[Gateway]:
    install_model(home, "echo")
    install_model(home, "hash", kind="embedding", engine="hash")
    (home / "mcp.json").write_text('{"mcpServers": {"files": {"command": "no-such-program-here"}}}')
    settings = Settings(home=home, port=0, api_key="sk-owner")  # type: ignore[arg-type]
    backend = LocalBackend(settings, engines=pool, library=library)
    with serving(backend, "sk-owner") as running:
        yield running


def test_keys_are_held_apart(guarded: Gateway) -> None:
    with guarded.client() as owner:
        keys = [owner.create_key(name)["key"] for name in ("甲", "乙")]
        owner.create_knowledge("密")
        list(owner.follow_job(owner.add_documents("密", [("密.md", "芝麻开门".encode())])["id"]))
        assert [server["name"] for server in owner.tools()["servers"]] == ["files"]
    with Client(guarded.url, keys[0], timeout_s=20) as one, Client(guarded.url, keys[1], timeout_s=20) as other:
        assert one.tools()["servers"] == [], "MCP servers have the rights of the machine's own user"
        with pytest.raises(ApiError) as hidden:
            one.generate({"messages": [{"role": "user", "content": "问"}], "tools": ["files__read"]})
        assert hidden.value.code == "unknown_tool"
        home, answer = asked(one, "search_documents '芝麻'", chosen=["search_documents"])
        call = answer["tool_calls"][0]["id"]
        with pytest.raises(ApiError) as stranger:
            other.decide_call(home, answer["id"], call, "run")
        assert stranger.value.code == "conversation_not_found"
        result = one.decide_call(home, answer["id"], call, "run")
        assert result["outcome"] == "failed" and "开门" not in result["content"], "it sees its own bases only"
