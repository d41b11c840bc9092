"""A GGUF file as a Hugging Face folder that can be trained: weights, configuration, tokenizer, chat template.

Quantization cannot be undone: each weight gets the value that llama.cpp computes with. What that lost against the
original is estimated from the file alone: within a block the weights stand on a grid, and rounding to a grid of step d
is off by d/√12 on average (as root mean square), which is set against the weights' own size.

Tensors are read, computed and written one after another: peak memory is one tensor. Needs no torch.
Source: ggml's block formats by `gguf.quants`; names and the order of rotary dimensions by llama.cpp
conversion/llama.py (LlamaModel.permute) and gguf-py tensor_mapping.py.
"""

import json
import math
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, quants
from numpy.typing import NDArray

from mofang.errors import Unreadable
from mofang.export import folder
from mofang.models.formats import gguf
from mofang.models.sources.base import need_disk
from mofang.recipes.export import Import
from mofang.runs import Reporter, Run
from mofang.strings import say
from mofang.tokenizer import load as load_tokenizer

_BLOCK = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_OUTSIDE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_IGNORED = frozenset({"rope_freqs.weight"})
"""Written by the converter from the configuration, not learned."""


@dataclass(frozen=True, slots=True)
class _Family:
    """A GGUF architecture whose layers transformers computes the same way."""

    model_type: str
    architecture: str
    permuted: bool = False
    """q and k rows were reordered for llama.cpp's rotary embedding, and must go back."""
    config: Callable[[gguf.Header], dict[str, Any]] = lambda header: {}


def _llama(header: gguf.Header) -> dict[str, Any]:
    return {"attention_bias": False, "mlp_bias": False}


FAMILIES: dict[str, _Family] = {
    "llama": _Family("llama", "LlamaForCausalLM", permuted=True, config=_llama),
    "qwen2": _Family("qwen2", "Qwen2ForCausalLM"),
    "qwen3": _Family("qwen3", "Qwen3ForCausalLM"),
}
SHARD_BYTES = 4 << 30
_SAFETENSORS_TYPES = {"float16": "F16", "float32": "F32"}
SAME_MATRIX = 0.99
"""Correlation from which an output head is the embedding, quantized another time."""
SAMPLED_BLOCKS = 4096


def run(recipe: Import, run: Run) -> dict[str, Any]:
    """The worker of `mofang models import`."""
    ref = folder.find(recipe.model)
    if ref.format != "gguf":
        raise Unreadable("export.not_gguf", path=ref.path, format=ref.format)
    name = folder.free_name(recipe.name or f"{ref.name}-hf", overwrite=recipe.overwrite)
    report = Reporter(run)
    with folder.aside(run) as target:
        loss = write(ref.path, target, dtype=recipe.dtype, tie_head=recipe.tie_head, report=report, run=run)
        made = folder.publish(
            target, name, format="hf", kind=ref.kind, run=run, parents=[folder.parent(ref, "quantized")],
            overwrite=recipe.overwrite, imported=loss,
        )  # fmt: skip
    run.note(say("export.imported", **loss))
    return {"model": made.name, "path": str(made.path), **loss}


def write(path: Path, target: Path, *, dtype: str, tie_head: bool, report: Reporter, run: Run) -> dict[str, Any]:
    """Write the folder; returns what the quantization lost. Raises Unreadable for a family that is not known."""
    headers = [(part, gguf.read(part)) for part in gguf.parts(path)]
    header = headers[0][1]
    family = FAMILIES.get(header.architecture)
    if family is None:
        raise Unreadable(
            "export.unknown_family", path=path, architecture=header.architecture, known=", ".join(FAMILIES)
        )
    tensors = [(part, head, tensor) for part, head in headers for tensor in head.tensors if tensor.name not in _IGNORED]
    names = {tensor.name for _, _, tensor in tensors}
    joined = tie_head and "output.weight" in names and _same_matrix(tensors)
    tied = joined or "output.weight" not in names
    config = _config(path, header, family, tied, dtype)
    heads, heads_kv = config["num_attention_heads"], config["num_key_value_heads"]

    plan: dict[str, tuple[Path, gguf.Header, gguf.Tensor]] = {}
    for part, head, tensor in tensors:
        if joined and tensor.name == "token_embd.weight":
            continue  # the head is the same matrix with more bits
        source = "token_embd.weight" if joined and tensor.name == "output.weight" else tensor.name
        plan[_hf_name(source, path)] = (part, head, tensor)
    total = sum(tensor.n_elements for _, _, tensor in plan.values())
    need_disk(target, total * np.dtype(dtype).itemsize)

    done, noise, size, bits = 0, 0.0, 0, 0
    with _SafetensorsWriter(target, plan, dtype) as out:
        for name, (part, head, tensor) in plan.items():
            weights = _weights(part, head, tensor)
            if len(tensor.shape) > 1 and tensor.type not in ("F32", "F16", "BF16"):
                noise += _rounding_noise(weights, tensor.type)
                size += weights.size
                bits += tensor.n_bytes * 8
            if family.permuted and name.endswith(("q_proj.weight", "k_proj.weight")):
                weights = _unpermuted(weights, heads if "q_proj" in name else heads_kv)
            if dtype == "float16" and np.abs(weights).max() > np.finfo(np.float16).max:
                raise Unreadable("export.beyond_float16", path=path, tensor=name)
            out.write(name, weights.astype(dtype))
            done += tensor.n_elements
            report("import", done, total, "weights", name)
    (target / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    tokenizer = load_tokenizer(path)
    tokenizer.save(target, n_ctx=config["max_position_embeddings"])
    generation = {
        "eos_token_id": sorted(tokenizer.end_ids),
        "bos_token_id": tokenizer.bos_id,
        "pad_token_id": tokenizer.pad_id,
    }
    (target / "generation_config.json").write_text(
        json.dumps({key: value for key, value in generation.items() if value is not None}, indent=2) + "\n",
        encoding="utf-8",
    )
    if joined:
        run.note(say("export.head_joined"))
    return {
        "quantization": gguf.facts(path).quantization,
        "bits_per_weight": round(bits / size, 2) if size else 16.0,
        "noise_percent": round(100 * math.sqrt(noise / size), 1) if size else 0.0,
        "parameters": total,
        "tied": tied,
    }


def _hf_name(name: str, path: Path) -> str:
    stem, _, suffix = name.rpartition(".")
    parts = stem.split(".")
    if parts[0] == "blk" and len(parts) == 3 and parts[2] in _BLOCK:
        return f"model.layers.{parts[1]}.{_BLOCK[parts[2]]}.{suffix}"
    if stem in _OUTSIDE:
        return f"{_OUTSIDE[stem]}.{suffix}"
    raise Unreadable("export.unknown_tensor", path=path, tensor=name)


def _config(path: Path, header: gguf.Header, family: _Family, tied: bool, dtype: str) -> dict[str, Any]:
    def needed(key: str) -> Any:
        value = header.of_architecture(key)
        if value is None:
            raise Unreadable("export.no_key", path=path, key=f"{header.architecture}.{key}")
        return value

    rows = next(tensor.shape[1] for tensor in header.tensors if tensor.name == "token_embd.weight")
    heads = needed("attention.head_count")
    config: dict[str, Any] = {
        "architectures": [family.architecture],
        "model_type": family.model_type,
        "hidden_size": needed("embedding_length"),
        "intermediate_size": needed("feed_forward_length"),
        "num_hidden_layers": needed("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": header.of_architecture("attention.head_count_kv") or heads,
        "max_position_embeddings": needed("context_length"),
        "rms_norm_eps": float(np.float32(needed("attention.layer_norm_rms_epsilon"))),
        "rope_theta": header.of_architecture("rope.freq_base") or 10000.0,
        "vocab_size": rows,
        "hidden_act": "silu",
        "tie_word_embeddings": tied,
        "torch_dtype": dtype,
        **family.config(header),
    }
    scaling = header.of_architecture("rope.scaling.type")
    if scaling not in (None, "none"):
        config["rope_scaling"] = {"rope_type": scaling, "factor": needed("rope.scaling.factor")}
    if (width := header.of_architecture("attention.key_length")) and width * heads != config["hidden_size"]:
        config["head_dim"] = width
    meta = header.metadata
    for name in ("bos", "eos"):
        value = meta.get(f"tokenizer.ggml.{name}_token_id")
        if isinstance(value, int):
            config[f"{name}_token_id"] = value
    return config


def _raw(part: Path, header: gguf.Header, tensor: gguf.Tensor, rows: int | None = None) -> NDArray[np.uint8]:
    """The bytes of a tensor, or of its first rows: (rows, bytes of a row)."""
    n_rows = math.prod(tensor.shape[1:])
    row_bytes = tensor.n_bytes // n_rows
    count = min(n_rows, rows or n_rows)
    data = np.fromfile(part, np.uint8, count * row_bytes, offset=header.data_offset + tensor.offset)
    return data.reshape(count, row_bytes)


def _values(raw: NDArray[np.uint8], type_name: str) -> NDArray[np.float32]:
    kind = GGMLQuantizationType[type_name]
    if type_name in ("F32", "F16"):
        return raw.view(np.float32 if type_name == "F32" else np.float16).astype(np.float32)
    return np.asarray(quants.dequantize(raw, kind), np.float32)


def _weights(part: Path, header: gguf.Header, tensor: gguf.Tensor) -> NDArray[np.float32]:
    """The tensor's values in the order of Hugging Face: rows are outputs."""
    try:
        values = _values(_raw(part, header, tensor), tensor.type)
    except (KeyError, NotImplementedError) as error:
        raise Unreadable("export.unknown_type", path=part, tensor=tensor.name, type=tensor.type) from error
    return values.reshape(tensor.shape[::-1])


def _same_matrix(tensors: list[tuple[Path, gguf.Header, gguf.Tensor]]) -> bool:
    """Whether head and embedding are one matrix, by a sample of their rows."""
    found = {tensor.name: (part, head, tensor) for part, head, tensor in tensors}
    one, other = found["token_embd.weight"], found["output.weight"]
    if one[2].shape != other[2].shape:
        return False
    first, second = (_values(_raw(*entry, rows=1024), entry[2].type).ravel() for entry in (one, other))
    return bool(np.corrcoef(first, second)[0, 1] > SAME_MATRIX)


def _unpermuted(weights: NDArray[np.float32], n_head: int) -> NDArray[np.float32]:
    """From llama.cpp's order of rotary dimensions (pairs side by side) to Hugging Face's (halves)."""
    half = weights.shape[0] // n_head // 2
    return weights.reshape(n_head, half, 2, *weights.shape[1:]).swapaxes(1, 2).reshape(weights.shape)


def _rounding_noise(weights: NDArray[np.float32], type_name: str) -> float:
    """Sum over the tensor of the squared rounding error, as a share of its weights' mean square, times its size.

    The step of a block's grid is the smallest distance between two of its different values.
    """
    inner = {"Q6_K": 16, "Q2_K": 16, "Q3_K": 16}.get(type_name, 32)
    blocks = weights.reshape(-1, inner)
    sample = np.sort(blocks[:: max(1, len(blocks) // SAMPLED_BLOCKS)], axis=1)
    gaps = np.diff(sample, axis=1)
    span = sample[:, -1:] - sample[:, :1]
    steps = np.where(gaps > span * 1e-4, gaps, np.inf).min(axis=1)
    steps = np.where(np.isfinite(steps), steps, 0.0)
    mean_square = float(np.mean(np.square(sample))) or 1.0
    return float(np.mean(np.square(steps))) / 12 / mean_square * weights.size


class _SafetensorsWriter:
    """Shards of a safetensors model, each written tensor by tensor: shapes are known before values are.

    The format: 8 bytes of length, a JSON header, then the data (https://huggingface.co/docs/safetensors). The library
    writes a shard only from memory, all at once.
    """

    def __init__(self, target: Path, plan: dict[str, tuple[Path, gguf.Header, gguf.Tensor]], dtype: str) -> None:
        item = np.dtype(dtype).itemsize
        shards: list[list[str]] = [[]]
        size = 0
        for name, (_, _, tensor) in plan.items():
            if shards[-1] and size + tensor.n_elements * item > SHARD_BYTES:
                shards.append([])
                size = 0
            shards[-1].append(name)
            size += tensor.n_elements * item
        self.target = target
        self.files: dict[str, str] = {}
        self.headers: dict[str, bytes] = {}
        for number, members in enumerate(shards, 1):
            file = "model.safetensors" if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
            header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
            offset = 0
            for name in members:
                tensor = plan[name][2]
                end = offset + tensor.n_elements * item
                header[name] = {
                    "dtype": _SAFETENSORS_TYPES[dtype],
                    "shape": list(tensor.shape[::-1]),
                    "data_offsets": [offset, end],
                }
                offset = end
                self.files[name] = file
            text = json.dumps(header, separators=(",", ":")).encode()
            text += b" " * (-len(text) % 8)
            self.headers[file] = struct.pack("<Q", len(text)) + text
        self.total = sum(tensor.n_elements * item for _, _, tensor in plan.values())
        self.open: tuple[str, Any] | None = None

    def __enter__(self) -> "_SafetensorsWriter":
        return self

    def write(self, name: str, values: NDArray[Any]) -> None:
        file = self.files[name]
        if self.open is None or self.open[0] != file:
            self._close()
            stream = (self.target / file).open("wb")
            stream.write(self.headers[file])
            self.open = (file, stream)
        self.open[1].write(np.ascontiguousarray(values).data)

    def _close(self) -> None:
        if self.open:
            self.open[1].close()
            self.open = None

    def __exit__(self, *exc: object) -> None:
        self._close()
        if len(self.headers) > 1:
            index = {"metadata": {"total_size": self.total}, "weight_map": self.files}
            (self.target / "model.safetensors.index.json").write_text(json.dumps(index, indent=1), encoding="utf-8")
