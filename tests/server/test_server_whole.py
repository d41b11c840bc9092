"""Nothing faked but the models: echo and hash engines behind the real rooms; then a real model; then kill -9."""

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
import openai
import pytest
from served import Gateway, serving, wait_until

from fakes import FakePool, HashEmbedder, SharedLetters, install_model
from mofang.client import ApiError, Client
from mofang.errors import MofangError
from mofang.server.backend import LocalBackend
from mofang.settings import Settings

PAPER = Path(__file__).parent.parent / "knowledge" / "samples" / "员工手册.pdf"
"""Three pages."""
PAGE = """# 模坊手册

## 安装

运行 make run 就能安装并启动模坊，网关在 8642 端口。

## 卸载

删除主目录即可卸载模坊，不留下别的文件。
"""


@pytest.fixture
def whole(home: Path) -> Iterator[Gateway]:
    install_model(home, "echo")
    install_model(home, "hash", kind="embedding", engine="hash")
    with serving(LocalBackend(Settings(home=home, port=0, n_ctx=2048, max_tokens=500))) as gateway:
        yield gateway


def chat(gateway: Gateway, text: str, **fields: Any) -> Any:
    with gateway.http() as http:
        body = {"model": "echo", "messages": [{"role": "user", "content": text}], **fields}
        return http.post("/v1/chat/completions", json=body)


def test_chat_and_embeddings(whole: Gateway) -> None:
    with openai.OpenAI(
        base_url=f"{whole.url}/v1",
        api_key="none",
        _strict_response_validation=True,
        http_client=httpx.Client(trust_env=False),
        max_retries=0,
    ) as client:
        answer = client.chat.completions.create(
            model="auto", messages=[{"role": "user", "content": "你好，🙂世界"}], stop=["世"]
        )
        cut = client.chat.completions.create(
            model="echo", messages=[{"role": "user", "content": "一二三四"}], max_tokens=2
        )
        near = client.embeddings.create(model="auto", input=["上海天气", "上海的天气", "量子"], encoding_format="float")
        with pytest.raises(openai.BadRequestError) as wrong:
            client.chat.completions.create(model="hash", messages=[{"role": "user", "content": "x"}])
        with pytest.raises(openai.BadRequestError) as long:
            client.chat.completions.create(
                model="echo", messages=[{"role": "user", "content": "长" * 3000}], stream=True
            )
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == ("你好，🙂", "stop")
    assert (cut.choices[0].message.content, cut.choices[0].finish_reason) == ("一二", "length")
    one, other, far = (row.embedding for row in near.data)
    assert sum(a * b for a, b in zip(one, other, strict=True)) > sum(a * b for a, b in zip(one, far, strict=True))
    assert wrong.value.code == "wrong_kind" and wrong.value.param == "model"
    assert long.value.code == "context_length_exceeded" and "2048" in long.value.message


def test_documents_from_upload_to_citation(whole: Gateway) -> None:
    with whole.client() as client:
        assert client.create_knowledge("手册")["embedding_model"] == "hash"
        with pytest.raises(ApiError) as twice:
            client.create_knowledge("手册")
        assert twice.value.status == 409 and twice.value.code == "knowledge_exists"
        job = client.add_documents("手册", [("文档/手册.md", PAGE.encode()), ("空.txt", b"")])
        last = list(client.follow_job(job["id"]))[-1]
        files = {file["name"]: file for file in last["result"]["files"]}
        assert files["文档/手册.md"]["status"] == "added" and files["空.txt"]["status"] == "failed"
        with Client(client.url, lang="en") as english:
            job = english.add_documents("手册", [("空.txt", b"")])
            [empty] = list(english.follow_job(job["id"]))[-1]["result"]["files"]
        assert (files["空.txt"]["error"], empty["error"]) == ("空.txt 是空文件", "空.txt is empty")
        hits = client.search(["手册"], "怎样卸载", k=3)
        assert "卸载" in hits[0]["text"] and hits[0]["headings"][-1] == "卸载"
        span = client.document_text("手册", hits[0]["document_id"], hits[0]["start"], hits[0]["end"])
        assert span["text"] == hits[0]["text"]
        shape = client.generate(
            {"model": "echo", "messages": [{"role": "user", "content": "怎样卸载模坊？[1]"}], "knowledge": ["手册"]}
        )
        events = list(client.follow_generation(shape["id"]))
        with pytest.raises(ApiError) as missing:
            client.search(["手测"], "x")
        assert missing.value.status == 404 and "手册" in missing.value.hint() + missing.value.message()
    assert events[-1]["type"] == "done", events[-1]
    assert events[-1]["sources"][0]["cited"] is True and "卸载" in events[-1]["sources"][0]["text"]
    with whole.client() as client:
        chunks = client.document_chunks("手册", hits[0]["document_id"], start=hits[0]["start"], n=1)
        assert [(chunk["start"], chunk["end"]) for chunk in chunks] == [(hits[0]["start"], hits[0]["end"])]
        list(client.follow_job(client.add_documents("手册", [("纸.pdf", PAPER.read_bytes())])["id"]))
        paper = next(one["id"] for one in client.documents("手册") if one["name"] == "纸.pdf")
        assert client.document_page("手册", paper, 1, start=0, end=3)[:4] == b"\x89PNG"
        faults = []
        for document, page in ((paper, 4), (hits[0]["document_id"], 1)):
            with pytest.raises(ApiError) as refused:
                client.document_page("手册", document, page)
            faults.append((refused.value.status, refused.value.code))
        assert faults == [(404, "page_not_found"), (422, "no_pictures")]
    with whole.http() as http:
        drawn = http.get(f"/v1/knowledge/手册/documents/{paper}/pages/1.png", params={"width": 10**6})
        assert drawn.status_code == 400 and drawn.json()["error"]["param"] == "width"
        original = http.get(f"/v1/knowledge/手册/documents/{hits[0]['document_id']}/file")
        bad = http.get(f"/v1/knowledge/手册/documents/{hits[0]['document_id']}/text", params={"start": 10**9})
        unknown = http.get("/v1/knowledge/手册/documents/nothing/file")
    assert original.content == PAGE.encode() and bad.status_code == 400 and unknown.status_code == 404


def test_a_base_in_another_store_limits_rebuilds_and_says_when_it_is_away(whole: Gateway) -> None:
    with whole.client() as client:
        with pytest.raises(ApiError) as unknown:
            client.create_knowledge("远", store="chrome")
        assert (unknown.value.status, unknown.value.code) == (404, "unknown_name")
        assert "chroma" in unknown.value.message() + unknown.value.hint()
        # Nothing is set up for it here: documents are safe, and a search says what it did instead.
        assert client.create_knowledge("远", store="opensearch")["store"] == "opensearch"
        job = client.add_documents("远", [("文档/手册.md", PAGE.encode()), ("别的.txt", "卸载是另一回事。".encode())])
        assert list(client.follow_job(job["id"]))[-1]["type"] == "done"
        notices: list[str] = []
        hits = client.search(["远"], "怎样卸载", filter={"names": ["文档/"], "types": ["md"]}, notices=notices)
        assert {hit["title"] for hit in hits} == {"文档/手册.md"} and hits[0]["dense_rank"] is not None
        assert len(notices) == 1 and "opensearch" in notices[0]
        last = list(client.follow_job(client.rebuild_knowledge("远")["id"]))[-1]
        assert last["type"] == "error" and last["error"]["code"] == "bad_store_url"
        client.create_knowledge("近")
        list(client.follow_job(client.add_documents("近", [("手册.md", PAGE.encode())])["id"]))
        last = list(client.follow_job(client.rebuild_knowledge("近")["id"]))[-1]
        assert last["type"] == "done"
        assert last["result"]["n_chunks"] == next(one["n_chunks"] for one in client.knowledge() if one["name"] == "近")
        with pytest.raises(ApiError) as missing:
            client.rebuild_knowledge("没有")
        assert missing.value.status == 404


def test_a_crash_in_the_middle_and_the_next_request(home: Path) -> None:
    install_model(home, "echo", echo={"crash_after": 3})
    with serving(LocalBackend(Settings(home=home, port=0))) as gateway:
        with gateway.http() as http:
            body = {"model": "echo", "messages": [{"role": "user", "content": "一二三四五"}], "stream": True}
            with http.stream("POST", "/v1/chat/completions", json=body) as answer:
                lines = [line[6:] for line in answer.iter_lines() if line]
        assert json.loads(lines[-1])["error"]["code"] == "engine_died" and "[DONE]" not in lines
        assert chat(gateway, "一二").json()["choices"][0]["message"]["content"] == "一二"


def test_a_full_queue_is_429(home: Path) -> None:
    install_model(home, "echo", echo={"delay_s": 0.2, "n_slots": 1})
    with serving(LocalBackend(Settings(home=home, port=0, queue_limit=1))) as gateway, gateway.client() as client:
        client.load_model("echo")
        ask = {"model": "echo", "messages": [{"role": "user", "content": "慢" * 200}]}
        running = [client.generate(ask) for _ in range(2)]
        wait_until(lambda: client.system()["waiting"] == {"echo": 1})
        refused = chat(gateway, "挤不进去")
        for shape in running:
            client.stop_generation(shape["id"])
        assert client.system()["waiting"] == {} and client.system()["running"]["generations"] == 0
        assert chat(gateway, "好").status_code == 200
    assert refused.status_code == 429 and int(refused.headers["retry-after"]) >= 1


def test_adding_a_file_that_is_no_model(whole: Gateway, tmp_path: Path) -> None:
    broken = tmp_path / "坏.gguf"
    broken.write_bytes(b"GGUF" + os.urandom(100))
    with whole.client() as client:
        for path, status in ((broken, 422), (tmp_path / "没有.gguf", 404)):
            with pytest.raises(ApiError) as caught:
                client.add_model(path)
            assert caught.value.status == status and caught.value.hint()
        assert {model["id"] for model in client.models()} == {"echo", "hash"}
        assert client.model("echo")["loaded"] is False
        client.load_model("echo")
        assert client.model("echo")["loaded"] is True
        client.unload_model("echo")
        assert client.system()["engines"] == []


def test_a_home_of_a_newer_version(home: Path) -> None:
    import sqlite3

    with sqlite3.connect(home / "server.db") as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(MofangError) as caught:
        LocalBackend(Settings(home=home))
    assert caught.value.code == "newer_home"


# ---- kill -9 ----

GATEWAY = """
import sys, uvicorn
from mofang.server import create_app
from mofang.server.backend import LocalBackend
from mofang.settings import load
uvicorn.run(create_app(LocalBackend(load())), port=int(sys.argv[1]), log_level="error", ws="none")
"""


@contextmanager
def process(home: Path) -> Iterator[tuple[Client, "subprocess.Popen[bytes]"]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    child = subprocess.Popen([sys.executable, "-c", GATEWAY, str(port)], env={**os.environ, "MOFANG_HOME": str(home)})
    try:
        with Client(f"http://127.0.0.1:{port}", timeout_s=20) as client:

            def up() -> bool:
                try:
                    return bool(client.request("GET", "/healthz"))
                except MofangError:
                    return False

            wait_until(up, timeout_s=30)
            yield client, child
    finally:
        child.kill()
        child.wait()


def test_kill_9_loses_at_most_a_second(home: Path) -> None:
    install_model(home, "echo", echo={"delay_s": 0.02})
    said = "".join(chr(0x4E00 + n) for n in range(1000))
    with process(home) as (client, child):
        talk = client.create_conversation()["id"]
        shape = client.generate({"conversation_id": talk, "messages": [{"role": "user", "content": said}]})
        seen = a_second_ago = ""
        started = time.monotonic()
        with pytest.raises(MofangError):
            for event in client.follow_generation(shape["id"]):
                seen += event.get("content", "")
                a_second_ago = seen if time.monotonic() - started < 1.5 else a_second_ago
                if time.monotonic() - started > 2.5:
                    os.kill(child.pid, signal.SIGKILL)
    with process(home) as (client, child):
        kept = client.generation(shape["id"])
        message = client.conversation(talk)["messages"][-1]
        events = list(client.follow_generation(shape["id"]))
    assert kept["status"] == message["status"] == "error" and kept["error"]["code"] == "interrupted"
    assert kept["content"] == message["content"] and said.startswith(kept["content"])
    assert len(kept["content"]) >= len(a_second_ago) > 20
    assert [event["type"] for event in events] == ["delta", "error"]


# ---- a real model ----


@pytest.mark.model
def test_a_real_model_behind_the_official_client(home: Path, qwen: Path) -> None:
    settings = Settings(home=home, port=0, n_ctx=2048, model_path=str(qwen.parent), chat_model=qwen.stem)
    with serving(LocalBackend(settings)) as gateway:
        with openai.OpenAI(
            base_url=f"{gateway.url}/v1",
            api_key="none",
            _strict_response_validation=True,
            http_client=httpx.Client(trust_env=False, timeout=120),
            max_retries=0,
        ) as client:
            ask: Any = {"model": "auto", "messages": [{"role": "user", "content": "中国的首都是哪里？只答城市名。"}]}
            whole = client.chat.completions.create(**ask, temperature=0, max_tokens=20)
            chunks = list(
                client.chat.completions.create(
                    **ask, temperature=0, max_tokens=20, stream=True, stream_options={"include_usage": True}
                )
            )
            both = client.chat.completions.create(**ask, temperature=1, seed=3, max_tokens=8, n=2)
            probable = client.chat.completions.create(**ask, max_tokens=2, logprobs=True, top_logprobs=2)
            raw = client.completions.create(model="auto", prompt=["一二三四五六", "春夏秋"], max_tokens=4, logprobs=2)
            with pytest.raises(openai.BadRequestError) as long:
                client.chat.completions.create(model="auto", messages=[{"role": "user", "content": "长" * 9000}])
        with gateway.client() as own:
            never_ending = {"messages": [{"role": "user", "content": "请写一篇很长的文章。"}], "ignore_eos": True}
            shape = own.generate({**never_ending, "max_tokens": 1500})
            events = own.follow_generation(shape["id"])
            kinds = []
            for event in events:
                kinds.append(event["type"])
                if kinds.count("delta") == 5:
                    own.stop_generation(shape["id"])
            details = own.model(qwen.stem)
    assert "北京" in (whole.choices[0].message.content or "")
    assert "".join(c.choices[0].delta.content or "" for c in chunks[:-1]) == whole.choices[0].message.content
    assert chunks[-1].usage and whole.usage and chunks[-1].usage.total_tokens == whole.usage.total_tokens
    assert sorted(choice.index for choice in both.choices) == [0, 1] and both.usage
    assert 2 <= both.usage.completion_tokens <= 16
    logprobs = probable.choices[0].logprobs
    assert logprobs and logprobs.content and len(logprobs.content[0].top_logprobs) == 2
    assert len(raw.choices) == 2 and raw.choices[0].logprobs and raw.choices[0].logprobs.tokens
    assert long.value.code == "context_length_exceeded"
    assert "prompt" in kinds and kinds[-1] == "stopped"
    assert details["architecture"] == "qwen2" and details["memory"]["total"] > details["size_bytes"]


def test_a_stored_answer_needs_no_model(home: Path) -> None:
    """The same in chat, in a generation, streamed and whole; no chat model is installed."""
    install_model(home, "hash", kind="embedding", engine="hash")
    table = "问题,答案\n怎样开启自动保存？,在选项里勾选。\n"
    with serving(LocalBackend(Settings(home=home, port=0))) as gateway, gateway.http() as http:
        http.post("/v1/knowledge", json={"name": "faq"})
        added = http.post("/v1/knowledge/faq/documents", files={"files": ("问答.csv", table.encode())}).json()
        wait_until(lambda: http.get(f"/v1/jobs/{added['id']}").json()["status"] == "done")
        turn = [{"role": "user", "content": "请问如何开启自动保存？"}]
        body = {"model": "auto", "messages": turn, "knowledge": ["faq"]}
        whole = http.post("/v1/chat/completions", json=body).json()
        streamed = http.post("/v1/chat/completions", json={**body, "stream": True}).text
        asked = http.post("/v1/knowledge/faq/ask", json={"question": turn[0]["content"]}).json()
        begun = http.post("/v1/generations", json=body).json()
        wait_until(lambda: http.get(f"/v1/generations/{begun['id']}").json()["status"] == "done")
        kept = http.get(f"/v1/generations/{begun['id']}").json()
        refused = http.post(
            "/v1/chat/completions", json={**body, "messages": [{"role": "user", "content": "如何关闭自动保存？"}]}
        )
        formed = http.post("/v1/chat/completions", json={**body, "response_format": {"type": "json_object"}})
    said = "在选项里勾选。 [1]"
    assert whole["choices"][0]["message"]["content"] == asked["answer"] == kept["content"] == said
    assert whole["choices"][0]["finish_reason"] == asked["finish_reason"] == "stop"
    for sources in (whole["sources"], asked["sources"], kept["sources"]):
        assert [(one["number"], one["cited"], one["spans"]) for one in sources] == [(1, True, [[10, 17]])]
    assert [notice["code"] for notice in whole["notices"]] == [n["code"] for n in asked["notices"]] == ["stored_answer"]
    assert whole["usage"]["total_tokens"] == 0
    events = [json.loads(line[6:]) for line in streamed.splitlines() if line.startswith("data: {")]
    assert "".join(event["choices"][0]["delta"].get("content", "") for event in events) == said
    assert events[-1]["sources"] == whole["sources"] and events[-1]["notices"] == whole["notices"]
    assert [answer.json()["error"]["code"] for answer in (refused, formed)] == ["no_model_installed"] * 2, (
        "what is not stored needs a model"
    )


def test_a_search_names_its_reranker(home: Path) -> None:
    install_model(home, "letters", kind="reranker")
    install_model(home, "hash", kind="embedding", engine="hash")
    pool = FakePool(SharedLetters(), HashEmbedder())
    with (
        serving(LocalBackend(Settings(home=home, port=0), engines=pool), key="secret") as gateway,
        gateway.http() as http,
    ):
        http.post("/v1/knowledge", json={"name": "b"})
        files = [("files", (f"{n}.txt", text.encode())) for n, text in enumerate(("年假", "年假五天怎么请", "请假"))]
        added = http.post("/v1/knowledge/b/documents", files=files).json()
        wait_until(lambda: http.get(f"/v1/jobs/{added['id']}").json()["status"] == "done")
        body = {"query": "年假五天怎么请", "knowledge": ["b"]}
        plain = http.post("/v1/knowledge/search", json=body).json()
        found = http.post("/v1/knowledge/search", json={**body, "rerank": "auto"}).json()
        missing = http.post("/v1/knowledge/search", json={**body, "rerank": "nobody"})
        wrong = http.post("/v1/knowledge/search", json={**body, "rerank": "hash"})
        made = http.post("/v1/keys", json={"name": "guest", "models": ["hash"]}).json()
        guest = {"Authorization": f"Bearer {made['key']}"}
        http.put(f"/v1/knowledge/b/readers/{made['id']}")
        denied = http.post("/v1/knowledge/search", json={**body, "rerank": "auto"}, headers=guest)
    assert {hit["rerank_score"] for hit in plain["data"]} == {None}
    assert [(hit["title"], hit["rerank_score"]) for hit in found["data"]] == [
        ("1.txt", 1.0),
        ("0.txt", pytest.approx(2 / 7)),
        ("2.txt", pytest.approx(2 / 7)),
    ]
    assert [(answer.status_code, answer.json()["error"]["code"]) for answer in (missing, wrong, denied)] == [
        (404, "model_not_found"),
        (400, "wrong_kind"),
        (403, "model_denied"),
    ]
