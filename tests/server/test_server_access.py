"""Whose a base is: what a stranger's key gets is, byte for byte, what it would get of a base that does not exist."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.routing import APIRoute
from served import Gateway, serving

from fakes import install_model
from mofang.engine.base import CALLER
from mofang.server import create_app
from mofang.server.access import Access
from mofang.server.backend import LocalBackend
from mofang.settings import Settings

SECRET = "玄武计划的口令是芝麻开门，谁也不许说出去。"
HIDDEN, MISSING, OWN = "甲库", "丙库", "丁库"
"""Of the first key; of nobody; of the second key. Equally near to each other, so that hints could give them away."""


@dataclass
class Person:
    key_id: str
    http: httpx.Client

    def base(self, name: str, *documents: tuple[str, str]) -> None:
        assert self.http.post("/v1/knowledge", json={"name": name}).status_code == 201
        if documents:
            parts = [("files", (title, text.encode(), "text/plain")) for title, text in documents]
            self.finish(self.http.post(f"/v1/knowledge/{name}/documents", files=parts))

    def finish(self, started: httpx.Response) -> dict[str, Any]:
        assert started.status_code == 202, started.text
        return self.events(f"/v1/jobs/{started.json()['id']}/events")[-1]

    def events(self, path: str) -> list[dict[str, Any]]:
        text = self.http.get(path).text
        return [json.loads(line.removeprefix("data: ")) for line in text.splitlines() if line.startswith("data: ")]


@pytest.fixture
def gateway(home: Path) -> Iterator[Gateway]:
    install_model(home, "echo")
    install_model(home, "hash", kind="embedding", engine="hash")
    settings = Settings(home=home, port=0, n_ctx=4096, max_tokens=300, api_key="sk-owner", upload_limit_mb=1)  # type: ignore[arg-type]
    with serving(LocalBackend(settings), "sk-owner") as running:
        yield running


def person(gateway: Gateway, name: str) -> Iterator[Person]:
    with gateway.client() as owner:
        key = owner.create_key(name)
    bearer = {"Authorization": f"Bearer {key['key']}"}
    with httpx.Client(base_url=gateway.url, trust_env=False, headers=bearer, timeout=20) as http:
        yield Person(key["id"], http)


@pytest.fixture
def mine(gateway: Gateway) -> Iterator[Person]:
    for one in person(gateway, "甲"):
        one.base(HIDDEN, ("口令.txt", SECRET))
        yield one


@pytest.fixture
def stranger(gateway: Gateway) -> Iterator[Person]:
    for one in person(gateway, "丁"):
        one.base(OWN, ("闲话.txt", "今天天气很好，适合出去走走。"))
        yield one


# ---- every route that takes a base's name ----


def _routes() -> list[APIRoute]:
    from mofang.server.routes import ROUTERS

    return [route for router in ROUTERS for route in router.routes if isinstance(route, APIRoute)]


def _named() -> list[tuple[str, str]]:
    """(method, path) of every route with a base in its path."""
    return [
        (method, route.path)
        for route in _routes()
        for method in sorted(route.methods)
        if "{vector_store_id}" in route.path or route.path.startswith("/v1/knowledge/{name}")
    ]


def _asking() -> list[str]:
    """Paths of every route whose body names bases in `knowledge`."""
    return [
        route.path
        for route in _routes()
        if route.body_field and "knowledge" in getattr(route.body_field.field_info.annotation, "model_fields", {})
    ]


BODIES: dict[tuple[str, str], Any] = {
    ("POST", "/v1/knowledge/{name}/ask"): {"question": "口令是什么"},
    ("POST", "/v1/knowledge/{name}/questions"): {"n": 1},
    ("PATCH", "/v1/knowledge/{name}/questions/{question_id}"): {"state": "accepted"},
    ("POST", "/v1/vector_stores/{vector_store_id}"): {"name": "x"},
    ("POST", "/v1/vector_stores/{vector_store_id}/search"): {"query": "口令"},
    ("POST", "/v1/vector_stores/{vector_store_id}/files"): {"file_id": "file-none"},
}
UPLOADS = ("/v1/knowledge/{name}/documents", "/v1/knowledge/{name}/evaluate")


def _send(http: httpx.Client, method: str, path: str, base: str, ids: dict[str, str]) -> httpx.Response:
    url = path.replace("{name}", base).replace("{vector_store_id}", base)
    for name, value in ids.items():
        url = url.replace(f"{{{name}}}", value)
    assert "{" not in url, f"no value for {url}"
    if method == "POST" and path in UPLOADS:
        row = json.dumps({"question": "口令", "document": "口令.txt"}).encode()
        return http.post(url, files=[("files", ("a.jsonl", row))])
    return http.request(method, url, json=BODIES.get((method, path)))


def _same(one: httpx.Response, other: httpx.Response) -> None:
    assert one.status_code == other.status_code
    assert one.text.replace(HIDDEN, MISSING) == other.text
    assert one.headers["content-type"] == other.headers["content-type"]
    assert SECRET not in one.text and "口令.txt" not in one.text


def test_the_lists_of_routes_are_not_empty() -> None:
    assert len(_named()) > 15 and set(UPLOADS) <= {path for _, path in _named()}
    assert {"/v1/chat/completions", "/v1/generations", "/v1/responses", "/v1/messages", "/v1/knowledge/search"} <= set(
        _asking()
    )


@pytest.mark.parametrize(("method", "path"), _named())
def test_a_stranger_gets_what_a_missing_base_gets(method: str, path: str, mine: Person, stranger: Person) -> None:
    [document] = mine.http.get(f"/v1/knowledge/{HIDDEN}/documents").json()["data"]
    ids = {"document_id": document["id"], "file_id": document["id"], "key_id": stranger.key_id, "page": "1"}
    ids["question_id"] = "q1"
    hidden = _send(stranger.http, method, path, HIDDEN, ids)
    missing = _send(stranger.http, method, path, MISSING, ids)
    assert missing.status_code == 404 and missing.json()["error"]["code"] == "knowledge_not_found", missing.text
    assert OWN in missing.json()["error"]["message"], "what the key can see is told"
    _same(hidden, missing)
    assert len(mine.http.get(f"/v1/knowledge/{HIDDEN}/documents").json()["data"]) == 1, "nothing was done"


ASKED = {"messages": [{"role": "user", "content": "口令是什么"}], "max_tokens": 50}
QUESTIONS: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": ASKED,
    "/v1/messages": ASKED,
    "/v1/responses": {"input": "口令是什么"},
    "/v1/knowledge/search": {"query": "口令"},
}


@pytest.mark.parametrize("with_own", [False, True])
@pytest.mark.parametrize("path", [path for path in _asking() if path not in ("/v1/generations", "/v1/conversations")])
def test_asking_of_a_hidden_base(path: str, with_own: bool, mine: Person, stranger: Person) -> None:
    if path not in QUESTIONS:  # the count of tokens leaves the documents out, and says nothing of them
        bodies: list[dict[str, Any]] = [{**ASKED, "knowledge": [name]} for name in (HIDDEN, MISSING)]
        bodies = [{"input": "x", "knowledge": body["knowledge"]} if "responses" in path else body for body in bodies]
        one, other = (stranger.http.post(path, json=body) for body in bodies)
        _same(one, other)
        return
    for stream in (False, True):
        extra = {"stream": True} if stream and "search" not in path else {}
        hidden, missing = (
            stranger.http.post(
                path, json={**QUESTIONS[path], **extra, "knowledge": [*([OWN] if with_own else []), name]}
            )
            for name in (HIDDEN, MISSING)
        )
        assert missing.status_code == 404 and missing.json()["error"]["code"] == "knowledge_not_found"
        _same(hidden, missing)


def test_an_answer_in_the_server_fails_the_same_way(mine: Person, stranger: Person) -> None:
    ends = []
    for name in (HIDDEN, MISSING):
        started = stranger.http.post("/v1/generations", json={**ASKED, "knowledge": [name]})
        assert started.status_code == 202
        last = stranger.events(f"/v1/generations/{started.json()['id']}/events")[-1]
        ends.append(json.dumps({**last, "message_id": ""}, ensure_ascii=False).replace(HIDDEN, MISSING))
    assert ends[0] == ends[1] and "knowledge_not_found" in ends[0]


def test_lists_hold_what_the_key_may_read(mine: Person, stranger: Person, gateway: Gateway) -> None:
    for path, key in (("/v1/knowledge", "name"), ("/v1/vector_stores", "id")):
        assert [row[key] for row in stranger.http.get(path).json()["data"]] == [OWN]
        assert [row[key] for row in mine.http.get(path).json()["data"]] == [HIDDEN]
        with gateway.http() as owner:
            assert {row[key] for row in owner.get(path).json()["data"]} == {HIDDEN, OWN}, "the machine's own sees all"


# ---- what else could tell ----


def test_jobs_conversations_and_answers_are_their_keys(mine: Person, stranger: Person, gateway: Gateway) -> None:
    job = mine.http.get("/v1/jobs").json()["data"][0]
    talk = mine.http.post("/v1/conversations", json={"title": "密谈", "knowledge": [HIDDEN]}).json()
    asked = {**ASKED, "conversation_id": talk["id"], "knowledge": [HIDDEN]}
    generation = mine.http.post("/v1/generations", json=asked).json()
    assert SECRET in json.dumps(mine.events(f"/v1/generations/{generation['id']}/events"), ensure_ascii=False)
    seen = stranger.http.get
    assert all(row["title"] == OWN for row in seen("/v1/jobs").json()["data"])
    assert seen("/v1/conversations").json()["data"] == []
    for method, there, nowhere in (
        ("GET", f"/v1/jobs/{job['id']}", "/v1/jobs/job-none"),
        ("POST", f"/v1/jobs/{job['id']}/stop", "/v1/jobs/job-none/stop"),
        ("GET", f"/v1/jobs/{job['id']}/events", "/v1/jobs/job-none/events"),
        ("GET", f"/v1/conversations/{talk['id']}", "/v1/conversations/conv-none"),
        ("PATCH", f"/v1/conversations/{talk['id']}", "/v1/conversations/conv-none"),
        ("DELETE", f"/v1/conversations/{talk['id']}", "/v1/conversations/conv-none"),
        ("GET", f"/v1/generations/{generation['id']}", "/v1/generations/gen-none"),
        ("POST", f"/v1/generations/{generation['id']}/stop", "/v1/generations/gen-none/stop"),
        ("GET", f"/v1/generations/{generation['id']}/events", "/v1/generations/gen-none/events"),
    ):
        body = {"title": "x"} if method == "PATCH" else None
        hidden, missing = (stranger.http.request(method, path, json=body) for path in (there, nowhere))
        assert missing.status_code == hidden.status_code == 404, there
        assert hidden.text.replace(there.split("/")[3], nowhere.split("/")[3]) == missing.text
    body = {**ASKED, "conversation_id": talk["id"]}
    assert stranger.http.post("/v1/generations", json=body).json()["error"]["code"] == "conversation_not_found"
    with gateway.http() as owner:
        assert len(owner.get(f"/v1/conversations/{talk['id']}").json()["messages"]) == 2
        assert {row["title"] for row in owner.get("/v1/jobs").json()["data"]} == {HIDDEN, OWN}
    for path in ("/metrics", "/v1/system", "/openapi.json"):
        assert HIDDEN not in seen(path).text and SECRET not in seen(path).text, path


def test_files_are_their_keys(mine: Person, stranger: Person) -> None:
    made = mine.http.post(
        "/v1/files", files={"file": ("a.txt", SECRET.encode())}, data={"purpose": "assistants"}
    ).json()
    assert stranger.http.get("/v1/files").json()["data"] == []
    for method, path in (("GET", ""), ("GET", "/content"), ("DELETE", "")):
        hidden = stranger.http.request(method, f"/v1/files/{made['id']}{path}")
        assert hidden.status_code == 404 and hidden.json()["error"]["code"] == "file_not_found"
    taken = stranger.http.post(f"/v1/vector_stores/{OWN}/files", json={"file_id": made["id"]})
    assert (
        taken.status_code == 404
        and stranger.http.post("/v1/vector_stores", json={"file_ids": [made["id"]]}).status_code == 404
    ), "nobody puts another's file into a base of his own"
    assert mine.http.get(f"/v1/files/{made['id']}/content").content == SECRET.encode()


# ---- sharing ----


def test_a_reader_reads_and_does_not_write(mine: Person, stranger: Person) -> None:
    shared = f"/v1/knowledge/{HIDDEN}/readers/{stranger.key_id}"
    assert mine.http.put(shared).status_code == 204
    assert mine.http.get(f"/v1/knowledge/{HIDDEN}/readers").json()["data"] == [{"key": stranger.key_id, "name": "丁"}]
    rows = {row["name"]: row["writable"] for row in stranger.http.get("/v1/knowledge").json()["data"]}
    assert rows == {HIDDEN: False, OWN: True}
    found = stranger.http.post("/v1/knowledge/search", json={"query": "口令", "knowledge": [OWN, HIDDEN]}).json()[
        "data"
    ]
    assert {hit["knowledge"] for hit in found} == {HIDDEN, OWN}
    answer = stranger.http.post(f"/v1/knowledge/{HIDDEN}/ask", json={"question": "口令是什么"}).json()
    assert SECRET in answer["sources"][0]["text"]
    document = answer["sources"][0]["document_id"]
    text = f"/v1/knowledge/{HIDDEN}/documents/{document}/text"
    assert stranger.http.get(text).json()["text"] == SECRET
    for method, path in (
        ("POST", f"/v1/knowledge/{HIDDEN}/documents"),
        ("DELETE", f"/v1/knowledge/{HIDDEN}/documents/{document}"),
        ("DELETE", f"/v1/knowledge/{HIDDEN}"),
        ("GET", f"/v1/knowledge/{HIDDEN}/readers"),
        ("PUT", shared),
        ("DELETE", shared),
        ("DELETE", f"/v1/vector_stores/{HIDDEN}"),
        ("DELETE", f"/v1/vector_stores/{HIDDEN}/files/{document}"),
    ):
        files = [("files", ("a.txt", b"x"))] if method == "POST" else None
        refused = stranger.http.request(method, path, files=files)
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "read_only"), path
    assert mine.http.delete(shared).status_code == 204
    assert stranger.http.get(text).status_code == 404, "a link from an old answer opens nothing"
    assert mine.http.put(f"/v1/knowledge/{HIDDEN}/readers/key-none").json()["error"]["code"] == "key_not_found"


def test_rights_outlive_the_process_and_end_with_the_base(mine: Person, stranger: Person, gateway: Gateway) -> None:
    mine.http.put(f"/v1/knowledge/{HIDDEN}/readers/{stranger.key_id}")
    read: Callable[[], Access] = lambda: Access(gateway.backend.store.database)  # noqa: E731
    assert read().owner(HIDDEN) == mine.key_id and read().readers(HIDDEN) == {stranger.key_id}
    assert mine.http.delete(f"/v1/knowledge/{HIDDEN}").status_code == 204
    assert read().owner(HIDDEN) == "" and not read().readers(HIDDEN)
    with gateway.client() as owner:
        owner.create_knowledge(HIDDEN)
    for one in (mine, stranger):
        assert one.http.get(f"/v1/knowledge/{HIDDEN}").status_code == 404, "the next base of that name is another's"


def test_what_an_ended_key_owned_is_the_machines(mine: Person, gateway: Gateway) -> None:
    with gateway.client() as owner:
        owner.revoke_key(mine.key_id)
        assert owner.search([HIDDEN], "口令")[0]["text"] == SECRET
    database = gateway.backend.store.database
    with database.transaction() as db:
        db.execute("DELETE FROM keys WHERE id = ?", (mine.key_id,))
    assert Access(database).owner(HIDDEN) == ""


def test_a_taken_name_is_refused_and_a_failed_making_leaves_no_right(
    mine: Person, stranger: Person, gateway: Gateway
) -> None:
    taken = stranger.http.post("/v1/knowledge", json={"name": HIDDEN})
    assert (taken.status_code, taken.json()["error"]["code"]) == (409, "knowledge_exists")
    access = gateway.backend.library.access
    assert access.owner(HIDDEN) == mine.key_id
    token = CALLER.set(stranger.key_id)
    try:
        with pytest.raises(Exception, match="a/b"):
            gateway.backend.library.create("a/b", embedding_model="hash")
    finally:
        CALLER.reset(token)
    assert access.owner("a/b") == ""


def test_nothing_of_the_library_passes_by_itself(gateway: Gateway) -> None:
    assert not hasattr(type(gateway.backend.library), "__getattr__")
    with pytest.raises(AttributeError):
        _ = gateway.backend.library.folder
    assert create_app(gateway.backend).state.backend.library is gateway.backend.library


def test_a_kill_while_a_base_goes_leaves_rights_to_nothing(
    mine: Person, gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The base is gone and its rights are not yet: whoever makes the next one of that name owns it alone."""
    library = gateway.backend.library
    monkeypatch.setattr(library.access, "forget", lambda base: None)
    assert mine.http.delete(f"/v1/knowledge/{HIDDEN}").status_code == 204
    assert library.access.owner(HIDDEN) == mine.key_id, "what the kill left"
    assert mine.http.get(f"/v1/knowledge/{HIDDEN}").status_code == 404
    with gateway.client() as owner:
        owner.create_knowledge(HIDDEN)
    assert library.access.owner(HIDDEN) == "" and mine.http.get(f"/v1/knowledge/{HIDDEN}").status_code == 404


def test_a_base_that_cannot_be_removed_stays_its_owners(
    mine: Person, gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(name: str) -> None:
        raise OSError(28, "no space")

    monkeypatch.setattr(gateway.backend.library._library, "remove", full)
    assert mine.http.delete(f"/v1/knowledge/{HIDDEN}").status_code in (500, 507)
    assert mine.http.get(f"/v1/knowledge/{HIDDEN}").json()["writable"] is True
