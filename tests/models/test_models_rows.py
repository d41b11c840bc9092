"""Rows of embedding matrices on disk, held against torch's own reading and a cosine worked out at once."""

from pathlib import Path

import gguf
import numpy as np
import pytest
from safetensors.torch import load_file

import tiny_llama
from mofang.errors import Unreadable
from mofang.models import rows
from mofang.models.rows import nearest, open_rows

NAME = "model.embed_tokens.weight"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama.make(tmp_path_factory.mktemp("rows") / "hf")


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q5_0"])
def test_a_gguf_is_read_as_its_makers_read_it(folder: Path, tmp_path: Path, kind: str) -> None:
    found = open_rows(tiny_llama.write_gguf(folder, tmp_path / "tiny.gguf", kind))
    exact = load_file(folder / "model.safetensors")[NAME].numpy()
    quantized = gguf.GGMLQuantizationType[kind]
    stored = gguf.quants.dequantize(gguf.quants.quantize(exact, quantized), quantized)
    assert (found.n_rows, found.n_columns, found.type) == (*exact.shape, kind)
    assert np.array_equal(np.concatenate(list(found.blocks())), stored)
    assert np.array_equal(found.row(7), stored[7])


def test_the_matrix_of_a_split_model_is_found(folder: Path, tmp_path: Path) -> None:
    tiny_llama.write_gguf(folder, tmp_path / "tiny.gguf", parts=4)
    first, *others = sorted(tmp_path.glob("*.gguf"))
    assert others
    assert np.array_equal(open_rows(first).row(3), load_file(folder / "model.safetensors")[NAME].numpy()[3])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_folder_is_read(tmp_path: Path, dtype: str) -> None:
    folder = tiny_llama.make(tmp_path / "hf", dtype=dtype)
    exact = load_file(folder / "model.safetensors")[NAME].float().numpy()
    assert np.array_equal(np.concatenate(list(open_rows(folder).blocks())), exact)


def test_the_nearest_are_those_of_the_whole_matrix(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found, exact = open_rows(folder), load_file(folder / "model.safetensors")[NAME].numpy()
    unit = exact / np.linalg.norm(exact, axis=1, keepdims=True)
    likeness = unit @ unit[5]
    likeness[5] = -np.inf
    best = np.argsort(-likeness)[:9]
    near = nearest(found, 5, 9)
    assert [row for row, _ in near] == best.tolist()
    assert [cosine for _, cosine in near] == pytest.approx(likeness[best].tolist(), abs=1e-6)
    monkeypatch.setattr(rows, "BLOCK_BYTES", 7 * 4 * found.n_columns)
    assert [row for row, _ in nearest(found, 5, 9)] == best.tolist(), "seven rows at a time"
    assert {row for row, _ in nearest(found, 5, 50, n_rows=20)} == {*range(20)} - {5}


def test_what_has_no_matrix_says_so(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(Unreadable) as caught:
        open_rows(tmp_path / "empty")
    assert caught.value.code == "no_embedding"
    with pytest.raises(Unreadable) as caught:
        open_rows(tiny_llama.write_gguf(folder, tmp_path / "without.gguf", leave_out="token_embd.weight"))
    assert caught.value.code == "no_embedding"


def test_a_file_that_is_cut_while_it_is_read(folder: Path, tmp_path: Path) -> None:
    path = tiny_llama.write_gguf(folder, tmp_path / "tiny.gguf")
    found = open_rows(path)
    with path.open("r+b") as file:
        file.truncate(found.start + 3 * found.row_bytes)
    assert found.row(2).shape == (64,)
    with pytest.raises(Unreadable) as caught:
        list(found.blocks())
    assert caught.value.code == "gguf_truncated"
