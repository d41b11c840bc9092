"""Hugging Face folders: config.json and safetensors headers, and what is wrong with them."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mofang.errors import Unreadable
from mofang.models.formats import hf

CONFIG = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "hidden_size": 64,
    "max_position_embeddings": 2048,
    "vocab_size": 500,
}


def _safetensors(path: Path, tensors: dict[str, tuple[str, list[int], int]], cut: int = 0) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (dtype, shape, n_bytes) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + n_bytes]}
        end += n_bytes
    text = json.dumps(header).encode()
    path.write_bytes((len(text).to_bytes(8, "little") + text + bytes(end))[: -cut or None])


def _folder(folder: Path, **config: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**CONFIG, **config}))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "Qwen2Tokenizer", "chat_template": "{{ messages }}"})
    )
    _safetensors(folder / "model-00001-of-00002.safetensors", {"a": ("BF16", [100, 64], 12_800)})
    _safetensors(folder / "model-00002-of-00002.safetensors", {"b": ("F32", [10], 40)})
    return folder


def test_facts(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "千问")
    facts = hf.facts(folder)
    assert (facts.architecture, facts.parameters, facts.quantization) == ("qwen2", 6_410, "BF16")
    assert (facts.n_layers, facts.n_head, facts.n_head_kv, facts.n_embd) == (2, 8, 2, 64)
    assert (facts.n_ctx_train, facts.n_vocab, facts.tokenizer) == (2048, 500, "Qwen2Tokenizer")
    assert facts.kv_bytes_per_token == 2 * 2 * 8 * 2 * 2
    assert facts.chat_template == "{{ messages }}"
    assert hf.is_model(folder)
    assert hf.kind(folder) == "chat"
    assert hf.format_of(folder) == "hf"


@pytest.mark.parametrize(
    ("config", "kind", "format"),
    [
        ({"architectures": ["BertModel"]}, "embedding", "hf"),
        ({"architectures": ["XLMRobertaForSequenceClassification"]}, "reranker", "hf"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "chat", "gptq"),
    ],
)
def test_kind_and_format(tmp_path: Path, config: dict[str, Any], kind: str, format: str) -> None:
    folder = _folder(tmp_path / "m", **config)
    assert hf.kind(folder) == kind
    assert hf.format_of(folder) == format


def test_gptq_says_its_bits(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "m", quantization_config={"quant_method": "gptq", "bits": 4})
    assert hf.facts(folder).quantization == "GPTQ 4-bit"


def test_template_in_a_file_of_its_own_wins(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "m")
    (folder / "chat_template.jinja").write_text("新模板", encoding="utf-8")
    assert hf.facts(folder).chat_template == "新模板"


def test_truncated_weights(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "m")
    _safetensors(folder / "model-00001-of-00002.safetensors", {"a": ("BF16", [100, 64], 12_800)}, cut=1)
    with pytest.raises(Unreadable) as caught:
        hf.facts(folder)
    assert caught.value.code == "gguf_truncated"


def test_pickled_weights_do_not_count(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04cos\nsystem\n")
    assert not hf.is_model(tmp_path)
    with pytest.raises(Unreadable) as caught:
        hf.facts(tmp_path)
    assert caught.value.code == "no_weights"


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000])
def test_broken_config(tmp_path: Path, text: str) -> None:
    folder = _folder(tmp_path / "m")
    (folder / "config.json").write_text(text)
    with pytest.raises(Unreadable) as caught:
        hf.facts(folder)
    assert caught.value.code == "config_broken"


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=200), length=st.integers(0, 2**64 - 1))
def test_random_weights_raise_nothing_but_unreadable(tmp_path: Path, data: bytes, length: int) -> None:
    folder = _folder(tmp_path / "m")
    for content in (data, len(data).to_bytes(8, "little") + data, length.to_bytes(8, "little") + data):
        (folder / "model-00001-of-00002.safetensors").write_bytes(content)
        try:
            hf.facts(folder)
        except Unreadable:
            pass


@pytest.mark.parametrize(
    "header", [{"a": 1}, {"a": {"dtype": "F32", "shape": "x", "data_offsets": [0, 1]}}, {"a": {"shape": [1]}}, [1]]
)
def test_wrong_headers(tmp_path: Path, header: Any) -> None:
    folder = _folder(tmp_path / "m")
    text = json.dumps(header).encode()
    (folder / "model-00001-of-00002.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(10))
    with pytest.raises(Unreadable) as caught:
        hf.facts(folder)
    assert caught.value.code == "safetensors_broken"
