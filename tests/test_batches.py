"""Batches: every request is answered once, whatever breaks in between, and nothing of anybody else's is touched."""

import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from mofang import batches
from mofang.batches import Request, read
from mofang.client import ApiError
from mofang.errors import Conflict, Invalid, MofangError, NotFound, Unreachable


class Gateway:
    """Answers each question with itself, as our own says it; fails as it is told."""

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()
        self.busy = self.at_most = self._now = 0
        self.gone_after: int | None = None
        self.slow_s = 0.0
        self._lock = threading.Lock()

    def request(self, method: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
        assert method == "POST" and path == "/v1/chat/completions"
        question = body["messages"][0]["content"]
        with self._lock:
            self._now += 1
            self.at_most = max(self.at_most, self._now)
            self.asked[question] += 1
            total = self.asked.total()
        try:
            time.sleep(self.slow_s)
            if self.gone_after is not None and total > self.gone_after:
                raise Unreachable("client.gateway_unreachable", url="-", why="-")
            if self.busy:
                self.busy -= 1
                raise ApiError(429, {"code": "queue_full", "message": "full"})
            if body["model"] == "missing":
                raise ApiError(404, {"code": "model_not_found", "message": "没有这个模型"})
            message = {"role": "assistant", "content": question}
            return {"id": f"chat-{question}", "choices": [{"message": message}], "usage": {"completion_tokens": 2}}
        finally:
            with self._lock:
                self._now -= 1


def line(name: str, **changes: Any) -> str:
    body = {"messages": [{"role": "user", "content": name}]}
    row = {"custom_id": name, "method": "POST", "url": "/v1/chat/completions", "body": body, **changes}
    return json.dumps(row, ensure_ascii=False)


def written(path: Path, names: list[str], **changes: Any) -> Path:
    path.write_text("\n".join(line(name, **changes) for name in names) + "\n", encoding="utf-8")
    return path


def answers(path: Path) -> dict[str, Any]:
    rows = [json.loads(row) for row in path.read_text(encoding="utf-8").splitlines()]
    assert len(rows) == len({row["custom_id"] for row in rows})
    return {row["custom_id"]: row["response"] for row in rows}


NAMES = [f"问{n}" for n in range(9)]


@given(st.integers(1, 6), st.integers(0, 9), st.integers(0, 400))
def test_a_break_anywhere_costs_no_answer_and_asks_none_twice(
    tmp_path_factory: pytest.TempPathFactory, concurrency: int, gone_after: int, torn: int
) -> None:
    """The gateway goes after some requests, then a kill tears the file's end: what is whole stays, the rest is asked."""
    folder = tmp_path_factory.mktemp("batch")
    requests, out, gateway = read(written(folder / "in.jsonl", NAMES)), folder / "out.jsonl", Gateway()
    gateway.gone_after = gone_after
    if gone_after < len(NAMES):
        with pytest.raises(Unreachable):
            batches.run(gateway, requests, out, concurrency=concurrency)  # type: ignore[arg-type]
    else:
        batches.run(gateway, requests, out, concurrency=concurrency)  # type: ignore[arg-type]
    whole = out.read_bytes()
    out.write_bytes(whole[: len(whole) - min(torn, len(whole))])
    before = [json.loads(row)["custom_id"] for row in out.read_bytes().split(b"\n")[:-1]]
    gateway.gone_after, again = None, Gateway()
    found = batches.run(again, requests, out, concurrency=concurrency)  # type: ignore[arg-type]
    assert (found.answered, found.refused, found.kept) == (len(NAMES), 0, len(before))
    assert again.asked == Counter(name for name in NAMES if name not in before)
    assert {name: shape["body"]["choices"][0]["message"]["content"] for name, shape in answers(out).items()} == {
        name: name for name in NAMES
    }
    assert sorted(path.name for path in folder.iterdir()) == ["in.jsonl", "out.jsonl"]


def test_as_many_are_under_way_as_were_asked_for(tmp_path: Path) -> None:
    gateway, heard = Gateway(), []
    gateway.slow_s = 0.02
    found = batches.run(
        gateway,  # type: ignore[arg-type]
        read(written(tmp_path / "in", NAMES)),
        tmp_path / "out",
        concurrency=3,
        tell=lambda done, total: heard.append((done, total)),
    )
    assert gateway.at_most == 3 and found.tokens == 2 * len(NAMES)
    assert heard == [(n, len(NAMES)) for n in range(len(NAMES) + 1)]


def test_a_full_gateway_is_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "WAIT_S", 0.01)
    gateway = Gateway()
    gateway.busy = 4
    found = batches.run(gateway, read(written(tmp_path / "in", NAMES)), tmp_path / "out", concurrency=2)  # type: ignore[arg-type]
    assert found.answered == len(NAMES) and gateway.asked.total() == len(NAMES) + 4
    monkeypatch.setattr(batches, "PATIENCE_S", 0.0)
    gateway.busy = 1
    found = batches.run(gateway, read(written(tmp_path / "in", ["一"])), tmp_path / "late", concurrency=1)  # type: ignore[arg-type]
    assert found.refused == 1 and answers(tmp_path / "late")["一"]["status_code"] == 429


def test_what_is_refused_stands_in_its_line_and_is_asked_anew_on_request(tmp_path: Path) -> None:
    path, out, gateway = written(tmp_path / "in", NAMES), tmp_path / "out", Gateway()
    wrong = [Request(each.custom_id, each.url, {**each.body, "model": "missing"}) for each in read(path)[:2]]
    found = batches.run(gateway, [*wrong, *read(path)[2:]], out, concurrency=2)  # type: ignore[arg-type]
    assert (found.answered, found.refused) == (7, 2)
    assert (
        answers(out)["问0"]["body"]["error"]["message"] == "没有这个模型" and answers(out)["问0"]["status_code"] == 404
    )
    found = batches.run(gateway, read(path), out, concurrency=2)  # type: ignore[arg-type]
    assert (found.answered, found.refused, found.kept) == (7, 2, 9), "not without being asked to"
    found = batches.run(gateway, read(path), out, concurrency=2, again=True)  # type: ignore[arg-type]
    assert (found.answered, found.refused, found.kept) == (9, 0, 7)


def test_a_file_of_something_else_is_left_alone(tmp_path: Path) -> None:
    requests, out = read(written(tmp_path / "in", NAMES)), tmp_path / "out"
    for text in ('{"custom_id": "别的", "response": {"status_code": 200}}\n', "我的笔记\n", '[1]\n{"a": 1}\n'):
        out.write_text(text, encoding="utf-8")
        with pytest.raises(Conflict):
            batches.run(Gateway(), requests, out, concurrency=1)  # type: ignore[arg-type]
        assert out.read_text(encoding="utf-8") == text


def test_two_do_not_write_one_file(tmp_path: Path) -> None:
    requests, out, gateway = read(written(tmp_path / "in", NAMES)), tmp_path / "out", Gateway()
    gateway.slow_s = 0.3
    first = threading.Thread(target=lambda: batches.run(gateway, requests, out, concurrency=9))  # type: ignore[arg-type]
    first.start()
    while not gateway.asked:
        time.sleep(0.01)
    with pytest.raises(Conflict) as raised:
        batches.run(Gateway(), requests, out, concurrency=1)  # type: ignore[arg-type]
    first.join()
    assert raised.value.code == "batch_busy" and len(answers(out)) == len(NAMES)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "一个请求也没有"),
        ("\n \n", "一个请求也没有"),
        ("{}", "第 1 行的 custom_id"),
        (line("一") + "\n" + line("一"), "第 2 行的 custom_id 一"),
        (line("一", method="GET"), "第 1 行的 method"),
        (line("一", url="/v1/models"), "第 1 行的 url"),
        (line("一", body=[1]), "第 1 行的 body"),
        (line("一", body={"stream": True}), "第 1 行的 body.stream"),
        (line("一") + "\nnot json", "第 2 行"),
        ("[]", "第 1 行"),
    ],
)
def test_a_line_that_is_no_request_is_named_before_anything_is_asked(tmp_path: Path, text: str, part: str) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(Invalid) as raised:
        read(path)
    assert part in raised.value.message("zh") and raised.value.hint("zh") and raised.value.hint("en")


def test_a_file_that_is_not_there_or_no_text(tmp_path: Path) -> None:
    with pytest.raises(NotFound) as raised:
        read(tmp_path / "nowhere")
    assert '{"custom_id": "1"' in raised.value.hint()
    (tmp_path / "gbk").write_bytes("{'中文'".encode("gbk"))
    with pytest.raises(MofangError) as unreadable:
        read(tmp_path / "gbk")
    assert unreadable.value.code == "batch_unreadable"


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mofang import api
    from mofang.cli.main import build

    gateway = Gateway()

    @contextmanager
    def own() -> Iterator[Gateway]:
        yield gateway

    monkeypatch.setattr(api, "gateway", own)
    path = written(tmp_path / "in.jsonl", NAMES)
    done = CliRunner().invoke(build(), ["batch", str(path), "--json"])
    assert done.exit_code == 0 and json.loads(done.stdout)["answered"] == 9
    assert len(answers(tmp_path / "in.answers.jsonl")) == 9
    done = CliRunner().invoke(build(), ["batch", str(path), "--model", "missing", "-o", str(tmp_path / "other")])
    assert done.exit_code == 1 and "9 个没有成功" in done.stdout and "--retry" in done.stderr
