"""Examples on disk: the same bit for bit as in memory, found again by content, whole or not there."""

import json
import random
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tiny_llama
from mofang.data import cache, encode
from mofang.data.cache import Prepared, prepare
from mofang.data.mix import everything, hold_out, weigh
from mofang.data.pack import pack
from mofang.data.readers import Layout
from mofang.data.rows import Conversation, Document, Pair
from mofang.errors import Conflict, Invalid, Unreadable

LONG = "长" * 100_000


def write(path: Path, *records: dict) -> Path:
    path.write_text("\n".join(json.dumps(record, ensure_ascii=False) for record in records), encoding="utf-8")
    return path


def talk(number: int) -> dict:
    return {"instruction": f"问题 {number}", "output": f"答案 {number * number}。" * (1 + number % 3)}


def prepared(path: Path, tmp_path: Path, *, max_length: int = 200, kind: type = Conversation, **fields) -> Prepared:
    return prepare(path, tiny_llama.tokenizer(), folder=tmp_path / "cache", max_length=max_length, kind=kind, **fields)


def told(found) -> list[tuple]:
    return [(one.ids.tolist(), one.mask.tolist(), one.file, one.row, one.cut, one.digest) for one in found]


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_what_is_kept_is_what_was_encoded_and_a_second_run_reads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "a.jsonl", *map(talk, range(30)))
    first = prepared(path, tmp_path)
    files = bytes_of(first.folder)
    plain = encode.encode(list(cache.rows(path, Layout())), tiny_llama.tokenizer(), max_length=200)
    assert told(first) == told(plain.examples) and first.meta["n_rows"] == 30
    monkeypatch.setattr(cache, "examples", lambda *_, **__: pytest.fail("tokenized again"))
    second = prepared(path, tmp_path)
    assert told(second) == told(first) and bytes_of(second.folder) == files
    assert not second[0].ids.flags.writeable, "mapped, not read"
    assert not list((tmp_path / "cache").glob("*.part"))
    monkeypatch.undo()
    shutil.rmtree(tmp_path / "cache")
    assert bytes_of(prepared(path, tmp_path).folder) == files, "built again, it is the same bit for bit"


def test_whatever_decides_the_ids_decides_the_key(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", *map(talk, range(3)))
    tokenizer = tiny_llama.tokenizer()

    def key(path: Path = path, tokenizer=tokenizer, max_length: int = 200, **fields) -> str:
        found = prepare(path, tokenizer, folder=tmp_path / "cache", max_length=max_length, kind=Conversation, **fields)
        return found.folder.name

    moved = shutil.copy(path, tmp_path / "moved.jsonl")
    assert key(Path(moved)) == key()
    others = {
        key(max_length=100),
        key(layout=Layout("alpaca")),
        key(layout=Layout(columns={"output": "output"})),
        key(tokenizer=replace(tokenizer, chat_template=" " + tokenizer.chat_template)),
        key(tokenizer=tiny_llama.tokenizer(add_bos=True)),
        key(write(tmp_path / "b.jsonl", *map(talk, range(1, 4)))),
    }
    assert len(others) == 6 and key() not in others


def test_a_moved_file_is_told_by_its_new_place(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", talk(1))
    prepared(path, tmp_path)
    path.rename(tmp_path / "b.jsonl")
    assert prepared(tmp_path / "b.jsonl", tmp_path)[0].file.name == "b.jsonl"


def test_a_folder_is_one_source_and_says_what_it_left_out(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    write(tmp_path / "in" / "a.jsonl", talk(1), talk(2))
    write(tmp_path / "in" / "b.jsonl", talk(3))
    (tmp_path / "in" / "c.png").write_bytes(b"x")
    found = prepared(tmp_path / "in", tmp_path)
    assert [(one.file.name, one.row) for one in found] == [("a.jsonl", 1), ("a.jsonl", 2), ("b.jsonl", 1)]
    assert [path.name for path in found.skipped] == ["c.png"] and len(found.files) == 2


def test_nothing_half_written_stays_and_what_is_damaged_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "a.jsonl", talk(1), {"instruction": "x", "output": ""})
    with pytest.raises(Unreadable):
        prepared(path, tmp_path)
    assert not [one for one in (tmp_path / "cache").iterdir() if one.is_dir()]
    write(path, talk(1))
    found = prepared(path, tmp_path)
    whole = told(found)
    (found.folder / "ids.bin").write_bytes(b"x")
    assert told(prepared(path, tmp_path)) == whole
    stale = tmp_path / "cache" / f".{found.folder.name}.part"
    stale.mkdir()
    (stale / "ids.bin").write_bytes(b"killed")
    shutil.rmtree(found.folder)
    assert told(prepared(path, tmp_path)) == whole and not stale.exists()

    def growing(*given, **named):
        with path.open("a") as file:
            file.write("\n" + json.dumps(talk(2)))
        return encode.examples(*given, **named)

    shutil.rmtree(found.folder)
    monkeypatch.setattr(cache, "examples", growing)
    with pytest.raises(Conflict) as raised:
        prepared(path, tmp_path)
    assert raised.value.code == "changed"


def test_what_is_cut_away_is_counted_and_never_learned(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.jsonl", talk(1), {"instruction": LONG, "output": "答"}, {"instruction": "问", "output": LONG}
    )
    found = prepared(path, tmp_path)
    assert (found.meta["n_rows"], found.meta["n_dropped"], found.meta["n_cut"]) == (3, 1, 1)
    assert found.first_dropped == (path, 2) and [one.row for one in found] == [1, 3]
    assert len(found[1].ids) == 200 and found[1].ids[-1] == tiny_llama.tokenizer().eos_id
    nothing = prepared(write(tmp_path / "b.jsonl", {"instruction": LONG, "output": "答"}), tmp_path)
    assert len(nothing) == 0 and nothing[:] == [] and everything([nothing])[:] == []


def test_one_line_and_empty_answers(tmp_path: Path) -> None:
    one = prepared(write(tmp_path / "a.jsonl", talk(4)), tmp_path)
    assert len(one) == 1 and pack([len(one[0].ids)], 64) == [[0]]
    with pytest.raises(Unreadable) as raised:
        prepared(write(tmp_path / "b.jsonl", *[{"instruction": "问", "output": ""}] * 3), tmp_path)
    assert (raised.value.values["row"], raised.value.values["field"]) == (1, "output")
    with pytest.raises(Unreadable) as raised:
        prepared(write(tmp_path / "c.jsonl"), tmp_path)
    assert raised.value.code == "empty"


def test_the_two_of_a_pair_stay_together_or_go_together(tmp_path: Path) -> None:
    pairs = [{"prompt": "问", "chosen": f"好{n}", "rejected": f"坏{n}"} for n in range(10)]
    long = {"prompt": "问" * 60, "chosen": "好", "rejected": "坏"}
    path = write(tmp_path / "a.jsonl", long, *pairs)
    found = prepared(path, tmp_path, kind=Pair)
    assert found.meta["n_dropped"] == 2 and len(found) == 20
    learned, held = hold_out(everything([found]), 0.3)
    for part in (learned, held):
        assert len(part) % 2 == 0
        for chosen, rejected in zip(part[0::2], part[1::2], strict=True):
            assert chosen.row == rejected.row and chosen.ids.tolist() != rejected.ids.tolist()
    with pytest.raises(Invalid) as raised:
        prepared(path, tmp_path)
    assert raised.value.code == "other_kind"


@given(lengths=st.lists(st.integers(1, 60), min_size=1, max_size=6), max_length=st.integers(16, 40), bos=st.booleans())
@settings(max_examples=40)
def test_every_token_of_a_document_is_learned_once(lengths: list[int], max_length: int, bos: bool) -> None:
    tokenizer = tiny_llama.tokenizer(add_bos=bos)
    rng = random.Random(str(lengths))
    documents = [Document("".join(rng.choices("abc 文\n", k=length)), Path("x"), n) for n, length in enumerate(lengths)]
    found = encode.encode(documents, tokenizer, max_length=max_length)
    assert not found.dropped and not found.n_cut
    for document in documents:
        parts = [one for one in found.examples if one.row == document.row]
        ids = [*tokenizer.begin(), *tokenizer.encode(document.text), tokenizer.eos_id]
        learned = [token for part in parts for token in part.ids[1:].tolist()]
        assert [parts[0].ids[0], *learned] == ids
        assert all(len(part.ids) <= max_length and part.mask[1:].all() for part in parts)


def test_pieces_of_one_file_end_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mofang.data.files import text

    monkeypatch.setattr(text, "PIECE", 50)
    (tmp_path / "a.txt").write_text("一行文字。\n" * 60)
    found = prepared(tmp_path / "a.txt", tmp_path, kind=Document)
    end = tiny_llama.tokenizer().eos_id
    assert len(found) > 3 and [one.ids.tolist().count(end) for one in found] == [0] * (len(found) - 1) + [1]


def test_what_is_held_out_follows_from_the_rows_alone(tmp_path: Path) -> None:
    numbers = list(range(60))
    one = write(tmp_path / "a.jsonl", *map(talk, [*numbers, 7, 7]))
    random.Random(1).shuffle(numbers)
    two, three = (
        write(tmp_path / "b.jsonl", *map(talk, numbers[:20])),
        write(tmp_path / "c.jsonl", *map(talk, numbers[20:])),
    )

    def sides(*paths: Path) -> tuple[set, set]:
        learned, held = hold_out(everything([prepared(path, tmp_path) for path in paths]), 0.25)
        assert len(learned) + len(held) == sum(len(prepared(path, tmp_path)) for path in paths)
        return {one.digest for one in learned}, {one.digest for one in held}

    learned, held = sides(one)
    assert not learned & held and 10 <= len(held) <= 17
    assert abs(len(sides(two, three)[1] & held) - len(held)) <= 1, "order and files do not matter"
    assert hold_out(everything([prepared(one, tmp_path)]), 0.0)[1][:] == []


def test_a_lone_document_is_parted_by_stretches(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("一行文字。\n" * 300)
    found = everything([prepared(tmp_path / "a.txt", tmp_path, kind=Document)])
    assert not hold_out(found, 0.25)[1], "whole rows only"
    learned, held = hold_out(found, 0.25, whole_rows=False)
    assert len(held) == round(0.25 * len(found)) and len(learned) + len(held) == len(found)
    assert not {tuple(place) for place in learned.places} & {tuple(place) for place in held.places}


@given(weights=st.tuples(*[st.sampled_from([0.25, 0.5, 1.0, 1.5, 2.0])] * 2))
@settings(max_examples=12, deadline=None)
def test_weights_say_how_often(weights: tuple[float, float], tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("weights")
    sources = [
        prepared(write(folder / "a.jsonl", *map(talk, range(20))), folder),
        prepared(write(folder / "b.jsonl", *map(talk, range(20, 60))), folder),
    ]
    found = weigh(everything(sources), weights)
    for number, (source, weight) in enumerate(zip(sources, weights, strict=True)):
        mine = found.places[found.places[:, 0] == number, 1]
        counts = np.bincount(mine, minlength=len(source))
        assert counts.sum() == weight * len(source) and counts.max() - counts.min() <= 1
    assert found.column("length").tolist() == [len(one.ids) for one in found]


@given(lengths=st.lists(st.integers(1, 50), max_size=60), room=st.integers(10, 60))
def test_the_fast_packing_is_best_fit(lengths: list[int], room: int) -> None:
    rows: list[list[int]] = []
    left: list[int] = []
    for number in sorted(range(len(lengths)), key=lambda number: (-lengths[number], number)):
        fitting = [row for row, free in enumerate(left) if free >= lengths[number] and free > 0]
        if fitting:
            row = min(fitting, key=lambda row: (left[row], row))
            rows[row].append(number)
            left[row] -= lengths[number]
        else:
            rows.append([number])
            left.append(room - lengths[number])
    assert pack(lengths, room) == rows
