"""Evaluations, drafted questions, ask: over HTTP and from the command line, on real rooms with tiny engines."""

import json
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from served import Gateway, serving, wait_until
from typer.testing import CliRunner, Result

from fakes import FakePool, HashEmbedder, ScriptedEngine, SharedLetters, install_model, spoken
from mofang import api
from mofang.client import ApiError, Client
from mofang.errors import Invalid
from mofang.messages import Message
from mofang.server.backend import LocalBackend
from mofang.settings import Settings

DOCUMENTS = {
    "保修.md": "# 保修\n\n整机保修期为两年，凭购买发票在全国任何一家维修站办理，人为损坏不在保修范围之内。\n",
    "清洁.md": "# 清洁\n\n清洁外壳之前要先拔掉电源插头，再用拧干的软布轻轻擦拭，不可以使用酒精或汽油。\n",
    "安装.md": "# 安装\n\n把支架用四颗螺丝固定在墙上，水平误差不超过两度，然后把机器挂上支架并接通电源。\n",
}


class Replying(ScriptedEngine):
    """A chat engine whose answer is a function of the messages."""

    def __init__(self) -> None:
        super().__init__("echo")
        self.reply: Callable[[list[Message]], str] = lambda messages: messages[-1].text

    def chat(self, messages: Any, sampling: Any) -> Any:
        self.asked.append((list(messages), sampling))
        return self._follow(spoken(self.reply(list(messages))))


@pytest.fixture
def engine() -> Replying:
    return Replying()


@pytest.fixture
def gateway(home: Path, engine: Replying) -> Iterator[Gateway]:
    install_model(home, "echo")
    install_model(home, "hash", kind="embedding", engine="hash")
    pool = FakePool(engine, HashEmbedder(), SharedLetters())
    with serving(LocalBackend(Settings(home=home, port=0, n_ctx=4096, max_tokens=300), engines=pool)) as running:
        with running.client() as client:
            client.create_knowledge("手册")
            files = [(name, text.encode()) for name, text in DOCUMENTS.items()]
            list(client.follow_job(client.add_documents("手册", files)["id"]))
        yield running


@pytest.fixture
def client(gateway: Gateway) -> Iterator[Client]:
    with gateway.client() as client:
        yield client


@pytest.fixture
def run(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    from mofang.cli.main import build

    @contextmanager
    def reached(settings: Settings | None = None) -> Iterator[Client]:
        with gateway.client() as client:
            yield client

    monkeypatch.setattr("mofang.api.gateway", reached)
    monkeypatch.setenv("COLUMNS", "100")
    return lambda *arguments: CliRunner().invoke(build(), list(arguments), catch_exceptions=False)


def finish(client: Client, job: dict[str, Any]) -> dict[str, Any]:
    last = list(client.follow_job(job["id"]))[-1]
    assert last["type"] == "done", last
    return dict(last["result"])


def lines(path: Path, *rows: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def beir(tmp_path: Path) -> Path:
    folder = tmp_path / "beir"
    lines(folder / "queries.jsonl", {"_id": "q1", "text": "保修期几年"}, {"_id": "q2", "text": "用酒精擦外壳行吗"})
    (folder / "qrels").mkdir()
    (folder / "qrels" / "test.tsv").write_text(
        "query-id\tcorpus-id\tscore\nq1\t保修\t1\nq2\t清洁\t1\n", encoding="utf-8"
    )
    return folder


def test_a_beir_set_over_http(client: Client, beir: Path) -> None:
    result = finish(client, client.evaluate_knowledge("手册", api.set_files(beir)))
    assert (result["n_questions"], result["n_judged"], result["reranker"], result["answers"]) == (2, 2, None, None)
    assert list(result["measures"]) == ["bm25", "dense", "fused"]
    assert result["measures"]["bm25"] == {
        "recall@1": 1.0, "recall@5": 1.0, "recall@10": 1.0, "recall@50": 1.0, "mrr@10": 1.0, "ndcg@10": 1.0,
    }  # fmt: skip
    assert result["measures"]["dense"]["recall@10"] == 1.0, "three documents: all are candidates"
    for row in result["questions"]:
        assert row["ranks"]["bm25"] == 1 and row["ranks"]["dense"] in (1, 2, 3)
    assert result["latency_ms"]["n"] == 2 and result["latency_ms"]["p99"] >= result["latency_ms"]["p50"] > 0


def test_the_figures_are_those_of_the_search_that_people_get(client: Client, beir: Path) -> None:
    result = finish(client, client.evaluate_knowledge("手册", api.set_files(beir)))
    for row in result["questions"]:
        titles = [hit["title"] for hit in client.search(["手册"], row["question"])]
        wanted = {"q1": "保修.md", "q2": "清洁.md"}[row["id"]]
        assert titles.index(wanted) + 1 == row["ranks"]["fused"]


def test_a_reranker_is_measured_where_there_is_one(home: Path, client: Client, beir: Path) -> None:
    install_model(home, "letters", kind="reranker", engine="letters")
    result = finish(client, client.evaluate_knowledge("手册", api.set_files(beir)))
    assert result["reranker"] == "letters" and list(result["measures"])[-1] == "reranked"
    assert all(row["ranks"]["reranked"] == 1 for row in result["questions"]), "shared letters find these two"


def test_answers_are_judged_by_what_they_cite(client: Client, engine: Replying, tmp_path: Path) -> None:
    def reply(messages: list[Message]) -> str:
        if "价格" in messages[-1].text.rsplit("问题：", 1)[-1]:
            return "资料中没有找到。"
        block = messages[-1].text
        number = block[: block.index("保修期为两年")].rsplit("[", 1)[1][0]
        return f"两年[{number}]。"

    engine.reply = reply
    questions = lines(
        tmp_path / "题.jsonl",
        {"question": "保修期几年", "document": "保修", "spans": ["整机保修期为两年"]},
        {"question": "价格是多少", "unanswerable": True},
    )
    result = finish(client, client.evaluate_knowledge("手册", api.set_files(questions), answers=True))
    answers = result["answers"]
    assert (answers["citation_precision"], answers["citation_recall"], answers["refusal"]["f1"]) == (1.0, 1.0, 1.0)
    first, second = result["questions"]
    assert first["cited"][0]["document"] == "保修.md" and not first["refused"] and second["refused"]
    assert second["ranks"] is None and result["n_unanswerable"] == 1


def test_a_bad_set_is_refused_at_once(client: Client, tmp_path: Path) -> None:
    for row, code in (
        ({"question": ""}, "bad_field"),
        ({"question": "甲", "document": "没有.md"}, "other_documents"),
        ({"question": "甲", "document": "保修", "spans": ["不在里面"]}, "no_quote"),
    ):
        path = lines(tmp_path / "坏.jsonl", row)
        with pytest.raises(ApiError) as caught:
            client.evaluate_knowledge("手册", api.set_files(path))
        assert (caught.value.status, caught.value.code) == (400, code)
        assert code == "other_documents" or "坏.jsonl:1" in caught.value.message()
    assert all(job["kind"] == "ingest" for job in client.jobs()), "no job was begun"


# ---- from the command line ----


def test_the_command_adds_a_corpus_shows_a_table_and_draws(
    run: Callable[..., Result], client: Client, beir: Path, tmp_path: Path
) -> None:
    corpus = [{"_id": name.removesuffix(".md"), "title": "", "text": text} for name, text in DOCUMENTS.items()]
    lines(beir / "corpus.jsonl", *corpus)
    client.create_knowledge("新库")
    refused = run("kb", "eval", "新库", str(beir))
    assert refused.exit_code == 1 and "--add" in refused.output
    picture = tmp_path / "图.svg"
    shown = run("kb", "eval", "新库", str(beir), "--add", "--picture", str(picture))
    assert shown.exit_code == 0, shown.output
    assert len(client.documents("新库")) == 3
    for word in ("recall@10", "mrr@10", "关键词", "向量", "融合", "p50"):
        assert word in shown.output
    drawn = ET.fromstring(picture.read_text(encoding="utf-8"))
    bars = [
        one
        for one in drawn.iter("{http://www.w3.org/2000/svg}rect")
        if one.find("{http://www.w3.org/2000/svg}title") is not None
    ]
    assert len(bars) == 3 * 6, "three legs, six measures"
    result = json.loads(run("kb", "eval", "新库", str(beir), "--json").stdout)
    assert result["measures"]["bm25"]["mrr@10"] == 1.0
    tall = {bar[0].text: float(bar.attrib["height"]) for bar in bars}
    assert tall["bm25 mrr@10: 1.0000"] == max(tall.values())
    wrong = run("kb", "eval", "新库", str(tmp_path / "none"))
    assert wrong.exit_code == 2 and "none" in wrong.output


def test_sharing_from_the_command_line(run: Callable[..., Result], client: Client) -> None:
    key = client.create_key("小王")
    shared = run("kb", "share", "手册", "小王")
    assert shared.exit_code == 0 and key["id"] in shared.output
    assert json.loads(run("kb", "share", "手册", "--json").stdout) == [{"key": key["id"], "name": "小王"}]
    assert run("kb", "share", "手册", key["id"], "--revoke").exit_code == 0 and client.readers("手册") == []
    nobody = run("kb", "share", "手册", "小李")
    assert nobody.exit_code == 1 and "小李" in nobody.output


# ---- drafted questions ----

GOOD = {
    "保修期": ("整机能保修多久？", "整机保修期为两年"),
    "酒精": ("擦外壳能用酒精吗？", "不可以使用酒精或汽油"),
    "支架": ("支架用几颗螺丝固定？", "用四颗螺丝固定在墙上"),
}


def drafting(messages: list[Message]) -> str:
    question, answer = next(pair for word, pair in GOOD.items() if word in messages[-1].text)
    return json.dumps({"question": question, "answer": answer}, ensure_ascii=False)


def test_drafts_are_rows_that_the_evaluation_takes(
    client: Client, engine: Replying, tmp_path: Path, run: Callable[..., Result]
) -> None:
    engine.reply = drafting
    out = tmp_path / "题.jsonl"
    said = run("kb", "questions", "手册", "-o", str(out), "-n", "3")
    assert said.exit_code == 0, said.output
    rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert {row["question"] for row in rows} == {question for question, _ in GOOD.values()}
    for row in rows:
        assert row["checked"] is False
        [document] = [one for one in client.documents("手册") if one["name"] == row["document"]]
        span = client.document_text("手册", document["id"], *row["spans"][0])["text"]
        assert row["answer"] in span
    assert engine.asked[0][1].options["response_format"]["type"] == "json_schema"
    result = finish(client, client.evaluate_knowledge("手册", api.set_files(out)))
    assert result["n_judged"] == 3


def test_drafting_goes_on_where_it_was_killed(client: Client, engine: Replying, tmp_path: Path) -> None:
    engine.reply = drafting
    out = tmp_path / "题.jsonl"
    assert api.draft_questions(client, "手册", out, n=1)["kept"] == 1
    first, asked = out.read_bytes(), len(engine.asked)
    out.write_bytes(first + b'{"question": "cut')
    steps: list[dict[str, Any]] = []
    assert api.draft_questions(client, "手册", out, n=3, tell=steps.append) == {"kept": 3, "dropped": {}}
    assert out.read_bytes().startswith(first) and len(out.read_text(encoding="utf-8").splitlines()) == 3
    assert len(engine.asked) == asked + 2 and steps[-1]["done"] == 3
    assert api.draft_questions(client, "手册", out, n=3)["kept"] == 3 and len(engine.asked) == asked + 2
    (tmp_path / "别的.jsonl").write_text('{"a": 1}\n')
    with pytest.raises(Invalid, match="别的"):
        api.draft_questions(client, "手册", tmp_path / "别的.jsonl")


def test_bad_drafts_are_dropped_and_counted(client: Client, engine: Replying, tmp_path: Path) -> None:
    engine.reply = lambda _: json.dumps({"question": "这段讲了什么？", "answer": "不知道"})
    counts = api.draft_questions(client, "手册", tmp_path / "a.jsonl", n=3)
    assert counts == {"kept": 0, "dropped": {"points": 3}}
    engine.reply = lambda _: "我不会写 JSON"
    assert api.draft_questions(client, "手册", tmp_path / "b.jsonl", n=3)["dropped"] == {"unreadable": 3}


def test_passages_are_drawn_the_same_way_each_time(client: Client) -> None:
    every = client.passages("手册", n=100, seed=3)
    assert len(every) == 3 and client.passages("手册", n=2, seed=3) == every[:2]
    assert sorted(hit["title"] for hit in every) == sorted(DOCUMENTS)


# ---- drafted questions, over HTTP ----


def test_drafts_are_kept_checked_and_measured_with(client: Client, engine: Replying) -> None:
    engine.reply = drafting
    assert client.questions("手册") == []
    assert finish(client, client.draft_questions("手册", 2)) == {"kept": 2, "dropped": {}}
    first, second = client.questions("手册")
    assert (first["id"], second["id"], first["state"]) == ("q1", "q2", "open")
    span = client.document_text("手册", first["document_id"], *first["spans"][0])["text"]
    assert first["passage"] == span and first["answer"] in span
    asked = len(engine.asked)
    assert finish(client, client.draft_questions("手册", 5))["kept"] == 1, "there are three passages"
    assert len(engine.asked) == asked + 1 and [row["id"] for row in client.questions("手册")] == ["q1", "q2", "q3"]
    changed = client.change_question("手册", "q1", question=f"请问{first['question']}", state="accepted")
    assert changed["question"].startswith("请问") and changed["document_id"] == first["document_id"]
    client.change_question("手册", "q2", state="dropped")
    (line,) = client.question_set("手册").splitlines()
    assert json.loads(line) == {
        "id": "q1", "question": changed["question"], "answer": first["answer"], "document": first["document"],
        "spans": [first["passage"]], "checked": True,
    }  # fmt: skip
    result = finish(client, client.evaluate_knowledge("手册", [("题.jsonl", BytesIO(client.question_set("手册")))]))
    assert (result["n_questions"], result["n_judged"]) == (1, 1)
    client.forget_questions("手册")
    assert client.questions("手册") == [] and client.question_set("手册") == b""


def test_a_dropped_question_is_not_asked_again(client: Client, engine: Replying) -> None:
    engine.reply = drafting
    finish(client, client.draft_questions("手册", 3))
    for row in client.questions("手册"):
        client.change_question("手册", row["id"], state="dropped")
    asked = len(engine.asked)
    assert (
        finish(client, client.draft_questions("手册", 3)) == {"kept": 0, "dropped": {}} and len(engine.asked) == asked
    )


def test_what_was_drafted_before_a_stop_is_kept(
    client: Client, engine: Replying, gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.reply = drafting
    hold = gateway.event()

    def chat(messages: Any, sampling: Any) -> Any:
        engine.asked.append((list(messages), sampling))
        said = spoken(drafting(list(messages)))
        return engine._follow(said if len(engine.asked) == 1 else [hold, *said])

    monkeypatch.setattr(engine, "chat", chat)
    job = client.draft_questions("手册", 3)
    wait_until(lambda: len(engine.asked) == 2)
    assert client.draft_questions("手册", 3)["id"] == job["id"], "one draft of a base at a time"
    client.stop_job(job["id"])
    assert client.job(job["id"])["status"] == "stopped" and len(client.questions("手册")) == 1
    assert engine.open == 0, "the model was told to stop"


def test_a_changed_document_is_told_of_where_it_is_measured(client: Client, engine: Replying) -> None:
    engine.reply = drafting
    finish(client, client.draft_questions("手册", 3))
    for row in client.questions("手册"):
        client.change_question("手册", row["id"], state="accepted")
    list(client.follow_job(client.add_documents("手册", [("保修.md", "# 保修\n\n现在终身保修。".encode())])["id"]))
    with pytest.raises(ApiError) as caught:
        client.evaluate_knowledge("手册", [("题.jsonl", BytesIO(client.question_set("手册")))])
    assert caught.value.code == "no_quote" and "题.jsonl:" in caught.value.message()


def test_bad_wishes_for_questions_are_refused(client: Client, engine: Replying, home: Path) -> None:
    client.create_knowledge("空库")
    last = list(client.follow_job(client.draft_questions("空库")["id"]))[-1]
    assert last["type"] == "error" and last["error"]["code"] == "nothing_to_draft"
    engine.reply = drafting
    finish(client, client.draft_questions("手册", 1))
    for call, status in (
        (lambda: client.draft_questions("没有"), 404),
        (lambda: client.draft_questions("手册", 0), 400),
        (lambda: client.draft_questions("手册", model="hash"), 400),
        (lambda: client.change_question("手册", "q9", state="open"), 404),
        (lambda: client.change_question("手册", "q1", state="好"), 400),
        (lambda: client.change_question("手册", "q1", question=" "), 400),
    ):
        with pytest.raises(ApiError) as caught:
            call()
        assert caught.value.status == status, caught.value.fault
    (home / "knowledge" / "手册" / "questions.jsonl").write_text('{"a": 1}\n')
    with pytest.raises(ApiError) as broken:
        client.questions("手册")
    assert broken.value.code == "drafted_broken"


def test_who_may_read_a_base_checks_no_questions(gateway: Gateway, client: Client, engine: Replying) -> None:
    engine.reply = drafting
    finish(client, client.draft_questions("手册", 1))
    key, other = client.create_key("小王"), client.create_key("小李")
    client.share_knowledge("手册", key["id"])
    with Client(gateway.url, key["key"]) as reader, Client(gateway.url, other["key"]) as stranger:
        assert [row["id"] for row in reader.questions("手册")] == ["q1"]
        for call, status in (
            (lambda: reader.draft_questions("手册"), 403),
            (lambda: reader.change_question("手册", "q1", state="accepted"), 403),
            (lambda: reader.forget_questions("手册"), 403),
            (lambda: stranger.questions("手册"), 404),
            (lambda: stranger.question_set("手册"), 404),
        ):
            with pytest.raises(ApiError) as caught:
                call()
            assert caught.value.status == status
    assert client.questions("手册")[0]["state"] == "open"


# ---- ask ----


def test_ask_answers_with_sources(client: Client, gateway: Gateway, engine: Replying) -> None:
    engine.reply = lambda messages: "保修期为两年[1]。"
    whole = client.ask("手册", "整机保修期是几年？")
    (cited,) = [source for source in whole["sources"] if source["cited"]]
    assert whole["answer"] == f"保修期为两年[{cited['number']}]。" and "两年" in cited["text"]
    assert whole["knowledge"] == "手册" and whole["model"] == "echo" and whole["usage"]["completion_tokens"] > 0
    with (
        gateway.http() as http,
        http.stream("POST", "/v1/knowledge/手册/ask", json={"question": "几年", "stream": True}) as got,
    ):
        events = [json.loads(line[6:]) for line in got.iter_lines() if line.startswith("data: ")]
    assert [event["type"] for event in events if event["type"] in ("sources", "done")] == ["sources", "done"]
    shown = "".join(event["content"] for event in events if event["type"] == "delta")
    (cited,) = [source for source in events[-1]["sources"] if source["cited"]]
    assert shown == events[-1]["answer"] == f"保修期为两年[{cited['number']}]。" and "两年" in cited["text"]
    with pytest.raises(ApiError) as none:
        client.ask("没有", "几年")
    assert none.value.code == "knowledge_not_found"
    engine.script = None
    with pytest.raises(ApiError) as field:
        client.ask("手册", "几年", temprature=0)
    assert field.value.status == 400
    wait_until(lambda: engine.open == 0)


def test_what_the_base_has_nothing_on_is_refused_by_no_model(
    client: Client, gateway: Gateway, engine: Replying
) -> None:
    refused = client.ask("手册", "足球越位")
    assert refused["answer"].startswith("资料中没有找到") and "手册" in refused["answer"]
    assert engine.asked == [] and refused["usage"]["completion_tokens"] == 0
    assert refused["sources"] and not any(source["cited"] for source in refused["sources"])
    assert client.ask("手册", "你好")["sources"] == [] and len(engine.asked) == 1, "a greeting is the model's"
    body = {"model": "auto", "knowledge": ["手册"], "messages": [{"role": "user", "content": "足球越位"}]}
    with gateway.http() as http:
        written = http.post("/v1/chat/completions", json={**body, "response_format": {"type": "json_object"}}).json()
    assert len(engine.asked) == 2 and not written["choices"][0]["message"]["content"].startswith("资料中没有找到"), (
        "of a form"
    )


def test_the_official_client_finds_the_sources_on_the_last_chunk(gateway: Gateway, engine: Replying) -> None:
    engine.reply = lambda messages: "保修期为两年[1]。"
    with openai.OpenAI(
        base_url=f"{gateway.url}/v1", api_key="none", http_client=httpx.Client(trust_env=False), max_retries=0
    ) as official:
        messages: Any = [{"role": "user", "content": "保修期几年？"}]
        whole = official.chat.completions.create(model="auto", messages=messages, extra_body={"knowledge": ["手册"]})
        chunks = list(
            official.chat.completions.create(
                model="auto", messages=messages, stream=True, extra_body={"knowledge": ["手册"]}
            )
        )
    sources: Any = whole.model_extra and whole.model_extra["sources"]
    assert sum(source["cited"] for source in sources) == 1 and sources[0]["title"] in DOCUMENTS
    assert chunks[-1].model_extra and chunks[-1].model_extra["sources"] == sources
    assert all("sources" not in (chunk.model_extra or {}) for chunk in chunks[:-1])


def test_a_search_can_show_every_candidate_of_both_legs(client: Client) -> None:
    every = client.search(["手册"], "保修期几年", k=None)
    assert sorted(hit["dense_rank"] for hit in every) == [1, 2, 3] and every[0]["bm25_rank"] == 1
