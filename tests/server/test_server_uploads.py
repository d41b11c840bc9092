"""Documents on their way in, and the knowledge routes."""

import os
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from served import Gateway, serving, wait_until

from fakes import FakeLibrary, FakePool, ScriptedEngine
from mofang.client import ApiError, Client
from mofang.launch import INGESTING
from mofang.server.backend import LocalBackend
from mofang.server.uploads import decode_name, read_disposition, safe_name
from mofang.settings import Settings

BOUNDARY = b"xxBOUNDARYxx"


def multipart(*parts: tuple[bytes, bytes], field: bytes = b"files", end: bool = True) -> bytes:
    """Raw parts: (the file name's bytes as sent, content)."""
    pieces = [
        b'--%s\r\nContent-Disposition: form-data; name="%s"; filename="%s"\r\n\r\n%s\r\n'
        % (BOUNDARY, field, name, content)
        for name, content in parts
    ]
    return b"".join(pieces) + (b"--%s--\r\n" % BOUNDARY if end else b"")


def post(gateway: Gateway, body: bytes, base: str = "手册") -> Any:
    headers = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY.decode()}"}
    with gateway.http() as http:
        return http.post(f"/v1/knowledge/{base}/documents", content=body, headers=headers)


def finished(gateway: Gateway, answer: Any) -> Any:
    assert answer.status_code == 202, answer.text
    with gateway.client() as client:
        last = list(client.follow_job(answer.json()["id"]))[-1]
    assert last["type"] == "done", last
    return last["result"]


def leftovers(gateway: Gateway) -> list[Path]:
    """What lies there; unlike rglob, os.walk does not mind a folder that goes away meanwhile."""
    return [Path(where, name) for where, folders, names in os.walk(gateway.backend.uploads) for name in folders + names]


@pytest.fixture(autouse=True)
def handbook(library: FakeLibrary) -> None:
    library.create("手册", embedding_model="hash")


def test_files_arrive_whole(gateway: Gateway, library: FakeLibrary) -> None:
    big = ("第一章🙂\r\n--xxBOUNDARYx\r\n" * 20000).encode()[:900_000].decode("utf-8", "ignore").encode()
    with gateway.client() as client:
        job = client.add_documents("手册", [("目录/甲.md", big), ("乙.txt", "全角ＡＢＣ".encode())])
        events = list(client.follow_job(job["id"]))
        documents = {d["name"]: d for d in client.documents("手册")}
        text = client.document_text("手册", documents["目录/甲.md"]["id"], 0, 4)
    assert job["kind"] == "ingest" and job["title"] == "手册" and job["status"] == "running"
    assert events[0] == {
        "type": "progress",
        "stage": "reading",
        "done": 1,
        "total": 2,
        "unit": "files",
        "rate": 0.0,
        "detail": "目录/甲.md",
        "seconds_left": None,
        "seq": 0,
    }
    assert [file["status"] for file in events[-1]["result"]["files"]] == ["added", "added"]
    assert documents["目录/甲.md"]["size_bytes"] == len(big) and text["text"] == "第一章🙂"
    assert leftovers(gateway) == []


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        ("说明.txt".encode("gbk"), "说明.txt"),
        ("说明書.txt".encode("gb18030"), "说明書.txt"),
        ("乗\\".encode(), "乗"),
        ("合同（終）.txt".encode(), "合同（終）.txt"),
        (b"../../etc/passwd", "etc/passwd"),
        (b"/etc/passwd", "etc/passwd"),
        (b"C:\\\\Users\\\\me\\\\a.txt", "Users/me/a.txt"),
        (b"..", "unnamed"),
        (b"a\x07b.txt", "ab.txt"),
        (b"%22q%22.txt", '"q".txt'),
    ],
)
def test_names(gateway: Gateway, sent: bytes, kept: str) -> None:
    result = finished(gateway, post(gateway, multipart((sent, b"text"))))
    assert [file["name"] for file in result["files"]] == [kept]
    assert leftovers(gateway) == [] and not Path("/etc/passwd.new").exists()


def test_a_gbk_name_with_a_backslash_byte() -> None:
    name = "誠.txt"
    assert b"\\" in name.encode("gbk")
    _, read = read_disposition(b'form-data; name="files"; filename="' + name.encode("gbk") + b'"')
    assert read == name


@given(st.text())
def test_no_name_leaves_the_folder(name: str) -> None:
    safe = safe_name(name)
    parts = safe.split("/")
    assert safe and not safe.startswith("/") and ".." not in parts and "" not in parts
    assert (Path("/home/x") / safe).resolve().is_relative_to("/home/x")
    assert safe_name(safe) == safe or ":" in safe[:2]


@given(st.binary())
def test_any_bytes_are_a_name(raw: bytes) -> None:
    assert isinstance(decode_name(raw), str)
    read_disposition(raw)


def test_an_empty_file_is_reported_not_hidden(gateway: Gateway) -> None:
    result = finished(gateway, post(gateway, multipart((b"empty.txt", b""), (b"full.txt", b"x"))))
    assert [(f["name"], f["status"]) for f in result["files"]] == [("empty.txt", "failed"), ("full.txt", "added")]


def test_too_large_is_413_and_leaves_nothing(gateway: Gateway) -> None:
    body = multipart((b"small.txt", b"x"), ("大.bin".encode(), b"x" * 1_000_001))
    answer = post(gateway, body)
    assert answer.status_code == 413 and answer.json()["error"]["code"] == "upload_too_large"
    assert "大.bin" in answer.json()["error"]["message"] and leftovers(gateway) == []
    assert post(gateway, multipart((b"just.bin", b"x" * 1_000_000))).status_code == 202


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (multipart(), "no_files"),
        (multipart((b"a.txt", b"x"), field=b"file"), "unknown_part"),
        (multipart((b"a.txt", b"x"), end=False), "bad_upload"),
        (b"not multipart at all", "bad_upload"),
        (b"", "bad_upload"),
    ],
)
def test_uploads_that_are_none(gateway: Gateway, body: bytes, code: str) -> None:
    answer = post(gateway, body)
    assert answer.status_code == 400 and answer.json()["error"]["code"] == code
    assert leftovers(gateway) == []


def test_json_where_files_belong(gateway: Gateway) -> None:
    with gateway.http() as http:
        answer = http.post("/v1/knowledge/手册/documents", json={"files": []})
    assert answer.status_code == 400 and answer.json()["error"]["code"] == "not_multipart"


def test_an_unknown_base_is_said_also_to_a_large_upload(gateway: Gateway) -> None:
    assert post(gateway, multipart((b"a.bin", b"x" * 5_000_000)), base="没有").status_code == 404


def test_a_client_that_leaves_in_the_middle_leaves_nothing(gateway: Gateway) -> None:
    import socket

    host, port = gateway.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as wire:
        head = (
            "POST /v1/knowledge/%E6%89%8B%E5%86%8C/documents HTTP/1.1\r\nHost: 127.0.0.1\r\n"
            f"Content-Type: multipart/form-data; boundary={BOUNDARY.decode()}\r\nContent-Length: 900000\r\n\r\n"
        )
        wire.sendall(head.encode() + multipart((b"a.txt", b"x" * 100_000), end=False))
        wait_until(lambda: leftovers(gateway))
    wait_until(lambda: not leftovers(gateway))


def test_an_ingest_can_be_stopped(gateway: Gateway, library: FakeLibrary) -> None:
    library.slow_s = 0.2
    with gateway.client() as client:
        job = client.add_documents("手册", [(f"{n}.txt", f"文{n}".encode()) for n in range(50)])
        wait_until(lambda: client.job(job["id"])["progress"])
        client.stop_job(job["id"])
        assert client.job(job["id"])["status"] == "stopped"
        assert list(client.follow_job(job["id"]))[-1]["type"] == "stopped"
        assert [j["id"] for j in client.jobs()] == [job["id"]]
        with pytest.raises(ApiError) as caught:
            client.job("job-none")
    assert caught.value.code == "job_not_found" and leftovers(gateway) == []


# ---- the other knowledge routes ----


def test_bases_and_documents(gateway: Gateway) -> None:
    with gateway.client() as client:
        made = client.create_knowledge("库二", title="第二个")
        assert made["embedding_model"] == "hash", "auto is settled when the base is made"
        assert {base["name"] for base in client.knowledge()} == {"手册", "库二"}
        list(client.follow_job(client.add_documents("手册", [("甲.txt", "上海天气".encode())])["id"]))
        list(client.follow_job(client.add_documents("库二", [("乙.txt", "北京".encode())])["id"]))
        hits = client.search(["手册", "库二"], "上海的北")
        assert [(hit["title"], hit["knowledge"]) for hit in hits] == [("甲.txt", "手册"), ("乙.txt", "库二")]
        assert len(client.search(["手册", "库二"], "上海的北", k=1)) == 1
        client.remove_document("手册", hits[0]["document_id"])
        assert client.documents("手册") == [] and client.search(["手册"], "上海") == []
        client.remove_knowledge("库二")
        assert [base["name"] for base in client.knowledge()] == ["手册"]
        for name in ("../x", "", "a/b", "x" * 200):
            with pytest.raises(ApiError) as caught:
                client.create_knowledge(name)
            assert caught.value.status == 400 and caught.value.fault["param"] == "name"


def test_the_original_comes_as_a_download(gateway: Gateway) -> None:
    with gateway.client() as client:
        list(client.follow_job(client.add_documents("手册", [("目录/页.html", b"<script>alert(1)</script>")])["id"]))
        (document,) = client.documents("手册")
    with gateway.http() as http:
        answer = http.get(f"/v1/knowledge/手册/documents/{document['id']}/file")
    assert answer.content == b"<script>alert(1)</script>"
    assert answer.headers["content-disposition"].startswith("attachment")
    assert "%E9%A1%B5.html" in answer.headers["content-disposition"]
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["content-security-policy"].startswith("sandbox")


def test_slow_disks_do_not_hold_up_others(gateway: Gateway, engine: ScriptedEngine) -> None:
    real = gateway.backend.store.conversations
    busy, done = threading.Event(), threading.Event()

    def slow(query: str = "") -> Any:
        busy.set()
        done.wait(60)
        return real(query)

    gateway.backend.store.conversations = slow

    def list_them() -> None:
        with gateway.client() as client:
            client.conversations()

    listing = threading.Thread(target=list_them)
    listing.start()
    busy.wait()
    with gateway.http() as http:
        for _ in range(5):  # while the disk is still busy: it is let go only after them
            assert http.get("/healthz").status_code == 200
    assert listing.is_alive()
    done.set()
    listing.join()


# ---- who takes them in ----


def test_others_take_documents_in_for_the_owner_alone(settings: Settings, pool: FakePool, library: FakeLibrary) -> None:
    """What starts processes elsewhere is nothing for a stored key; what is wrong is said before the files are read."""
    backend = LocalBackend(settings, engines=pool, library=library, ingesting=INGESTING)
    files = [("甲.txt", b"x")]
    with serving(backend) as gateway, gateway.client() as owner:
        key = owner.create_key("小王")["key"]
        refusals = [
            ({"launcher": "rya"}, 404, "unknown_name"),
            ({"workers": 3}, 400, "ingest_not_local"),
            ({"cluster": "auto"}, 400, "ingest_not_local"),
            ({"launcher": "ray", "cluster": "somewhere"}, 400, None),
            ({"launcher": "ray", "workers": -1}, 400, None),
        ]
        for where, status, code in refusals:
            with pytest.raises(ApiError) as raised:
                owner.add_documents("手册", files, **where)
            assert raised.value.status == status and code in (None, raised.value.code), where
        with Client(gateway.url, key) as visitor:
            visitor.create_knowledge("自己的")
            with pytest.raises(ApiError) as raised:
                visitor.add_documents("自己的", files, launcher="ray")
            assert (raised.value.status, raised.value.code) == (403, "owner_only")
            assert visitor.add_documents("自己的", files, launcher="local")["status"] == "running"
        assert owner.documents("手册") == [] and library.ingesters == [None]
        list(owner.follow_job(owner.add_documents("手册", files, launcher="ray", workers=2)["id"]))
        assert callable(library.ingesters[-1])
