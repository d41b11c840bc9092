"""A source that is damaged is found before it becomes something else, and the tensor or file is named."""

import importlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import tiny_llama
from mofang.errors import Invalid, MofangError
from mofang.export import shards
from mofang.export.values import DTYPES, NAMES, raw, tensor
from mofang.models.formats import hf
from mofang.models.store import ModelStore
from mofang.runs import Run
from mofang.tokenizer import extend

Start = Callable[..., Run]
WORKERS = {"gguf": "mofang.export.gguf", "gptq": "mofang.export.gptq.worker"}


def refused(kind: str, start: Start, store: ModelStore) -> MofangError:
    before = {ref.name for ref in store.list()}
    run = start(kind, model="tiny", name="never")
    with pytest.raises(MofangError) as raised:
        importlib.import_module(WORKERS[kind]).run(run.recipe(), run)
    assert {ref.name for ref in store.list()} == before and not list(store.folder.glob(".export-*"))
    return raised.value


@pytest.mark.parametrize("kind", WORKERS)
def test_nan_is_named(kind: str, base: Path, store: ModelStore, start: Start) -> None:
    values = load_file(base / "model.safetensors")
    values["model.layers.0.mlp.gate_proj.weight"][0, 0] = float("inf")
    save_file(values, base / "model.safetensors", metadata={"format": "pt"})
    error = refused(kind, start, store)
    assert error.code == "not_finite" and "layers.0.mlp.gate_proj" in error.message()


@pytest.mark.parametrize("kind", WORKERS)
def test_a_shard_that_is_missing_or_cut_off_is_named(kind: str, base: Path, store: ModelStore, start: Start) -> None:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    (base / "model.safetensors").unlink()
    model.save_pretrained(base, max_shard_size="60KB")
    shard = sorted(base.glob("model-*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:-8])
    error = refused(kind, start, store)
    assert error.code == "gguf_truncated" and shard.name in error.message()
    shard.unlink()
    error = refused(kind, start, store)
    assert error.code == "shard_missing" and shard.name in error.message()


@pytest.mark.parametrize("kind", WORKERS)
def test_ids_beyond_the_rows_are_refused_and_rows_beyond_the_ids_are_not(
    kind: str, base: Path, store: ModelStore, start: Start
) -> None:
    shards.check_rows(base)  # 265 rows, 260 ids
    words = ["系统安装系统安装", "系统", "内核模块"] * 9
    extend.save(extend.extend(tiny_llama.tokenizer(), lambda: iter(words), extend.Plan(size=9)), base)
    error = refused(kind, start, store)
    assert error.code == "ids_beyond_rows" and "265" in error.message() and "resize" in error.hint()


def test_what_is_quantized_already_is_not_quantized_anew(base: Path, store: ModelStore, start: Start) -> None:
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "fp8"}}))
    error = refused("gptq", start, store)
    assert isinstance(error, Invalid) and error.code == "base_quantized"


@given(
    arrays.arrays(np.float32, st.integers(1, 40), elements=st.floats(width=32)),
    st.sampled_from(["F16", "BF16", "F32", "F64"]),
)
def test_finite_is_what_torch_calls_finite(values: np.ndarray, dtype: str) -> None:
    there = torch.from_numpy(values).to(DTYPES[dtype])
    assert shards.is_finite(raw(there), dtype) == bool(there.isfinite().all())


@given(
    st.dictionaries(
        st.text("abc.", min_size=1),
        st.tuples(st.sampled_from(["F16", "BF16", "F32", "I64", "U8"]), st.lists(st.integers(0, 5), max_size=3)),
        min_size=1,
        max_size=6,
    ),
    st.integers(1, 300),
)
def test_files_that_are_written_are_read_by_safetensors(
    tmp_path_factory: pytest.TempPathFactory, plan: dict, most: int
) -> None:
    folder = tmp_path_factory.mktemp("written")
    torch.manual_seed(0)
    values = {name: (torch.randn(shape) * 9).to(DTYPES[dtype]) for name, (dtype, shape) in plan.items()}
    files = shards.split({name: (NAMES[value.dtype], tuple(value.shape)) for name, value in values.items()}, most)
    with shards.Writer(folder, files) as out:
        for name, value in values.items():
            out.write(name, raw(value))
    found = {name: value for file in folder.glob("*.safetensors") for name, value in load_file(file).items()}
    assert found.keys() == values.keys() and all(torch.equal(found[name], values[name]) for name in values)
    assert set(hf.weights(folder)) == set(folder.glob("*.safetensors"))
    for name, (path, stored) in shards.places(folder).items():
        assert torch.equal(tensor(shards.read(path, name, stored), stored), values[name])
    assert all(shards.n_bytes(part) <= most or len(part) == 1 for part in files.values())
