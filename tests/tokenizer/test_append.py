"""A byte-level BPE that is extended: old ids stay, and new tokens are old ones put together."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend

import tiny_llama
from mofang.errors import Invalid, UnknownName
from mofang.tokenizer import Tokenizer, append, extend, load, train
from mofang.tokenizer.extend import Plan, fits, fits_bytes

TEXTS = ["系统安装程序，请先备份系统数据。", "Debian 系统的安装程序 installs packages", "the installer — “really”"] * 10
ANY = st.text(max_size=40) | st.text("系统安装程序，。备份 the installer—“”é🙂\n1", max_size=40)


def lines():
    return iter(TEXTS)


@pytest.fixture(scope="module", params=["tiny", "trained"])
def base(request: pytest.FixtureRequest) -> Tokenizer:
    if request.param == "tiny":
        return tiny_llama.tokenizer()
    return train.train("byte-bpe", lambda: (line for line in TEXTS if line.isascii() or "—" in line), 275)


@pytest.fixture(scope="module")
def made(base: Tokenizer) -> extend.Extension:
    return extend.extend(base, lines, Plan(size=60))


@given(text=ANY)
def test_new_tokens_are_the_old_ones_put_together(text: str, base: Tokenizer, made: extend.Extension) -> None:
    parts = append.parts(made.tokenizer, made.n_old)
    new, old = made.tokenizer.encode(text), base.encode(text)
    assert [part for each in new for part in parts.get(each, [each])] == old
    assert made.tokenizer.decode(new) == text
    if not any(fits(letter, "han") for letter in text):
        assert new == old


def test_ids_names_and_special_tokens_stay(base: Tokenizer, made: extend.Extension, tmp_path: Path) -> None:
    new = made.tokenizer
    assert made.n_old == base.n_vocab and new.n_vocab == base.n_vocab + made.n_added
    assert [new.token(n) for n in range(base.n_vocab)] == [base.token(n) for n in range(base.n_vocab)]
    assert new.encode("<|im_end|>") == base.encode("<|im_end|>") == [base.eos_id]
    extend.save(made, tmp_path, base="tiny")
    back = load(tmp_path)
    assert back.sha256() == new.sha256() and back.encode(TEXTS[1]) == new.encode(TEXTS[1])
    assert back.eos_id == base.eos_id and back.backend.added() == base.backend.added()
    assert back.cut_name() == base.cut_name() is not None
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert theirs.encode(TEXTS[0], add_special_tokens=False) == new.encode(TEXTS[0])
    assert len(theirs) == new.n_vocab


def test_chinese_is_shorter_and_no_new_token_is_dead(base: Tokenizer, made: extend.Extension) -> None:
    assert len(made.tokenizer.encode(TEXTS[0])) * 3 < len(base.encode(TEXTS[0]))
    assert not [each for each in made.tokenizer.backend.dead() if each >= made.n_old]
    words = {made.tokenizer.decode([each]) for each in range(made.n_old, made.tokenizer.n_vocab)}
    assert "系统" in words and not any(letter.isascii() for word in words for letter in word)


def test_it_can_be_extended_again(made: extend.Extension) -> None:
    more = extend.extend(made.tokenizer, lambda: iter(["春眠不觉晓"] * 5), Plan(size=60))
    assert more.n_old == made.tokenizer.n_vocab and len(more.tokenizer.encode("春眠不觉晓")) == 1
    assert more.tokenizer.encode(TEXTS[0]) == made.tokenizer.encode(TEXTS[0])


def test_learning_is_byte_pair_encoding() -> None:
    """Against the definition: at each step the most frequent pair of all, counted anew."""
    words = [([1, 2, 1, 2, 3], 3), ([2, 3, 2, 3], 2), ([1, 2, 3], 2), ([4, 4, 4], 9)]
    names = [b"0", b"a", b"b", b"c", b"d"]
    found = append.learn([(list(ids), n) for ids, n in words], list(names), 3, lambda data: b"d" not in data)
    slow = [(list(ids), n) for ids, n in words]
    wanted = []
    for new in range(5, 8):
        counts: dict[tuple[int, int], int] = {}
        for ids, n in slow:
            for pair in zip(ids, ids[1:], strict=False):
                if 4 not in pair:
                    counts[pair] = counts.get(pair, 0) + n
        pair = min(counts, key=lambda each: (-counts[each], each))
        wanted.append(pair)
        slow = [(append._joined(ids, pair, new), n) for ids, n in slow]
    assert found == wanted


@pytest.mark.parametrize(
    ("data", "let_in"),
    [("系统", True), ("，“系", True), ("。", True), ("“”", False), ("—", False), ("a系", False), ("é", False), ("か", False),
     ("系" * 9, False), (b"\xe7", False), (b"\xe7\xb3", True), (b"\xe3", False), (b"\xe3\x80", True), (b"\x80", False),
     (b"\xe2\x80", False), ("系".encode() + b"\xe7", False), (b"\xf0\xa0", True), (b"\xf0\x9f", False)],
)  # fmt: skip
def test_what_is_let_in(data: str | bytes, let_in: bool) -> None:
    assert fits_bytes(data.encode() if isinstance(data, str) else data, "han") is let_in


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(Invalid) as raised:
        extend.extend(tiny_llama.tokenizer(), lambda: iter(["only English here"]), Plan())
    assert raised.value.code == "nothing_added"
    from tokenizers import models

    from mofang.tokenizer.fast import Fast

    words = Tokenizer(Fast(Backend(models.WordLevel({"a": 0}, unk_token="a"))), None, None, None, False, None)
    with pytest.raises(UnknownName) as unknown:
        extend.extend(words, lines, Plan())
    assert "byte-bpe" in unknown.value.message() or "byte-bpe" in unknown.value.hint()


@pytest.mark.model
@pytest.mark.parametrize("name", ["smollm", "qwen2", "llama-bpe"])
def test_real_vocabularies(name: str, request: pytest.FixtureRequest, vocabularies: Path) -> None:
    path = request.getfixturevalue("smollm2") if name == "smollm" else vocabularies / f"ggml-vocab-{name}.gguf"
    old = load(path)
    text = ["汨罗江畔的橘子洲头，鹧鸪声声；汨罗江畔的橘子洲头。"] * 4
    made = extend.extend(old, lambda: iter(text), Plan(size=12))
    parts = append.parts(made.tokenizer, made.n_old)
    for each in (text[0], "mixed 混排 text, don't 12345", "汨罗", "<|im_end|>\n"):
        new = made.tokenizer.encode(each)
        assert [part for token in new for part in parts.get(token, [token])] == old.encode(each)
        assert made.tokenizer.decode(new) == each
    assert len(made.tokenizer.encode(text[0])) < len(old.encode(text[0]))
    assert made.tokenizer.cut_name() == name
