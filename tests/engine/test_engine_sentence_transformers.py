"""Embedders in Hugging Face folders: their own pooling and prompts, the vectors of transformers' own model."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tiny_embedder
from mofang.engine import ENGINES, engine_name
from mofang.engine.sentence_transformers.engine import prompts
from mofang.errors import EngineFailed, Invalid, MofangError, TooLarge, Unreadable
from mofang.models.base import ModelRef
from mofang.models.store import ModelStore
from mofang.settings import Settings

TEXTS = ["长城 abc", "天气", "中国 的 天气 abc def ghi", "q"]
EXACT = {"transformers": {"dtype": "float32", "device": "cpu"}}


def _ref(folder: Path, **manifest: Any) -> ModelRef:
    return ModelRef("tiny", folder, "hf", "embedding", 1, manifest={**EXACT, **manifest})


async def _vectors(home: Path, ref: ModelRef, texts: list[str], purpose: Any = "passage") -> Any:
    assert engine_name(ref) == "sentence_transformers"
    engine = await ENGINES.get(engine_name(ref))(ref, Settings(home=home), progress=lambda _: None)
    try:
        return await engine.embed(texts, purpose), engine.info()
    finally:
        await engine.close()
        assert not engine.alive()


def _by_transformers(folder: Path, texts: list[str], pooling: str) -> Any:
    """(n, d), one text at a time: no padding can play a part."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    rows = []
    for text in texts:
        with torch.inference_mode():
            hidden = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        row = (hidden.mean(dim=0) if pooling == "mean" else hidden[0]).numpy()
        rows.append(row / np.linalg.norm(row))
    return np.stack(rows)


@pytest.mark.parametrize(
    ("architecture", "pooling", "normalize"),
    [("bert", "mean", True), ("xlm-roberta", "mean", False), ("bert", "cls", False)],
)
async def test_vectors_are_transformers_own(tmp_path: Path, architecture: str, pooling: str, normalize: bool) -> None:
    folder = tiny_embedder.write(tmp_path / "m", architecture=architecture, pooling=pooling, normalize=normalize)
    found, info = await _vectors(tmp_path, _ref(folder), TEXTS)
    np.testing.assert_allclose(found, _by_transformers(folder, TEXTS, pooling), atol=1e-5)
    assert (info.kind, info.n_ctx, info.notices) == ("embedding", 64, ()) and "float32" in info.provider


async def test_a_folder_that_says_nothing_of_pooling_is_averaged_and_told(tmp_path: Path) -> None:
    folder = tiny_embedder.write(tmp_path / "m", pooling=None)
    found, info = await _vectors(tmp_path, _ref(folder), TEXTS)
    np.testing.assert_allclose(found, _by_transformers(folder, TEXTS, "mean"), atol=1e-5)
    assert len(info.notices) == 1 and "modules.json" in info.notices[0]


async def test_prompts_are_the_folders_own(tmp_path: Path) -> None:
    folder = tiny_embedder.write(tmp_path / "m", prompts={"query": "q: ", "document": "d: "})
    found, _ = await _vectors(tmp_path, _ref(folder), TEXTS, "query")
    np.testing.assert_allclose(found, _by_transformers(folder, ["q: " + text for text in TEXTS], "mean"), atol=1e-5)


@pytest.mark.parametrize(
    ("own", "manifest", "name", "wanted"),
    [
        ({"prompts": {"query": "q: ", "document": "d: "}}, {}, "m", ("q: ", "d: ")),
        ({"prompts": {"query": "q: ", "passage": "p: "}}, {}, "m", ("q: ", "p: ")),
        ({"prompts": {"query": "q: "}}, {"prefixes": {"query": "x", "passage": "y"}}, "m", ("x", "y")),
        ({"prompts": {"query": "", "document": ""}}, {}, "multilingual-e5-small", ("query: ", "passage: ")),
        ({"prompts": {"any": "a: "}, "default_prompt_name": "any"}, {}, "m", ("a: ", "a: ")),
        (None, {}, "m", ("", "")),
    ],
)
def test_whose_word_holds(tmp_path: Path, own: Any, manifest: Any, name: str, wanted: tuple[str, str]) -> None:
    if own is not None:
        (tmp_path / "config_sentence_transformers.json").write_text(json.dumps(own))
    found = prompts(ModelRef(name, tmp_path, "hf", "embedding", 1, manifest=manifest))
    assert (found["query"], found["passage"]) == wanted


async def test_a_text_is_never_cut_in_silence(tmp_path: Path) -> None:
    folder = tiny_embedder.write(tmp_path / "m", max_seq_length=16)
    with pytest.raises(TooLarge) as caught:
        await _vectors(tmp_path, _ref(folder), ["短", "天 " * 20])
    assert caught.value.values["number"] == 1 and caught.value.values["n_tokens"] == 22


def _pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def _pickled_layer(folder: Path) -> None:
    (folder / "2_Dense").mkdir()
    (folder / "2_Dense" / "pytorch_model.bin").write_bytes(b"\x80")


def _damaged(folder: Path) -> None:
    (folder / "modules.json").write_text("{}")


def _foreign(folder: Path) -> None:
    listed = json.loads((folder / "modules.json").read_text())
    listed[1]["type"] = "evil.Pooling"
    (folder / "modules.json").write_text(json.dumps(listed))
    (folder / "evil.py").write_text("raise SystemExit('ran')")


@pytest.mark.parametrize(
    ("harm", "kind", "code"),
    [
        (_pickled, Unreadable, "pickled_weights"),
        (_pickled_layer, Unreadable, "pickled_weights"),
        (_damaged, Unreadable, "config_broken"),
        (_foreign, EngineFailed, "load_failed"),
    ],
)
async def test_what_is_refused(tmp_path: Path, harm: Any, kind: type[MofangError], code: str) -> None:
    folder = tiny_embedder.write(tmp_path / "m", dense=harm is _pickled_layer)
    harm(folder)
    with pytest.raises(kind) as caught:
        await _vectors(tmp_path, _ref(folder), TEXTS)
    assert caught.value.code == code and "ran" not in caught.value.message().split()


async def test_the_folders_code_is_never_run(tmp_path: Path) -> None:
    folder = tiny_embedder.write(tmp_path / "m")
    with pytest.raises(Invalid) as caught:
        await _vectors(tmp_path, _ref(folder, transformers={"trust_remote_code": True}), TEXTS)
    assert caught.value.code == "manifest_value"


def test_such_a_folder_is_an_embedder_that_runs(home: Path, tmp_path: Path) -> None:
    folder = tiny_embedder.write(tmp_path / "tiny-embedder")
    store = ModelStore(Settings(home=home))
    store.add(folder)
    found = store.resolve("tiny-embedder", "embedding")
    assert (found.kind, found.runnable, engine_name(found)) == ("embedding", True, "sentence_transformers")
    shutil.rmtree(folder, ignore_errors=True)
