"""Conversations found by their words, written to files, and read from files: ours, ChatGPT's, OpenAI's."""

import json
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from served import Gateway, serving

from fakes import FakeLibrary, FakePool, HashEmbedder, ScriptedEngine
from mofang.client import ApiError, Client
from mofang.engine.base import CALLER
from mofang.errors import Invalid
from mofang.messages import Message
from mofang.server import exchange
from mofang.server.backend import LocalBackend
from mofang.server.store import Store
from mofang.settings import Settings


def answered(client: Client, conversation: str, text: str, **fields: Any) -> dict[str, Any]:
    shape = client.generate(
        {"conversation_id": conversation, "messages": [{"role": "user", "content": text}], **fields}
    )
    list(client.follow_generation(shape["id"]))
    return shape


# ---- found ----


def test_conversations_are_found_by_title_and_text(gateway: Gateway) -> None:
    with gateway.client() as client:
        ask = client.create_conversation(title="上下文窗口")["id"]
        other = client.create_conversation(title="菜谱")["id"]
        message = client.add_message(other, "红烧肉要先焯水，再用 Soy Sauce 上色。100% 好吃_吗？", role="user")
        client.add_message(other, "要放冰糖。", role="assistant")

        def found(query: str) -> list[Any]:
            return [(one["id"], one["hit"] and one["hit"]["message_id"]) for one in client.conversations(query)]

        assert found("窗口") == [(ask, None)], "in the title alone"
        assert found("焯水") == found("soy sauce") == found("冰糖 菜谱 焯水") == [(other, message["id"])]
        assert found("冰糖 窗口") == [], "every word, in one conversation"
        assert found("100%") == found("好吃_吗") == [(other, message["id"])] and found("%水") == found("吃__") == []
        hit = client.conversations("上色")[0]["hit"]
        assert hit["role"] == "user" and "上色" in hit["text"]
        client.add_message(other, "前" * 500 + "针" + "后" * 500, role="user")
        assert client.conversations("针")[0]["hit"]["text"] == f"…{'前' * 24}针{'后' * 95}…"
        assert [one["id"] for one in client.conversations("  ")] == [one["id"] for one in client.conversations()]
        assert "hit" not in client.conversations()[0]
        with pytest.raises(ApiError):
            client.conversations("长" * 201)


def test_a_key_finds_its_own_only(tmp_path: Path) -> None:
    store = Store(tmp_path / "server.db")
    for owner in ("", "甲", "乙"):
        token = CALLER.set(owner)
        home = store.create_conversation({"title": f"{owner}的秘密"})["id"]
        store.add_message(home, content="同一个词", role="user")
        CALLER.reset(token)
    token = CALLER.set("甲")
    assert [one["title"] for one in store.conversations("同一")] == ["甲的秘密"]
    assert store.conversations("乙的") == []
    CALLER.reset(token)
    assert len(store.conversations("同一")) == 3, "the machine's own user sees all"
    store.close()


# ---- out and in ----


def test_a_tree_goes_out_and_comes_back_the_same_under_new_ids(gateway: Gateway) -> None:
    with gateway.client() as client:
        client.create_knowledge("手册")
        job = client.add_documents("手册", [("安装.md", "安装 模坊".encode())])
        list(client.follow_job(job["id"]))
        home = client.create_conversation(
            title="一 / 二", system="简短", knowledge=["手册"], sampling={"temperature": 0.2}, prefix="好，"
        )["id"]
        first = answered(client, home, "怎样安装？")
        client.add_message(home, "改过", edits=first["message_id"])
        answered(client, home, "另起", parent_id="root", knowledge=[])
        old = client.conversation(home)
        exported = json.loads(client.export_conversation(home))
        [made] = client.import_conversations(exported)["data"]
        new = client.conversation(made["id"])
        assert client.conversation(home) == old, "nothing is overwritten"
        assert json.loads(client.export_conversation(made["id"]))["conversations"][0].keys() == (
            exported["conversations"][0].keys()
        )
    assert made["id"] != home and not {one["id"] for one in old["messages"]} & {one["id"] for one in new["messages"]}
    for name in exchange.KEPT:
        assert new[name] == old[name], name
    ids = {None: None} | {a["id"]: b["id"] for a, b in zip(old["messages"], new["messages"], strict=True)}
    assert any(message["sources"] for message in old["messages"])
    for a, b in zip(old["messages"], new["messages"], strict=True):
        assert b["parent_id"] == ids[a["parent_id"]] and b.get("edits") == ids[a.get("edits")]
        assert b["generation_id"] is None
        for name in ("role", "content", "reasoning", "sources", "usage", "timings", "model", "status", "created_at"):
            assert b[name] == a[name], name


def test_one_path_as_markdown(gateway: Gateway) -> None:
    with gateway.client() as client:
        client.create_knowledge("手册")
        list(client.follow_job(client.add_documents("手册", [("安装.md", "安装 模坊".encode())])["id"]))
        home = client.create_conversation(title='问 "安装"/一', system="简短\n回答", knowledge=["手册"])["id"]
        first = answered(client, home, "怎样安装？")
        client.add_message(home, "另一条路", role="user", parent_id="root")
        text = client.export_conversation(home, "markdown", first["message_id"]).decode()
        assert text.startswith('# 问 "安装"/一\n\n> 简短\n> 回答\n\n## 用户\n\n怎样安装？\n\n## echo\n\n')
        assert "来源：\n\n1. 安装.md" in text and "另一条路" not in text
        assert client.export_conversation(home, "markdown").decode().endswith("## 用户\n\n另一条路\n")
        answer = client.send("GET", f"/v1/conversations/{home}/export", params={"format": "markdown"})
        said = answer.headers["content-disposition"]
        assert said.startswith('attachment; filename="conversation.md"; filename*=UTF-8')
        assert unquote(said.split("''")[1]) == "问 安装 一.md"
        for params, status in (({"format": "pdf"}, 400), ({"format": "markdown", "leaf": "msg-x"}, 404)):
            with pytest.raises(ApiError) as caught:
                client.send("GET", f"/v1/conversations/{home}/export", params=params)
            assert caught.value.status == status


def node(name: str, parent: str | None, children: list[str], role: str = "", text: Any = None) -> dict[str, Any]:
    content = {"content_type": "text", "parts": [text]} if isinstance(text, str) else text
    message = {"author": {"role": role}, "content": content, "create_time": 1_700_000_000.5, "metadata": {}}
    return {"id": name, "parent": parent, "children": children, "message": message if role else None}


def test_chatgpts_export(gateway: Gateway) -> None:
    nodes = [
        node("r", None, ["s"]),
        node("s", "r", ["q"], "system", ""),
        node("q", "s", ["b", "a"], "user", "为什么？"),
        node("a", "q", [], "assistant", "旧的回答"),
        node("b", "q", ["t"], "assistant", "看着的回答"),
        node("t", "b", ["c"], "tool", {"content_type": "code", "text": "1+1"}),
        node("c", "t", [], "assistant", "接着说"),
    ]
    tree = {
        "title": "旧对话",
        "create_time": 1_600_000_000,
        "current_node": "c",
        "mapping": {one["id"]: one for one in nodes},
    }
    with gateway.client() as client:
        answer = client.import_conversations([tree])
        got = client.conversation(answer["data"][0]["id"])
    assert answer["skipped_messages"] == 1 and got["title"] == "旧对话" and got["created_at"].startswith("2020-09-13")
    by_text = {message["content"]: message for message in got["messages"]}
    assert [*by_text] == ["为什么？", "旧的回答", "看着的回答", "接着说"], "the branch that was looked at comes last"
    assert by_text["旧的回答"]["parent_id"] == by_text["看着的回答"]["parent_id"] == by_text["为什么？"]["id"]
    assert by_text["接着说"]["parent_id"] == by_text["看着的回答"]["id"], "over what was left out"


@pytest.mark.parametrize(
    "wrap", [lambda turns: {"messages": turns}, lambda turns: [{"messages": turns}], lambda turns: turns]
)
def test_openais_messages(gateway: Gateway, wrap: Any) -> None:
    turns = [
        {"role": "system", "content": "简短"},
        {"role": "user", "content": [{"type": "text", "text": "你好"}]},
        {"role": "assistant", "content": "你好！"},
    ]
    with gateway.client() as client:
        [made] = client.import_conversations(wrap(turns))["data"]
        got = client.conversation(made["id"])
    assert (got["system"], got["title"]) == ("简短", "你好")
    assert [(one["role"], one["content"]) for one in got["messages"]] == [
        ("user", [{"type": "text", "text": "你好"}]),
        ("assistant", "你好！"),
    ]
    assert got["messages"][1]["parent_id"] == got["messages"][0]["id"]


def ours(*messages: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"format": exchange.FORMAT, "version": 1, "conversations": [{"messages": list(messages), **fields}]}


GOOD = {"id": "a", "role": "user", "content": "一"}


@pytest.mark.parametrize(
    ("data", "code"),
    [
        ({}, "import_unknown"),
        ([], "import_unknown"),
        ("文字", "import_unknown"),
        (None, "no_body"),
        ({"mapping": 1}, "import_unknown"),
        ({**ours(GOOD), "version": 2}, "import_version"),
        (ours(GOOD, GOOD), "import_tree"),
        (ours({**GOOD, "parent_id": "b"}), "import_tree"),
        (ours({**GOOD, "parent_id": "a"}), "import_tree"),
        (ours({**GOOD, "role": "king"}), "bad_field"),
        (ours({**GOOD, "colour": "red"}), "unknown_field"),
        (ours(GOOD, sampling={"temperature": 99}), "bad_field"),
        (ours({**GOOD, "sources": [{"number": "x"}]}), "bad_field"),
        ({"messages": [{"role": "user", "content": 5}]}, "bad_field"),
        (
            {"mapping": {"a": {"parent": "b", "children": ["b"]}, "b": {"parent": "a", "children": ["a"]}}},
            "import_tree",
        ),
    ],
)
def test_what_is_no_conversation(gateway: Gateway, data: Any, code: str) -> None:
    with gateway.client() as client:
        with pytest.raises(ApiError) as caught:
            client.send("POST", "/v1/conversations/import", json=data)
        assert caught.value.code == code and client.conversations() == [], caught.value.message()


def test_all_or_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path / "server.db")
    good = exchange.Read({"title": "好"}, [{"id": "1", "parent_id": None, "role": "user", "content": "一"}])
    bad = exchange.Read({"title": "坏"}, [{"id": "1", "parent_id": "没有", "role": "user", "content": "一"}])
    with pytest.raises(KeyError):
        store.import_conversations([good, bad])
    assert store.conversations() == []
    store.close()


def test_an_answer_that_was_under_way_is_over_where_it_comes_in() -> None:
    [read] = exchange.read(ours({**GOOD, "role": "assistant", "status": "running"}), "zh")
    assert read.messages[0]["status"] == "stopped"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["messages", "mapping", "role", "content", "format", "parent", "children", "message", "x"]),
            inner,
        )
    ),
    max_leaves=12,
)


@given(JSON)
@example({"mapping": {"x": {"parent": []}}})
@example({"mapping": {"x": {"children": 7}}, "current_node": {}})
@settings(max_examples=200, deadline=None)
def test_anything_is_read_or_refused(data: Any) -> None:
    try:
        found = exchange.read(data, "zh")
    except Invalid:
        return
    for one in found:
        seen: set[Any] = {None}
        for message in one.messages:
            assert message["parent_id"] in seen and message["id"] not in seen
            seen.add(message["id"])


@given(st.lists(st.tuples(st.integers(0, 100), st.text(min_size=1, max_size=10)), max_size=12))
@settings(max_examples=40, deadline=None)
def test_every_tree_survives(tmp_path_factory: pytest.TempPathFactory, turns: list[tuple[int, str]]) -> None:
    store = Store(tmp_path_factory.mktemp("tree") / "server.db")
    home, ids = store.create_conversation({"title": "树"})["id"], ["root"]
    for at, text in turns:
        ids.append(store.add_message(home, content=text, role="user", parent_id=ids[at % len(ids)])["id"])
    whole = store.conversation(home)
    file = json.loads(json.dumps(exchange.json_of([whole])))
    [made] = store.import_conversations(exchange.read(file, "zh"))

    def branches(messages: list[dict[str, Any]]) -> list[list[str]]:
        return [
            [one["content"] for one in exchange.path_to({"id": "x", "messages": messages}, message["id"])]
            for message in messages
        ]

    assert branches(store.conversation(made["id"])["messages"]) == branches(whole["messages"])
    store.close()


def test_what_came_in_goes_on(settings: Settings) -> None:
    """Also after a restart: it is a conversation like any other."""
    engine = ScriptedEngine()
    data = {"messages": [{"role": "user", "content": "一"}, {"role": "assistant", "content": "一答"}]}
    for _ in range(2):
        pool = FakePool(engine, HashEmbedder())
        with (
            serving(LocalBackend(settings, engines=pool, library=FakeLibrary())) as gateway,
            gateway.client() as client,
        ):
            if not client.conversations():
                client.import_conversations(data)
            answered(client, client.conversations()[0]["id"], "二")
    assert [one.text for one in engine.asked[0][0]] == ["一", "一答", "二"]
    assert all(isinstance(message, Message) for message in engine.asked[1][0])
