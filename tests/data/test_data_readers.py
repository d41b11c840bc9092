"""Files of examples: what is read, and that a broken row is named by file, row and field."""

import json
from pathlib import Path

import pytest

from mofang.data import FORMATS
from mofang.data.readers import read
from mofang.errors import NotFound, UnknownName, Unreadable

ALPACA = {"instruction": "翻译", "input": "apple", "output": "苹果"}
MESSAGES = {
    "messages": [
        {"role": "system", "content": "短"},
        {"role": "user", "content": "问"},
        {"role": "assistant", "content": "答"},
    ]
}
SHAREGPT = {"conversations": [{"from": "human", "value": "问"}, {"from": "gpt", "value": "答"}]}
SAMPLES = {"alpaca": ALPACA, "messages": MESSAGES, "sharegpt": SHAREGPT}


def write(path: Path, *records: object) -> Path:
    path.write_text("\n".join(json.dumps(record, ensure_ascii=False) for record in records), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", FORMATS.names())
def test_every_format_is_recognized_and_ends_with_an_answer(name: str, tmp_path: Path) -> None:
    jsonl, whole = write(tmp_path / "a.jsonl", SAMPLES[name], SAMPLES[name]), tmp_path / "b.json"
    whole.write_text("﻿" + json.dumps([SAMPLES[name]]), encoding="utf-8")
    found = read([jsonl, whole])
    assert [(one.file.name, one.row) for one in found] == [("a.jsonl", 1), ("a.jsonl", 2), ("b.json", 1)]
    assert all(one.messages[-1].role == "assistant" for one in found)
    assert read([jsonl], name)[0].messages == found[0].messages


def test_alpaca_joins_input_and_keeps_history(tmp_path: Path) -> None:
    record = {**ALPACA, "system": "简短", "history": [["早", "早上好"]]}
    (found,) = read([write(tmp_path / "a.jsonl", record)])
    assert [(m.role, m.text) for m in found.messages] == [
        ("system", "简短"), ("user", "早"), ("assistant", "早上好"), ("user", "翻译\napple"), ("assistant", "苹果"),
    ]  # fmt: skip


BROKEN = [
    ({"instruction": "", "output": "x"}, "instruction"),
    ({"instruction": "x", "output": 3}, "output"),
    ({"instruction": "x", "output": "y", "history": [["x"]]}, "history"),
    ({"messages": []}, "messages"),
    ({"messages": [{"role": "user", "content": "x"}]}, "messages"),
    ({"messages": [{"role": "bot", "content": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": "user"}, {"role": "assistant", "content": "y"}]}, "messages[0].content"),
    ({"conversations": [{"from": "who", "value": "x"}]}, "conversations[0].from"),
]


@pytest.mark.parametrize("record, field", BROKEN)
def test_a_broken_row_is_named(record: dict, field: str, tmp_path: Path) -> None:
    good = next(sample for sample in SAMPLES.values() if sample.keys() & record.keys())
    path = write(tmp_path / "set.jsonl", good, record)
    with pytest.raises(Unreadable) as raised:
        read([path])
    assert raised.value.code == "bad_row"
    assert (raised.value.values["path"], raised.value.values["row"], raised.value.values["field"]) == (path, 2, field)
    assert "第 2 行" in raised.value.message("zh") and field in raised.value.message("en")


def test_other_faults_have_their_own_words(tmp_path: Path) -> None:
    def code(content: bytes) -> str:
        path = tmp_path / "set.jsonl"
        path.write_bytes(content)
        with pytest.raises(Unreadable) as raised:
            read([path])
        return raised.value.code

    assert code(b'{"instruction": "a", "output": "b"}\n{"instruction": ') == "not_json"
    assert code('{"instruction": "问"}'.encode("gbk")) == "not_utf8"
    assert code(b'{"prompt": "a"}') == "unknown_format"
    assert code(b'{"instruction": "a", "output": "b"}\n[1]') == "bad_row"
    assert code(b" \n") == "empty"
    with pytest.raises(NotFound):
        read([tmp_path / "none.jsonl"])
    with pytest.raises(UnknownName):
        read([write(tmp_path / "a.jsonl", ALPACA)], "alpacca")
