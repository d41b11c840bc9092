"""SentencePiece: read from a GGUF it cuts as llama.cpp; pieces are added as Chinese-LLaMA added them."""

from pathlib import Path

import gguf as writer
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mofang.errors import Conflict, Invalid, Unreadable
from mofang.tokenizer import Tokenizer, extend, load, sentence, train
from mofang.tokenizer.extend import Plan
from mofang.tokenizer.sentence import SentencePiece

REFERENCE = "人工智能是计算机科学、心理学、哲学等学科融合的交叉学科。"
TEXTS = [
    "系统安装程序会询问您要使用的语言与键盘。",
    "安装 Debian 系统之前，请先备份重要的数据。",
    "The installer asks which language and keyboard you want.",
    "软件包管理系统会自动处理依赖关系，安全更新请及时安装。",
    "亚马逊河流域的系统数据，西班牙语的安装说明。",
] * 20  # fmt: skip


def lines():
    return iter(TEXTS)


@pytest.fixture(scope="module")
def unigram() -> Tokenizer:
    return train.train("sp-unigram", lines, 340)


@pytest.fixture(scope="module")
def base() -> Tokenizer:
    """A BPE that learned English alone: Chinese is bytes to it."""
    return train.train("sp-bpe", lambda: (line for line in lines() if line.isascii()), 300)


def write(tokenizer: Tokenizer, path: Path, model: str = "llama") -> Path:
    proto = tokenizer.backend.proto
    out = writer.GGUFWriter(path, "llama")
    out.add_tokenizer_model(model)
    out.add_token_list([piece.piece for piece in proto.pieces])
    out.add_token_scores([piece.score for piece in proto.pieces])
    out.add_token_types([piece.type for piece in proto.pieces])
    out.add_bos_token_id(tokenizer.bos_id)
    out.add_eos_token_id(tokenizer.eos_id)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.close()
    return path


@pytest.mark.parametrize(("kind", "model"), [("sp-bpe", "llama"), ("sp-unigram", "t5")])
@given(text=st.text(max_size=40) | st.text("安装系统数据 abc\n<s></s>", max_size=30))
def test_what_is_trained_gives_any_text_back(
    kind: str, model: str, text: str, unigram: Tokenizer, base: Tokenizer
) -> None:
    made = base if kind == "sp-bpe" else unigram
    assert made.backend.kind() == kind
    text = text.replace(sentence.SPACE, "")  # ▁ is how SentencePiece writes a space; it cannot keep both apart
    assert made.decode(made.encode(text)) == text


@pytest.mark.parametrize(("kind", "model"), [("sp-bpe", "llama"), ("sp-unigram", "t5")])
def test_a_gguf_and_a_folder_give_the_same_ids(
    kind: str, model: str, unigram: Tokenizer, base: Tokenizer, tmp_path: Path
) -> None:
    made = base if kind == "sp-bpe" else unigram
    made.save(tmp_path)
    from_folder, from_gguf = load(tmp_path), load(write(made, tmp_path / "v.gguf", model))
    for text in [*TEXTS[:5], "<s>安装</s>  two  spaces 🙂", ""]:
        assert made.encode(text) == from_folder.encode(text) == from_gguf.encode(text)
        assert from_gguf.decode(from_gguf.encode(text)) == text
    for back in (from_folder, from_gguf):
        assert (back.bos_id, back.eos_id, back.n_vocab, back.add_bos) == (
            made.bos_id,
            made.eos_id,
            made.n_vocab,
            kind == "sp-bpe" or back is from_folder,
        )
    assert from_folder.sha256() == made.sha256()
    assert made.decode(made.encode("<s>安装"), special=False) == "安装"


def test_merging_keeps_every_old_id_and_english_as_it_was(base: Tokenizer, unigram: Tokenizer) -> None:
    made = extend.extend(base, lines, Plan(vocabulary=unigram))
    new = made.tokenizer
    assert made.n_old == base.n_vocab and 0 < made.n_added < unigram.n_vocab
    assert [new.token(n) for n in range(base.n_vocab)] == [base.token(n) for n in range(base.n_vocab)]
    assert [p.score for p in new.backend.proto.pieces][made.n_old :] == [0.0] * made.n_added
    english = "The installer asks which keyboard — “really”…"
    assert new.encode(english) == base.encode(english)
    for text in TEXTS[:5]:
        assert new.decode(new.encode(text)) == text
    assert len(new.encode(TEXTS[0])) < len(base.encode(TEXTS[0])) / 2
    assert not [n for n in new.backend.dead() if n >= made.n_old]


def test_what_a_bpe_cannot_form_is_dropped_completed_or_kept(base: Tokenizer) -> None:
    other = sentence.proto_class()()
    other.CopyFrom(train.train("sp-unigram", lines, 340).backend.proto)
    del other.pieces[3:]
    for piece in ("亚", "马", "逊", "亚马逊", "系", "统", "系统"):
        other.pieces.add(piece=piece, score=-1.0, type=sentence.NORMAL)
    vocabulary = Tokenizer(SentencePiece(other), 2, 1, None, True, None)
    made = {
        way: extend.extend(base, lines, Plan(unreachable=way, vocabulary=vocabulary))
        for way in ("drop", "complete", "keep")
    }
    names = {
        way: [each.tokenizer.token(n) for n in range(each.n_old, each.tokenizer.n_vocab)] for way, each in made.items()
    }
    assert names["keep"] == ["亚", "马", "逊", "亚马逊", "系", "统", "系统"]
    assert names["drop"] == ["亚", "马", "逊", "系", "统", "系统"] and made["drop"].dropped == ["亚马逊"]
    assert set(names["complete"]) == {*names["keep"], "亚马"} and made["complete"].n_completed == 1
    word = [made["complete"].tokenizer.token(n) for n in made["complete"].tokenizer.encode("说亚马逊")]
    assert word[-1] == "亚马逊"
    assert [made["keep"].tokenizer.token(n) for n in made["keep"].tokenizer.backend.dead() if n >= base.n_vocab] == [
        "亚马逊"
    ]


def test_names_beyond_the_pieces_keep_their_ids(base: Tokenizer, unigram: Tokenizer, tmp_path: Path) -> None:
    padded = SentencePiece(base.backend.proto, (("[PAD]", base.n_vocab),))
    Tokenizer(padded, base.eos_id, base.bos_id, base.n_vocab, True, None).save(tmp_path)
    old = load(tmp_path)
    assert old.n_vocab == base.n_vocab + 1 and old.pad_id == base.n_vocab
    made = extend.extend(old, lines, Plan(vocabulary=unigram)).tokenizer
    assert made.token(base.n_vocab) == "[PAD]" and made.encode("[PAD]") == [base.n_vocab]


def test_refusals(base: Tokenizer, unigram: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(Invalid) as raised:
        extend.extend(base, lines, Plan(vocabulary=base))
    assert raised.value.code == "nothing_added"
    with pytest.raises(Invalid) as raised:
        extend.plan(unigram, size=1, script="han", unreachable="drop", vocabulary=base)
    assert raised.value.code == "not_a_vocabulary"
    with pytest.raises(Invalid):
        extend.plan(base, size=1, script="han", unreachable="droop", vocabulary=None)
    for kind in ("sp-unigram", "sp-bpe", "byte-bpe"):
        with pytest.raises(Invalid) as raised:
            train.train(kind, lines, 50_000)
        assert raised.value.code == "size_large" and int(raised.value.values["most"]) < 5_000
        with pytest.raises(Invalid) as raised:
            train.train(kind, lines, 100)
        assert raised.value.code == "size_small"
    with pytest.raises(Invalid) as raised:
        train.train("sp-unigram", lines, 270)
    assert raised.value.code == "size_small" and int(raised.value.values["least"]) > 270
    (tmp_path / "tokenizer.model").write_bytes(b"\xff\xff\xff")
    with pytest.raises(Unreadable):
        load(tmp_path)
    from mofang.tokenizer import folder

    with pytest.raises(Conflict):
        folder.free(tmp_path)


@pytest.mark.model
def test_llamas_own_vocabulary_cuts_as_llama_cpp_says(vocabularies: Path) -> None:
    llama = load(vocabularies / "ggml-vocab-llama-spm.gguf")
    assert llama.n_vocab == 32_000 and sum("一" <= llama.token(n) <= "鿿" for n in range(32_000)) == 700
    assert len(REFERENCE) == 28 and len(llama.encode(REFERENCE)) == 35


@pytest.mark.model
@pytest.mark.parametrize("name", ["llama-spm", "phi-3", "gpt-2", "qwen2", "llama-bpe"])
def test_ids_are_those_that_llama_cpp_expects(name: str, vocabularies: Path) -> None:
    made = load(vocabularies / f"ggml-vocab-{name}.gguf")
    stem = vocabularies / f"ggml-vocab-{name}.gguf"
    texts = Path(f"{stem}.inp").read_text(encoding="utf-8").split("\n__ggml_vocab_test__\n")
    ids = [[int(word) for word in line.split()] for line in Path(f"{stem}.out").read_text().splitlines()]
    assert len(ids) == 46
    for text, wanted in zip(texts, ids, strict=False):
        assert made.encode(text) == wanted, text
        assert made.decode(wanted) == text
