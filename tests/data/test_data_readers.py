"""Files of examples: what is read, and that a broken row is named by file, row and field."""

import json
import tempfile
from pathlib import Path

import pyarrow
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from mofang.data import FORMATS
from mofang.data.files import json as json_file
from mofang.data.files import text as text_file
from mofang.data.readers import Layout, files_of, read, rows
from mofang.data.rows import Conversation, Document
from mofang.errors import Invalid, NotFound, UnknownName, Unreadable
from mofang.messages import Message

ALPACA = {"instruction": "翻译", "input": "apple", "output": "苹果"}
MESSAGES = {
    "messages": [
        {"role": "system", "content": "短"},
        {"role": "user", "content": "问"},
        {"role": "assistant", "content": "答"},
    ]
}
SHAREGPT = {"conversations": [{"from": "human", "value": "问"}, {"from": "gpt", "value": "答"}]}
PAIRS = {"prompt": "问", "chosen": "好", "rejected": "坏"}
TEXT = {"text": "一段话。"}
SAMPLES = {"alpaca": ALPACA, "messages": MESSAGES, "sharegpt": SHAREGPT, "pairs": PAIRS, "text": TEXT}
TALKS = ("alpaca", "messages", "sharegpt")


def write(path: Path, *records: object) -> Path:
    path.write_text("\n".join(json.dumps(record, ensure_ascii=False) for record in records), encoding="utf-8")
    return path


def all_rows(*paths: Path, **layout) -> list:
    return [row for path in paths for file in files_of(path)[0] for row in rows(file, Layout(**layout))]


@pytest.mark.parametrize("name", FORMATS.names())
def test_every_format_is_recognized_in_every_file(name: str, tmp_path: Path) -> None:
    jsonl, whole = write(tmp_path / "a.jsonl", SAMPLES[name], SAMPLES[name]), tmp_path / "b.json"
    whole.write_text("\ufeff" + json.dumps([SAMPLES[name]]), encoding="utf-8")
    table = tmp_path / "c.parquet"
    parquet.write_table(pyarrow.Table.from_pylist([SAMPLES[name]]), table)
    found = all_rows(tmp_path)
    assert [(one.file.name, one.row) for one in found] == [
        ("a.jsonl", 1), ("a.jsonl", 2), ("b.json", 1), ("c.parquet", 1),
    ]  # fmt: skip
    assert len({one.digest() for one in found}) == 1, "what a row says does not depend on where it stands"
    assert all_rows(jsonl, format=name) == found[:2]
    if name in TALKS:
        assert all(one.messages[-1].role == "assistant" for one in found) and read([jsonl]) == found[:2]
    else:
        with pytest.raises(Invalid) as raised:
            read([jsonl])
        assert raised.value.code == "other_kind"


@pytest.mark.parametrize(
    "record",
    [
        {"system": "短", "instruction": "问", "input": "", "chosen": "好", "rejected": "坏"},
        {"system": "短", "prompt": "问", "chosen": "好", "rejected": "坏"},
        {"system": "短", "conversations": [{"from": "human", "value": "问"}], "chosen": {"from": "gpt", "value": "好"}, "rejected": {"from": "gpt", "value": "坏"}},
        {"prompt": [{"role": "system", "content": "短"}, {"role": "user", "content": "问"}], "chosen": [{"role": "assistant", "content": "好"}], "rejected": [{"role": "assistant", "content": "坏"}]},
        {key: [{"role": "system", "content": "短"}, {"role": "user", "content": "问"}, {"role": "assistant", "content": text}] for key, text in (("chosen", "好"), ("rejected", "坏"))},
        {"prompt": [{"role": "system", "content": "短"}, {"role": "user", "content": "问"}], **{key: [{"role": "system", "content": "短"}, {"role": "user", "content": "问"}, {"role": "assistant", "content": text}] for key, text in (("chosen", "好"), ("rejected", "坏"))}},
    ],
)  # fmt: skip
def test_pairs_in_every_layout_are_the_same_pair(record: dict, tmp_path: Path) -> None:
    (found,) = all_rows(write(tmp_path / "a.jsonl", record))
    assert found.prompt == [Message("system", "短"), Message("user", "问")]
    assert (found.chosen, found.rejected) == ([Message("assistant", "好")], [Message("assistant", "坏")])


def test_messages_bring_their_tools(tmp_path: Path) -> None:
    tool = {"type": "function", "function": {"name": "weather", "parameters": {}}}
    call = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
    record = {
        "messages": [
            {"role": "user", "content": "天气"},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "content": "晴", "tool_call_id": "1"},
            {"role": "assistant", "content": "晴天"},
        ],
        "tools": [tool],
    }
    (found,) = all_rows(write(tmp_path / "a.jsonl", record))
    assert found.tools == [tool] and found.messages[1].tool_calls == [call] and found.messages[2].tool_call_id == "1"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "gb18030", "utf-16"])
def test_tables_of_any_office_with_columns_of_any_name(encoding: str, tmp_path: Path) -> None:
    path = tmp_path / "表.csv"
    path.write_bytes('编号,问题,回答\r\n1,"我们的问题,\r\n第二行",这是回答\r\n\r\n2,问二,答二\r\n'.encode(encoding))
    first, second = all_rows(path, columns={"instruction": "问题", "output": "回答"})
    assert (first.row, second.row) == (2, 5)
    assert first.messages == [Message("user", "我们的问题,\n第二行"), Message("assistant", "这是回答")]
    assert second.messages == [Message("user", "问二"), Message("assistant", "答二")]


def test_a_misspelled_column_is_said_even_for_an_optional_field(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", {"instruction": "a", "output": "b", "supplement": "c"})
    assert all_rows(path, columns={"input": "supplement"})[0].messages[0].text == "a\nc"
    with pytest.raises(Unreadable) as raised:
        all_rows(path, columns={"input": "suplement"})
    assert (raised.value.code, raised.value.values["near"]) == ("no_column", "supplement")


def test_text_files_are_documents_whole_or_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "文.txt"
    path.write_text("一\n二\n三三三三\n四\n", encoding="gb18030")
    assert all_rows(path) == [Document("一\n二\n三三三三\n四\n", path, 1)]
    monkeypatch.setattr(text_file, "PIECE", 3)
    pieces = all_rows(path)
    assert "".join(piece.text for piece in pieces) == "一\n二\n三三三三\n四\n"
    assert [piece.more for piece in pieces] == [True] * (len(pieces) - 1) + [False] and len(pieces) > 2
    (tmp_path / "empty.md").write_text(" \n")
    assert all_rows(tmp_path / "empty.md") == []


def test_folders_are_read_in_order_and_what_is_no_example_is_told(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    write(tmp_path / "b" / "x.jsonl", ALPACA)
    (tmp_path / "a.txt").write_text("话")
    (tmp_path / "picture.png").write_bytes(b"x")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "c.json").write_text("{}")
    files, others = files_of(tmp_path)
    assert [file.name for file in files] == ["a.txt", "x.jsonl"] and [each.name for each in others] == ["picture.png"]
    assert [type(row) for row in all_rows(tmp_path)] == [Document, Conversation]
    with pytest.raises(Unreadable) as raised:
        files_of(tmp_path / ".git" / "..") and files_of(_empty(tmp_path))
    assert raised.value.code == "empty_folder"


def _empty(tmp_path: Path) -> Path:
    (tmp_path / "nothing").mkdir()
    return tmp_path / "nothing"


@given(st.lists(st.text(max_size=40), min_size=1, max_size=8), st.integers(1, 30), st.sampled_from([None, 2]))
def test_a_list_is_read_in_pieces_of_any_size(texts: list[str], size: int, indent: int | None) -> None:
    records = [{"text": f"x{text}", "n": [number, {"deep": 1.5}]} for number, text in enumerate(texts)]
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_file, "PIECE", size)
        path = Path(folder) / "a.json"
        path.write_text(json.dumps(records, ensure_ascii=False, indent=indent), encoding="utf-8", newline="")
        assert [record for _, record in json_file.records(path)] == records


def test_a_list_with_a_fault_names_its_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_file, "PIECE", 8)
    path = tmp_path / "a.json"
    for content, line in (
        ('[\n{"text": "a"},\n{"text": oops and more of it that follows}]', 3),
        ('[\n{"text": "a"}\n{"text": "b"}]', 3),
        ('[\n{"text": "a"},\n{"text": "b"', 3),
        ('[\n{"text": "a"}\n]\nrest', 4),
    ):
        path.write_text(content)
        with pytest.raises(Unreadable) as raised:
            list(json_file.records(path))
        assert (raised.value.code, raised.value.values["row"]) == ("not_json", line), content


def test_very_long_lines_are_read(tmp_path: Path) -> None:
    long = "长" * 100_000
    table = tmp_path / "a.csv"
    table.write_text(f"text\n{long * 2}\n", encoding="utf-8")
    path = write(tmp_path / "a.jsonl", {"text": long})
    assert [len(row.text) for row in all_rows(path, table)] == [100_000, 200_000]


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
    ({"instruction": "x", "output": " "}, "output"),
    ({"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": ""}]}, "messages[1].content"),
    ({**MESSAGES, "tools": "none"}, "tools"),
    ({"prompt": "x", "chosen": "y"}, "rejected"),
    ({"chosen": "x", "rejected": "y"}, "prompt"),
    ({"prompt": "x", "chosen": "y", "rejected": "y"}, "rejected"),
    ({"prompt": "x", "chosen": "", "rejected": "y"}, "chosen"),
    ({"text": "  "}, "text"),
]


@pytest.mark.parametrize("record, field", BROKEN)
def test_a_broken_row_is_named(record: dict, field: str, tmp_path: Path) -> None:
    good = next(sample for sample in SAMPLES.values() if sample.keys() & record.keys())
    path = write(tmp_path / "set.jsonl", good, record)
    with pytest.raises(Unreadable) as raised:
        all_rows(path)
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
    assert all_rows(write(tmp_path / "one.jsonl", ALPACA)) and len(read([tmp_path / "one.jsonl"])) == 1
    with pytest.raises(NotFound):
        read([tmp_path / "none.jsonl"])
    for name, content, wanted in (
        ("a.png", b"\x89PNG", "unknown_suffix"),
        ("a.txt", b"\0\1\2" * 99, "not_text"),
        ("a.parquet", b"PAR1", "broken_file"),
        ("a.csv", b"instruction,output\na,b,c\n", "bad_row"),
        ("a.csv", b'instruction,output\n"a', "bad_row"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(Unreadable) as raised:
            all_rows(tmp_path / name)
        assert raised.value.code == wanted
    with pytest.raises(UnknownName):
        read([write(tmp_path / "a.jsonl", ALPACA)], "alpacca")
