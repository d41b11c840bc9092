"""Drafted examples: what is kept, what is dropped and why, where each comes from, and going on after a kill."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from mofang import api
from mofang.data import draft
from mofang.data.readers import read
from mofang.errors import Conflict, Invalid, NotFound, Unreadable
from mofang.models.store import ModelStore
from mofang.settings import Settings
from mofang.text import drafts

TEXT = "清洁设备前先拔掉电源，再用干布擦拭外壳，不要用酒精，也不要让水流进散热孔里，擦完等十分钟再开机。"
PASSAGE = draft.Passage("手册.md", ("清洁",), TEXT, 0, len(TEXT))


class Model:
    """A gateway whose model says what `reply` makes of the messages; remembers what it was asked."""

    def __init__(self, reply: Callable[[list[dict[str, Any]]], str]) -> None:
        self.reply = reply
        self.asked: list[dict[str, Any]] = []

    def request(self, method: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
        assert (method, path) == ("POST", "/v1/chat/completions")
        self.asked.append(body)
        return {"choices": [{"message": {"content": self.reply(body["messages"])}}]}


def said(instruction: str, output: str) -> str:
    return json.dumps({"instruction": instruction, "output": output}, ensure_ascii=False)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    seeds = [
        ("把苹果翻译成英语", "apple"),
        ("写出三种水果", "苹果、梨、桃"),
        ("一年有几天", "三百六十五天"),
        ("鲸鱼是鱼吗", "不是，是哺乳动物"),
    ]
    path = tmp_path / "种子.jsonl"
    path.write_text("\n".join(said(*seed) for seed in seeds), encoding="utf-8")
    return path


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    folder = tmp_path / "文档"
    folder.mkdir()
    for name, text in (
        (
            "保修.md",
            "整机的保修期为两年，自购买之日算起，凭发票在维修站办理，人为造成的损坏不在保修的范围之内，需要自己付费。",
        ),
        (
            "安装.txt",
            "支架用四颗螺丝固定在墙上，每颗螺丝都要拧紧，安装之前请确认墙体能承受十公斤的重量，否则可能会掉下来。",
        ),
        ("清洁.md", PASSAGE.text),
    ):
        (folder / name).write_text(text, encoding="utf-8")
    (folder / "图.png").write_bytes(b"x")
    return folder


ABOUT = {
    "发票": ("办理保修凭什么？", "凭发票在维修站办理"),
    "螺丝": ("支架怎样固定？", "用四颗螺丝固定在墙上"),
    "酒精": ("外壳用什么擦？", "用干布擦拭外壳"),
}


def about(messages: list[dict[str, Any]]) -> str:
    return said(*next(pair for word, pair in ABOUT.items() if word in messages[-1]["content"]))


def counting() -> Callable[[list[dict[str, Any]]], str]:
    """A model that writes another task each time: nearly the same every second time."""
    words = iter("天地玄黄宇宙洪荒日月盈昃辰宿列张寒来暑往秋收冬藏")
    last = ""

    def reply(_: list[dict[str, Any]]) -> str:
        nonlocal last
        if last:
            again, last = f"请问，{last}", ""
            return said(again, "与前一条几乎一样的任务")
        last = f"解释{next(words)}{next(words)}{next(words)}{next(words)}"
        return said(last, f"这是第 {last[-1]} 条的回答")

    return reply


def test_rows_from_documents_name_their_passage_and_are_training_examples(documents: Path, tmp_path: Path) -> None:
    model, out = Model(about), tmp_path / "草稿.jsonl"
    counts = api.draft_instructions(model, [documents], out, n=3)
    assert counts == {"kept": 3, "dropped": {}, "skipped": [str(documents / "图.png")]}
    for row in lines(out):
        assert row["checked"] is False
        start, end = row["source"]["span"]
        text = (documents / row["source"]["document"]).read_text(encoding="utf-8")
        assert row["output"] in text[start:end]
    assert [one.messages[-1].text for one in read([out])] == [row["output"] for row in lines(out)]
    assert model.asked[0]["temperature"] == 0 and model.asked[0]["response_format"]["type"] == "json_schema"


def test_rows_from_tasks_are_new_and_name_what_was_shown(tasks: Path, tmp_path: Path) -> None:
    model, out = Model(counting()), tmp_path / "草稿.jsonl"
    counts = api.draft_instructions(model, [tasks], out, n=4)
    assert counts == {"kept": 4, "dropped": {"repeated": 3}, "skipped": []}
    rows = lines(out)
    assert len({row["instruction"] for row in rows}) == 4
    assert [row["source"]["attempt"] for row in rows] == [0, 2, 4, 6]
    names = {f"种子.jsonl:{number}" for number in range(1, 5)}
    assert all(len(row["source"]["tasks"]) == draft.SHOWN and set(row["source"]["tasks"]) <= names for row in rows)
    assert len({tuple(row["source"]["tasks"]) for row in rows}) > 1, "others are shown each time"
    assert [message["role"] for message in model.asked[0]["messages"]] == ["system", *["user", "assistant"] * 3, "user"]
    assert model.asked[0]["temperature"] > 0 and [body["seed"] for body in model.asked] == list(range(7))


@pytest.mark.parametrize("source", ["tasks", "documents"])
def test_drafting_goes_on_where_it_was_killed(source: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    where = request.getfixturevalue(source)
    reply = about if source == "documents" else counting()
    model, out = Model(reply), tmp_path / "草稿.jsonl"
    assert api.draft_instructions(model, [where], out, n=1)["kept"] == 1
    first = out.read_bytes()
    out.write_bytes(first + b'{"instruction": "cut')
    steps: list[dict[str, Any]] = []
    assert api.draft_instructions(model, [where], out, n=3, tell=steps.append)["kept"] == 3
    assert out.read_bytes().startswith(first) and len(lines(out)) == 3 and steps[-1]["done"] == 3
    asked = len(model.asked)
    assert api.draft_instructions(model, [where], out, n=3)["kept"] == 3 and len(model.asked) == asked
    sources = [json.dumps(row["source"]) for row in lines(out)]
    assert len(set(sources)) == 3, "no passage and no attempt is taken twice"


@pytest.mark.parametrize(
    ("instruction", "output", "passage", "why"),
    [
        ("擦外壳用什么？", "用干布擦拭外壳", PASSAGE, ""),
        ("擦？", "用干布擦拭外壳", PASSAGE, "short"),
        ("这段话说了什么？", "用干布擦拭外壳", PASSAGE, "points"),
        ("怎样把电源拔掉呢？", "用干布擦拭外壳", PASSAGE, "repeated"),
        ("保修多长时间？", "保修期为两年", PASSAGE, "unsupported"),
        ("保修多长时间？", "保修期为两年", None, ""),
        ("保修多长时间？", "保修多长时间", None, "echo"),
    ],
)
def test_bad_drafts_are_dropped(instruction: str, output: str, passage: draft.Passage | None, why: str) -> None:
    row = {"instruction": instruction, "output": output}
    assert draft.fault(row, passage, ["怎样把电源拔掉？"]) == why


def test_what_is_no_draft_is_counted_and_it_ends(tasks: Path, tmp_path: Path) -> None:
    model = Model(lambda _: "我不会写 JSON")
    counts = api.draft_instructions(model, [tasks], tmp_path / "a.jsonl", n=2)
    assert counts["kept"] == 0 and counts["dropped"] == {"unreadable": 60} and len(model.asked) == 60


def test_what_cannot_be_drafted_from_is_said(tmp_path: Path, tasks: Path) -> None:
    model = Model(about)
    (tmp_path / "空").mkdir()
    (tmp_path / "别的.jsonl").write_text('{"a": 1}\n')
    (tmp_path / "x.zzz").write_text("x")
    for sources, out, error, code in (
        ([tmp_path / "没有"], "o.jsonl", NotFound, "no_such_file"),
        ([tmp_path / "空"], "o.jsonl", Conflict, "nothing_to_draft"),
        ([tmp_path / "x.zzz"], "o.jsonl", Unreadable, "unknown_format"),
        ([tmp_path / "别的.jsonl"], "o.jsonl", Unreadable, "unknown_format"),
        ([tasks], "别的.jsonl", Invalid, "not_drafted"),
        ([tasks], "空", Invalid, "out_is_folder"),
    ):
        with pytest.raises(error) as raised:
            api.draft_instructions(model, sources, tmp_path / out)
        assert raised.value.code == code
    assert not model.asked and not (tmp_path / "o.jsonl").exists()


def test_the_command_says_what_was_kept_and_dropped(
    documents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from typer.testing import CliRunner

    from mofang.cli.data import app

    @contextmanager
    def gateway() -> Iterator[Model]:
        yield Model(about)

    monkeypatch.setattr(api, "gateway", gateway)
    result = CliRunner().invoke(app, ["draft", str(documents), "-o", str(tmp_path / "o.jsonl"), "-n", "5"])
    assert result.exit_code == 0, result.output
    assert (
        "3 条样例写在" in result.output
        and "图.png" in result.output.replace("\n", "")
        and "只起草出 3 条" in result.output
    )


@pytest.mark.model
@pytest.mark.timeout(900)
def test_a_real_model_drafts_rows_that_can_be_trained_on(
    documents: Path, tasks: Path, tmp_path: Path, home: Path, qwen: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What half a billion parameters write is no matter here: every row has its shape and source, and none is there twice."""
    monkeypatch.setenv("MOFANG_N_THREADS", "1")  # threads that wait for one another crawl on shared cores
    ModelStore(Settings(home=home)).add(qwen, "qwen")
    out, n_asked, sources = tmp_path / "草稿.jsonl", [], [documents / "清洁.md", tasks]
    with api.gateway() as client:
        counts = api.draft_instructions(client, sources, out, n=2, model="qwen", tell=n_asked.append)
        kept = lines(out)
        assert counts["kept"] == len(kept) == 2 and len(n_asked) == 2 + sum(counts["dropped"].values())
        assert set(counts["dropped"]) <= {"unreadable", "short", "points", "repeated", "echo", "unsupported"}
        again = api.draft_instructions(client, sources, out, n=2, model="qwen")
    assert again == {"kept": 2, "dropped": {}, "skipped": []} and lines(out) == kept
    asked = ["把苹果翻译成英语", "写出三种水果", "一年有几天", "鲸鱼是鱼吗"]
    for row in kept:
        assert row.keys() == {"instruction", "input", "output", "source", "checked"} and row["checked"] is False
        assert len(row["instruction"]) >= draft.MIN_INSTRUCTION and row["output"].strip() and row["input"] == ""
        assert not drafts.is_repeated(row["instruction"], asked)
        asked.append(row["instruction"])
        if "span" in row["source"]:
            start, end = row["source"]["span"]
            passage = (documents / row["source"]["document"]).read_text(encoding="utf-8")[start:end]
            assert len(passage) >= draft.MIN_PASSAGE and drafts.is_supported(row["output"], passage)
        else:
            assert len(row["source"]["tasks"]) == draft.SHOWN
    assert any("tasks" in row["source"] for row in kept), "the passage is one row at most"
    assert [one.messages[-1].text for one in read([out])] == [row["output"] for row in kept]
