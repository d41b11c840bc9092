"""peft adapters as GGUF: what llama.cpp's converter writes, and what it would drop in silence refused by name."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import tiny_llama
from mofang.errors import Conflict, Unreadable
from mofang.models.formats import gguf, lora

QWEN = {"qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
README = "---\nbase_model: Qwen/Qwen2.5-0.5B-Instruct\nlibrary_name: peft\ntags:\n- lora\nlicense: mit\n---\n# 卡片\n"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama's folder, with its GGUF beside it."""
    folder = tiny_llama.make(tmp_path_factory.mktemp("base") / "tiny")
    tiny_llama.write_gguf(folder, folder / "tiny.gguf")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    "family, dtype, outtype",
    [
        ("llama", "float32", "f32"),
        ("llama", "float16", "f16"),
        ("llama", "bfloat16", "bf16"),
        ("qwen2", "float32", "f32"),
        ("qwen3", "bfloat16", "bf16"),
    ],
)
def test_it_is_what_the_converter_writes(
    family: str, dtype: str, outtype: str, base: Path, converter: Path, tmp_path: Path
) -> None:
    source = tmp_path / "origin"
    source.mkdir()
    config = json.loads((base / "config.json").read_text())
    if family in QWEN:
        config |= {"model_type": family, "architectures": [QWEN[family]]}
    (source / "config.json").write_text(json.dumps(config))
    model = tiny_llama.write_gguf(base, tmp_path / "base.gguf", architecture=family)
    adapter = tiny_llama.make_adapter(tmp_path / "my-adapter-v2", dtype=dtype)
    if dtype == "bfloat16":
        (adapter / "README.md").write_text(README, encoding="utf-8")
    wanted, found = tmp_path / "wanted.gguf", tmp_path / "found.gguf"
    command = [sys.executable, converter / "convert_lora_to_gguf.py", "--base", source, "--outtype", outtype]
    subprocess.run(
        [*command, "--outfile", wanted, adapter],
        check=True, capture_output=True, env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    lora.convert(adapter, model, found)
    assert found.read_bytes() == wanted.read_bytes()


def test_it_is_converted_once_for_its_content(base: Path, tmp_path: Path) -> None:
    adapter = tiny_llama.make_adapter(tmp_path / "a")
    first = lora.converted(adapter, base / "tiny.gguf", tmp_path / "kept")
    made = first.stat().st_mtime_ns
    moved = adapter.rename(tmp_path / "b")
    assert lora.converted(moved, base / "tiny.gguf", tmp_path / "kept") == first and first.stat().st_mtime_ns == made
    tiny_llama.make_adapter(moved, seed=2)
    second = lora.converted(moved, base / "tiny.gguf", tmp_path / "kept")
    assert second != first and {path.name for path in (tmp_path / "kept").iterdir()} == {first.name, second.name}


def test_rank_stabilised_scaling_is_written_so_that_llama_cpp_computes_it(base: Path, tmp_path: Path) -> None:
    plain = tiny_llama.make_adapter(tmp_path / "plain", rank=4, alpha=8)
    stable = tiny_llama.make_adapter(tmp_path / "stable", rank=4, alpha=8, use_rslora=True)
    alphas = []
    for number, adapter in enumerate((plain, stable)):
        lora.convert(adapter, base / "tiny.gguf", tmp_path / f"{number}.gguf")
        alphas.append(gguf.read(tmp_path / f"{number}.gguf").metadata["adapter.lora.alpha"])
    assert alphas == [8.0, 16.0]  # alpha/r = 2, alpha/√r = 4: llama.cpp divides by r = 4


@pytest.mark.parametrize(
    "field, value",
    [
        ("use_dora", True),
        ("modules_to_save", ["embed_tokens"]),
        ("bias", "lora_only"),
        ("lora_bias", True),
        ("fan_in_fan_out", True),
        ("alpha_pattern", {"q_proj": 4}),
        ("init_lora_weights", "pissa_niter_4"),
        ("peft_type", "IA3"),
        ("lora_alpha", 0),
        ("alora_invocation_tokens", [1, 2]),
    ],
)
def test_what_a_gguf_adapter_cannot_hold_is_refused_by_name(
    field: str, value: object, base: Path, tmp_path: Path
) -> None:
    adapter = tiny_llama.make_adapter(tmp_path / "odd", **{field: value})  # type: ignore[arg-type]
    with pytest.raises(Unreadable) as raised:
        lora.check(adapter, base / "tiny.gguf")
    assert raised.value.code == "adapter_kind" and field in raised.value.message()


def test_tensors_that_llama_cpp_ignores_are_refused(base: Path, tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    adapter = tiny_llama.make_adapter(tmp_path / "norms")
    whole = "base_model.model.model.layers.0.input_layernorm.weight"
    path = adapter / lora.WEIGHTS
    save_file({**load_file(path), whole: np.ones(64, np.float32)}, path)
    with pytest.raises(Unreadable) as raised:
        lora.check(adapter, base / "tiny.gguf")
    assert raised.value.code == "adapter_tensor" and whole in raised.value.message()


def test_a_head_that_the_base_shares_with_its_embedding_is_refused(base: Path, tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    adapter = tiny_llama.make_adapter(tmp_path / "head")
    path = adapter / lora.WEIGHTS
    head = {f"base_model.model.lm_head.lora_{part}.weight": np.ones((4, 64), np.float32) for part in "A"}
    head["base_model.model.lm_head.lora_B.weight"] = np.ones((265, 4), np.float32)
    save_file({**load_file(path), **head}, path)
    with pytest.raises(Unreadable) as raised:
        lora.check(adapter, base / "tiny.gguf")
    assert "lm_head" in raised.value.message()


def test_another_shape_or_family_is_refused_with_both_sides(base: Path, tmp_path: Path) -> None:
    wide = tiny_llama.make_adapter(tmp_path / "wide", shapes={"self_attn.q_proj": (64, 128)})
    with pytest.raises(Conflict) as raised:
        lora.check(wide, base / "tiny.gguf")
    assert "128 × 64" in raised.value.message() and "64 × 64" in raised.value.message()
    deep = tiny_llama.make_adapter(tmp_path / "deep", layers=3)
    with pytest.raises(Conflict):
        lora.check(deep, base / "tiny.gguf")
    other = tiny_llama.write_gguf(base, tmp_path / "gemma.gguf", architecture="gemma2")
    with pytest.raises(Unreadable) as unknown:
        lora.check(tiny_llama.make_adapter(tmp_path / "a"), other)
    assert "gemma2" in unknown.value.message() and "qwen3" in unknown.value.hint()


def test_a_cut_adapter_is_unreadable(base: Path, tmp_path: Path) -> None:
    adapter = tiny_llama.make_adapter(tmp_path / "cut")
    path = adapter / lora.WEIGHTS
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(Unreadable):
        lora.check(adapter, base / "tiny.gguf")
