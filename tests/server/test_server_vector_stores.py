"""/v1/files and /v1/vector_stores through the official client: bases and documents under OpenAI's names."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from served import Gateway, serving

from fakes import install_model
from mofang.server.backend import LocalBackend
from mofang.settings import Settings

GUIDE = "# 保修\n\n保修期为两年，凭发票办理。\n\n# 清洁\n\n清洁前先拔掉电源，再用干布擦拭外壳。\n"


@pytest.fixture
def gateway(home: Path) -> Iterator[Gateway]:
    install_model(home, "echo")
    install_model(home, "hash", kind="embedding", engine="hash")
    with serving(LocalBackend(Settings(home=home, port=0, upload_limit_mb=1))) as running:
        yield running


@pytest.fixture
def client(gateway: Gateway) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(
        base_url=f"{gateway.url}/v1",
        api_key="none",
        _strict_response_validation=True,
        http_client=httpx.Client(trust_env=False, timeout=20),
        max_retries=0,
    ) as client:
        yield client


def test_a_store_from_its_making_to_its_end(client: openai.OpenAI, gateway: Gateway) -> None:
    store = client.vector_stores.create(name="客服 FAQ")
    assert store.name == "客服 FAQ" and store.status == "completed" and store.file_counts.total == 0
    file = client.vector_stores.files.upload_and_poll(
        vector_store_id=store.id, file=("保修.md", GUIDE.encode()), poll_interval_ms=50
    )
    assert file.status == "completed" and file.last_error is None and file.usage_bytes == len(GUIDE.encode())
    assert client.files.retrieve(file.id).filename == "保修.md"
    assert client.files.content(file.id).content == GUIDE.encode()
    counts = client.vector_stores.retrieve(store.id).file_counts
    assert (counts.completed, counts.total) == (1, 1)
    best = client.vector_stores.search(store.id, query="保修期多长").data[0]
    assert best.file_id == file.id and best.filename == "保修.md" and "保修期为两年" in best.content[0].text
    assert client.vector_stores.search(vector_store_id=store.id, query=["清洁"], max_num_results=1).data[0].score > 0
    assert "保修期为两年" in str(client.vector_stores.files.content(file.id, vector_store_id=store.id).data[0].text)
    assert client.vector_stores.update(store.id, name="售后").name == "售后"
    with gateway.client() as ours:
        [base] = ours.knowledge()
        assert (base["name"], base["title"], base["n_documents"]) == (store.id, "售后", 1)
        assert ours.search([store.id], "保修期")[0]["title"] == "保修.md"
    gone = client.vector_stores.files.delete(file.id, vector_store_id=store.id)
    assert gone.deleted and not client.vector_stores.search(store.id, query="保修期").data
    assert client.files.retrieve(file.id).id == file.id, "taken out of the store, the file itself stays"
    assert client.files.delete(file.id).deleted
    assert client.vector_stores.delete(store.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.vector_stores.retrieve(store.id)


def test_our_own_documents_are_files_too(client: openai.OpenAI, gateway: Gateway) -> None:
    with gateway.client() as ours:
        ours.create_knowledge("手册")
        job = ours.add_documents("手册", [("说明/保修.md", GUIDE.encode())])
        assert list(ours.follow_job(job["id"]))[-1]["type"] == "done"
    [store] = client.vector_stores.list().data
    assert (store.id, store.name) == ("手册", "手册")
    [file] = client.vector_stores.files.list("手册").data
    assert file.status == "completed"
    assert client.vector_stores.search("手册", query="保修期").data[0].file_id == file.id
    assert client.vector_stores.files.delete(file.id, vector_store_id="手册").deleted
    with gateway.client() as ours:
        assert ours.documents("手册") == []


def test_two_files_of_one_name_do_not_replace_each_other(client: openai.OpenAI) -> None:
    store = client.vector_stores.create()
    ids = [
        client.vector_stores.files.upload_and_poll(
            vector_store_id=store.id, file=("a.md", f"# 甲\n\n第{n}份说的是不同的事。".encode()), poll_interval_ms=50
        ).id
        for n in (1, 2)
    ]
    assert {hit.file_id for hit in client.vector_stores.search(store.id, query="不同的事").data} == set(ids)
    again = client.vector_stores.files.create_and_poll(ids[0], vector_store_id=store.id, poll_interval_ms=50)
    assert again.status == "completed" and client.vector_stores.retrieve(store.id).file_counts.total == 2
    assert client.files.delete(ids[0]).deleted
    assert [file.id for file in client.vector_stores.files.list(store.id)] == [ids[1]], "its documents went with it"


def test_a_store_made_with_files_and_lists_in_pages(client: openai.OpenAI) -> None:
    files = [
        client.files.create(file=(f"{n}.md", f"第 {n} 份文件的内容".encode()), purpose="assistants") for n in range(5)
    ]
    assert [file.id for file in client.files.list(order="asc", limit=2)] == [file.id for file in files], (
        "in three pages"
    )
    first = client.files.list(limit=2, order="desc")
    assert [file.id for file in first.data] == [files[4].id, files[3].id] and first.has_more
    assert client.files.list(purpose="user_data").data == []
    store = client.vector_stores.create(name="五份", file_ids=[file.id for file in files])
    for file in files:
        assert (
            client.vector_stores.files.poll(file.id, vector_store_id=store.id, poll_interval_ms=20).status
            == "completed"
        )
    done = client.vector_stores.files.list(store.id, filter="completed", limit=2)
    assert sum(1 for _ in done) == 5 and client.vector_stores.files.list(store.id, filter="failed").data == []
    with pytest.raises(openai.BadRequestError) as caught:
        client.vector_stores.list(after="vs_nothing")
    assert caught.value.param == "after"


def test_a_file_that_cannot_be_read_says_why(client: openai.OpenAI) -> None:
    store = client.vector_stores.create()
    for name, content, code in (
        ("a.xyz", b"x", "unsupported_file"),
        ("c.ZIP", b"PK", "unsupported_file"),
        ("b.pdf", b"%PDF-1.7 broken", "invalid_file"),
    ):
        file = client.vector_stores.files.upload_and_poll(
            vector_store_id=store.id, file=(name, content), poll_interval_ms=20
        )
        assert file.status == "failed" and file.last_error
        assert file.last_error.code == code and name in file.last_error.message
    counts = client.vector_stores.retrieve(store.id).file_counts
    assert (counts.failed, counts.completed) == (3, 0)
    assert client.vector_stores.files.delete(file.id, vector_store_id=store.id).deleted
    assert client.vector_stores.retrieve(store.id).file_counts.failed == 2


def test_what_has_no_counterpart_is_refused_by_name(client: openai.OpenAI) -> None:
    store = client.vector_stores.create()
    static: Any = {"type": "static", "static": {"max_chunk_size_tokens": 800, "chunk_overlap_tokens": 400}}
    for name, call in {
        "metadata": lambda: client.vector_stores.create(metadata={"a": "b"}),
        "expires_after": lambda: client.vector_stores.create(expires_after={"anchor": "last_active_at", "days": 1}),
        "chunking_strategy": lambda: client.vector_stores.files.create(store.id, file_id="x", chunking_strategy=static),
        "attributes": lambda: client.vector_stores.files.create(store.id, file_id="x", attributes={"a": 1}),
        "filters": lambda: client.vector_stores.search(
            store.id, query="x", filters={"type": "eq", "key": "a", "value": "b"}
        ),
        "rewrite_query": lambda: client.vector_stores.search(store.id, query="x", rewrite_query=True),
        "ranking_options": lambda: client.vector_stores.search(
            store.id, query="x", ranking_options={"score_threshold": 0.5}
        ),
        "purpose": lambda: client.files.create(file=("a.txt", b"x"), purpose="fine-tune"),
    }.items():
        with pytest.raises(openai.BadRequestError) as caught:
            call()
        assert str(caught.value.param).startswith(name), (name, caught.value.message)
    with pytest.raises(openai.NotFoundError) as batches:
        client.vector_stores.file_batches.create(store.id, file_ids=["x"])
    assert "file_batches" in batches.value.message
    with pytest.raises(openai.NotFoundError) as none:
        client.vector_stores.files.create(store.id, file_id="file-none")
    assert none.value.code == "file_not_found"


def test_what_a_killed_gateway_leaves(gateway: Gateway, client: openai.OpenAI, home: Path) -> None:
    store = client.vector_stores.create()
    file = client.files.create(file=("a.md", "内容在此".encode()), purpose="assistants")
    backend = gateway.backend
    backend.files.attach(store.id, file.id, "a.md")
    stray = home / "files" / "file-stray"
    stray.write_bytes(b"x")
    backend.files.start()
    left = client.vector_stores.files.retrieve(file.id, vector_store_id=store.id)
    assert left.status == "failed" and left.last_error and left.last_error.code == "server_error"
    assert not stray.exists() and client.files.content(file.id).content == "内容在此".encode()


def test_a_new_base_of_an_old_name_has_no_old_files(client: openai.OpenAI, gateway: Gateway) -> None:
    with gateway.client() as ours:
        ours.create_knowledge("手册")
        client.vector_stores.files.upload_and_poll(vector_store_id="手册", file=("a.xyz", b"x"), poll_interval_ms=20)
        ours.remove_knowledge("手册")
        ours.create_knowledge("手册")
    assert client.vector_stores.files.list("手册").data == []
