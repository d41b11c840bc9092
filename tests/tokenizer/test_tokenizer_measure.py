"""What is counted adds up; what is said of a vocabulary is true of it; the verdict follows its numbers."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import tiny_llama
from mofang import api
from mofang.errors import Conflict, Invalid, NotFound, Unreadable
from mofang.models.base import ModelFacts
from mofang.tokenizer import Tokenizer, append, extend, inspect, measure, named, texts, train
from mofang.tokenizer.card import card
from mofang.tokenizer.extend import Plan

CORPUS = ["系统安装程序会询问您的语言。", "Debian 系统 2026 年 installs packages", "混排 text，数据备份！"] * 12


def trained(kind: str) -> Tokenizer:
    return tiny_llama.tokenizer() if kind == "tiny" else train.train(kind, lambda: iter(CORPUS), 300)


@pytest.fixture(scope="module", params=["tiny", "sp-bpe", "byte-bpe"])
def cutter(request: pytest.FixtureRequest) -> Tokenizer:
    return trained(request.param)


@given(lines=st.lists(st.text(min_size=1, max_size=20) | st.text("系统 a1，é🙂", min_size=1, max_size=20), max_size=4))
def test_the_scripts_add_up_to_all(cutter: Tokenizer, lines: list[str]) -> None:
    lines = [line.replace("\u2581", "") for line in lines]
    report = measure.measure(cutter, lines)
    assert report.n_characters == sum(map(len, lines)) and report.n_bytes == sum(len(line.encode()) for line in lines)
    assert report.n_tokens == sum(len(cutter.encode(line)) for line in lines) == sum(report.used.values())
    assert report.n_changed == 0 and report.n_unaligned == 0
    assert sum(share.characters for share in report.scripts.values()) == report.n_characters
    assert sum(share.tokens for share in report.scripts.values()) == pytest.approx(report.n_tokens)


def test_a_byte_a_token_is_three_tokens_a_chinese_character() -> None:
    report = measure.measure(tiny_llama.tokenizer(), ["系统 ab"])
    assert report.scripts["han"].shape() == {
        "characters": 2, "bytes": 6, "tokens": 6.0, "characters_per_token": pytest.approx(1 / 3)
    }  # fmt: skip
    assert report.characters_per_token == 5 / 9 and report.bytes_per_token == 1.0
    assert measure.measure(tiny_llama.tokenizer(), []).shape()["characters_per_token"] is None


def test_dead_pieces_are_found() -> None:
    from tokenizers import Tokenizer as Backend

    from mofang.tokenizer.fast import Fast

    state = json.loads(tiny_llama.tokenizer().backend.state())
    state["model"]["vocab"] |= {token["content"]: token["id"] for token in state["added_tokens"]} | {"Ġtt": 260}
    dead = Tokenizer(  # no merge leads to " tt"
        Fast(Backend.from_str(json.dumps(state))), None, None, None, False, None
    )
    assert measure.dead(dead) == [260] and measure.dead(tiny_llama.tokenizer()) == []


def test_many_texts_are_cut_as_each(cutter: Tokenizer) -> None:
    assert cutter.encode_batch([*CORPUS, ""]) == [cutter.encode(text) for text in [*CORPUS, ""]]


def test_a_cut_text_is_its_pieces(cutter: Tokenizer) -> None:
    text = "系统 installs 🙂" + (cutter.token(cutter.eos_id))
    cut = inspect.cut(cutter, text)
    assert cut["round_trip"] and cut["n_tokens"] == len(cut["tokens"])
    joined = b"".join(bytes.fromhex(each["bytes"]) for each in cut["tokens"]).decode()
    assert joined.removeprefix(" ") == text
    assert cut["tokens"][-1]["special"] and not cut["tokens"][0]["special"]
    facts = inspect.facts(cutter)
    assert sum(facts["pieces"].values()) == facts["n_vocab"] - facts["n_special"]
    assert facts["eos"] == {"id": cutter.eos_id, "piece": cutter.token(cutter.eos_id)}


def facts(parameters: int, n_embd: int) -> ModelFacts:
    return ModelFacts("llama", parameters, 2, 512, n_embd, 4, 2, 260, "F16", "gpt2", None, None)


def test_the_verdict_follows_its_numbers() -> None:
    old = tiny_llama.tokenizer()
    new = extend.extend(old, lambda: iter(CORPUS), Plan(size=80))
    before, after = (measure.measure(each, CORPUS) for each in (old, new.tokenizer))
    sizes = {"n_old": new.n_old, "n_vocab": new.tokenizer.n_vocab, "n_dead": 0}
    free = card(before, after, **sizes)
    assert free.pays and free.reasons == ("reason_poor", "reason_fast")
    assert free.speed_up == pytest.approx(before.n_tokens / after.n_tokens)
    costly = card(before, after, **sizes, facts=facts(new.n_added, 1))  # as many new rows as the whole model
    assert costly.speed_up == pytest.approx(free.speed_up / 2) and "reason_costs" in costly.reasons
    again = card(after, after, **sizes)
    assert not again.pays and again.reasons == ("reason_good", "reason_slow")
    english = measure.measure(old, ["only English"])
    assert (
        card(english, english, **sizes).reasons[0] == "reason_no_chinese" and not card(english, english, **sizes).pays
    )


def test_texts_of_many_encodings_and_forms(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("系统安装程序会询问您的语言\r\n\n第二行".encode("gb18030"))
    (tmp_path / "b.jsonl").write_text('{"messages": [{"role": "user", "content": "问\\n话"}]}\n\n{"output": "答"}\n')
    (tmp_path / "c.png").write_bytes(b"\x89PNG")
    (tmp_path / "d.md").write_text("长" * (texts.LINE + 5))
    found = list(texts.lines(texts.files([tmp_path])))
    assert found == ["系统安装程序会询问您的语言", "第二行", "问", "话", "答", "长" * texts.LINE, "长" * 5]
    files = texts.files([tmp_path / "a.txt"] * 15)
    assert len(list(texts.held_out(files))) == 1 and len(list(texts.learned(files))) == 29
    (tmp_path / "empty").mkdir()
    (tmp_path / "blank.txt").write_text(" \n\n")
    none, empty, blank = tmp_path / "none", tmp_path / "empty", tmp_path / "blank.txt"
    for paths, code in (
        ([], "no_text_named"), ([none], "no_such_text"), ([blank, none], "no_such_text"), ([empty], "no_text"),
        ([blank, empty], "no_text"),
    ):  # fmt: skip
        with pytest.raises(Invalid) as raised:
            texts.files(iter(paths))
        assert raised.value.code == code
        assert not paths or str(paths[-1]) in raised.value.message() or str(paths[0]) in raised.value.message()
    with pytest.raises(Unreadable) as picture:
        texts.files([tmp_path / "c.png"])
    assert picture.value.code == "not_a_text" and "c.png" in picture.value.message()
    (tmp_path / "e.jsonl").write_text('{"a": "b"}\n{"a"')
    with pytest.raises(Unreadable) as broken:
        list(texts.lines([tmp_path / "e.jsonl"]))
    assert "e.jsonl:2" in broken.value.message()


def test_the_facade_trains_extends_measures_and_refuses(tmp_path: Path, home: Path) -> None:
    source = tmp_path / "文本.txt"
    source.write_text("\n".join(CORPUS))
    tiny_llama.make(tmp_path / "tiny")
    made = api.extend_tokenizer(str(tmp_path / "tiny"), [source], tmp_path / "new", size=40)
    assert made["n_vocab"] == made["n_old"] + made["n_added"] and made["n_held_out"] == 1
    assert made["card"]["row_parameters"] == made["n_added"] * 64 and made["card"]["share_of_parameters"] > 0
    about = json.loads((tmp_path / "new" / extend.RECORD).read_text())
    assert about["n_old"] == made["n_old"] and about["base_sha256"] == tiny_llama.tokenizer().sha256()
    found = api.measure_tokenizer(str(tmp_path / "tiny"), [source], against=str(tmp_path / "new"))
    assert found["after"]["n_tokens"] < found["n_tokens"] and found["card"]["chinese_after"] > 1 / 3
    for kind in ("sp-unigram", "byte-bpe"):
        out = api.train_tokenizer([source], tmp_path / kind, kind=kind, size=300)
        assert api.inspect_tokenizer(str(tmp_path / kind))["kind"] == kind and out["n_vocab"] == 300
    assert api.inspect_tokenizer(str(tmp_path / "new"), ids=[0])["tokens"][0]["bytes"] == "21"
    with pytest.raises(Conflict):
        api.train_tokenizer([source], tmp_path / "new", kind="byte-bpe", size=290)
    for name in (str(tmp_path / "nothing"), "nothing"):
        with pytest.raises(NotFound):
            api.inspect_tokenizer(name)
    with pytest.raises(NotFound):
        api.inspect_tokenizer(str(tmp_path / "new"), ids=[made["n_vocab"]])
    with pytest.raises(Invalid) as raised:
        api.measure_tokenizer(str(tmp_path / "byte-bpe"), [source], bits=True)
    assert raised.value.code == "no_whole"
    assert not list(tmp_path.glob(".new-*")) and append.parts(extend_load(tmp_path / "new"), made["n_old"])


def extend_load(path: Path) -> Tokenizer:
    from mofang.tokenizer import load

    return load(path)


@pytest.mark.model
def test_bits_per_character_are_the_models(smollm2: Path, home: Path, tmp_path: Path) -> None:
    """Of the engine's quantized arithmetic, against transformers' over the same weights in float32."""
    import math

    import torch
    from transformers import AutoModelForCausalLM

    from mofang.models.store import ModelStore
    from mofang.settings import Settings

    ModelStore(Settings(home=home)).add(smollm2, "smollm2")
    english, odd = tmp_path / "english.txt", tmp_path / "odd.txt"
    text = "The installer will ask you for your language.\nPlease keep a copy of your data before you begin."
    english.write_text(text + "\n")
    odd.write_text("xq zv kjw")
    found = api.measure_tokenizer("smollm2", [english], bits=True)
    cutter, _ = named.find("smollm2")
    ids = cutter.encode(text)
    assert found["n_tokens"] == sum(len(cutter.encode(line)) for line in text.splitlines())
    model = AutoModelForCausalLM.from_pretrained(smollm2.parent, gguf_file=smollm2.name, dtype=torch.float32)
    with torch.no_grad():
        logps = model(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
    bits = -logps.gather(1, torch.tensor(ids[1:])[:, None]).sum().item() / math.log(2)
    read = len(text.encode()) - len(cutter.decode(ids[:1]).encode())
    assert found["bits_per_character"] == pytest.approx(bits / read, rel=0.03)
    assert api.measure_tokenizer(str(smollm2), [odd], bits=True)["bits_per_character"] > 2 * found["bits_per_character"]
    odd.write_text("a")
    with pytest.raises(Invalid) as raised:
        api.measure_tokenizer("smollm2", [odd], bits=True)
    assert raised.value.code == "text_short"


def test_bits_of_what_is_not_installed_are_refused(tmp_path: Path, home: Path) -> None:
    folder = tiny_llama.make(tmp_path / "tiny")
    (tmp_path / "a.txt").write_text("a text of some tokens")
    with pytest.raises(Invalid) as raised:
        api.measure_tokenizer(str(folder), [tmp_path / "a.txt"], bits=True)
    assert raised.value.code == "no_whole" and "models add" in raised.value.hint()
