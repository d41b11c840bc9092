"""A GGUF file as a Hugging Face folder that can be trained: weights, configuration, tokenizer, chat template; and a
folder of pickled weights as one of safetensors (pickles.py).

Quantization cannot be undone: each weight gets the value that llama.cpp computes with. What that lost against the
original is estimated from the file alone: within a block the weights stand on a grid, and rounding to a grid of step d
is off by d/√12 on average (as root mean square), which is set against the weights' own size.

Tensors are read, computed and written one after another: peak memory is one tensor. Needs no torch. Families beyond
FAMILIES are read by transformers, whole (through.py).
Source: ggml's block formats by `gguf.quants`; names and the order of rotary dimensions by llama.cpp
conversion/llama.py (LlamaModel.permute, rope_freqs) and gguf-py tensor_mapping.py.
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, quants
from numpy.typing import NDArray

from mofang.errors import MissingExtra, Unreadable
from mofang.export import folder, shards
from mofang.export.verify import verify
from mofang.models.formats import gguf, hf
from mofang.models.sources.base import need_disk
from mofang.models.store import suggest_name
from mofang.platform import has_module
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
_NORMS = ("attn_norm", "ffn_norm")
_ATTENTION = ("attn_q", "attn_k", "attn_v", "attn_output")
_MLP = ("ffn_gate", "ffn_up", "ffn_down")
_OUTSIDE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
ROPE = "rope_freqs.weight"
"""Factors of the rotary frequencies: written by the converter from the configuration, not learned."""
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
"""What all Llamas of 3.1 and later have beside their factor."""
HOUSEKEEPING = (
    "general.architecture",
    "general.file_type",
    "general.quantization_version",
    "general.alignment",
    "split.",
)
"""Keys that tell of the file, not of the model."""
CARRIED = (
    "embedding_length", "feed_forward_length", "block_count", "attention.head_count", "attention.head_count_kv",
    "context_length", "attention.layer_norm_rms_epsilon", "rope.freq_base", "rope.scaling.type", "rope.scaling.factor",
    "rope.scaling.original_context_length", "rope.dimension_count", "attention.key_length", "attention.value_length",
    "vocab_size",
)  # fmt: skip
"""Keys of an architecture that become the configuration."""


@dataclass(frozen=True, slots=True)
class _Family:
    """A GGUF architecture whose layers transformers computes the same way."""

    model_type: str
    architecture: str
    permuted: bool = False
    """q and k rows were reordered for llama.cpp's rotary embedding, and must go back."""
    config: Callable[[set[str]], dict[str, Any]] = lambda names: {}
    """What the names of its tensors say of its configuration."""
    more: tuple[str, ...] = ()
    """Parts of its layers beside those that all have."""

    def tensors(self, config: dict[str, Any]) -> set[str]:
        """Names of all tensors that transformers reads for a configuration; it may have an "output.weight", too."""
        biased = [*_ATTENTION[:3]] if self.model_type == "qwen2" else []
        biased += _ATTENTION if config.get("attention_bias") else []
        biased += _MLP if config.get("mlp_bias") else []
        own = [f"{part}.weight" for part in (*_NORMS, *_ATTENTION, *_MLP, *self.more)] + [
            f"{part}.bias" for part in biased
        ]
        layers = {f"blk.{layer}.{part}" for layer in range(config["num_hidden_layers"]) for part in own}
        return layers | {"token_embd.weight", "output_norm.weight"}


def _biases(names: set[str]) -> dict[str, Any]:
    return {"attention_bias": "blk.0.attn_q.bias" in names, "mlp_bias": "blk.0.ffn_up.bias" in names}


FAMILIES: dict[str, _Family] = {
    "llama": _Family("llama", "LlamaForCausalLM", permuted=True, config=_biases),
    "qwen2": _Family("qwen2", "Qwen2ForCausalLM"),
    "qwen3": _Family("qwen3", "Qwen3ForCausalLM", config=_biases, more=("attn_q_norm", "attn_k_norm")),
}
SHARD_BYTES = 4 << 30
_SAFETENSORS_TYPES = {"float16": "F16", "float32": "F32"}
SAME_MATRIX = 0.99
"""Correlation from which an output head is the embedding, quantized another time."""
SAMPLED_BLOCKS = 4096
SHOWN_KEYS = 6


def run(recipe: Import, run: Run) -> dict[str, Any]:
    """The worker of `mofang models import`."""
    place = Path(recipe.model).expanduser()
    if place.is_absolute() and place.is_dir() and hf.is_pickled(place):
        return _pickled(place, recipe, run)
    ref = folder.find(recipe.model)
    if ref.format != "gguf":
        raise Unreadable("export.not_gguf", path=ref.path, format=ref.format)
    name = folder.free_name(recipe.name or f"{ref.name}-hf", overwrite=recipe.overwrite, run=run)
    report = Reporter(run)
    dtype = "float16" if recipe.dtype == "auto" else recipe.dtype
    with folder.aside(run) as target:
        loss = write(ref.path, target, dtype=dtype, tie_head=recipe.tie_head, report=report, run=run)
        made = folder.publish(
            target, name, format="hf", kind=ref.kind, run=run, parents=[folder.parent(ref, "quantized")],
            overwrite=recipe.overwrite, imported=loss, checks=verify(target, load_tokenizer(ref.path)),
            tools=folder.tools("gguf"),
        )  # fmt: skip
    if keys := loss["keys_left"]:
        shown = ", ".join(keys[:SHOWN_KEYS]) + (" …" if len(keys) > SHOWN_KEYS else "")
        run.note(say("export.keys_left", n=len(keys), keys=shown))
    run.note(say("export.imported", **loss))
    return {"model": made.name, "path": str(made.path), **loss}


def _pickled(place: Path, recipe: Import, run: Run) -> dict[str, Any]:
    """A folder of pickles, when it was asked for. Raises Unreadable when it was not."""
    if not recipe.pickle:
        raise Unreadable("models.pickled", path=place)
    if not has_module("torch"):
        raise MissingExtra("core.missing_extra", name="import", library="torch", extra="train")
    from mofang.export import pickles

    name = folder.free_name(recipe.name or suggest_name(place), overwrite=recipe.overwrite, run=run)
    with folder.aside(run) as target:
        found = pickles.write(place, target, recipe.dtype, Reporter(run))
        made = folder.publish(
            target, name, format="hf", kind=hf.kind(target), run=run, parents=[pickles.parent(place)],
            overwrite=recipe.overwrite, tools=folder.tools("torch", "safetensors"),
        )  # fmt: skip
    run.note(say("export.unpickled", name=made.name, n=found["tensors"]))
    return {"model": made.name, "path": str(made.path), **found}


def write(path: Path, target: Path, *, dtype: str, tie_head: bool, report: Reporter, run: Run) -> dict[str, Any]:
    """Write the folder; returns what the quantization lost. Raises Unreadable for a family that is not known."""
    header = gguf.read(gguf.parts(path)[0])
    tokenizer = load_tokenizer(path)
    if header.architecture in FAMILIES:
        found = _own(path, target, dtype=dtype, tie_head=tie_head, report=report, run=run)
    elif has_module("torch"):
        from mofang.export import through

        if header.architecture not in through.families():
            raise _unknown(path, header, through.families())
        run.note(say("export.through", architecture=header.architecture))
        lost = _Lost()
        for tensor in header.tensors:
            lost.count(_weights(path, header, tensor), tensor)
        found = {**lost.said(), **through.write(path, target, dtype=dtype, report=report)}
    else:
        raise _unknown(path, header, [])
    config = hf.read_json(target / "config.json")
    if tokenizer.n_vocab > config["vocab_size"]:
        raise Unreadable("export.ids_beyond_rows", path=path, n_vocab=tokenizer.n_vocab, rows=config["vocab_size"])
    tokenizer.save(target, n_ctx=config.get("max_position_embeddings"))
    generation = {
        "eos_token_id": sorted(tokenizer.end_ids),
        "bos_token_id": tokenizer.bos_id,
        "pad_token_id": tokenizer.pad_id,
    }
    (target / "generation_config.json").write_text(
        json.dumps({key: value for key, value in generation.items() if value is not None}, indent=2) + "\n",
        encoding="utf-8",
    )
    return {
        "quantization": gguf.facts(path).quantization,
        **found,
        "keys_left": keys_left(header),
    }


def _unknown(path: Path, header: gguf.Header, more: list[str]) -> Unreadable:
    known = ", ".join(dict.fromkeys([*FAMILIES, *more]))
    return Unreadable("export.unknown_family", path=path, architecture=header.architecture, known=known)


def _own(path: Path, target: Path, *, dtype: str, tie_head: bool, report: Reporter, run: Run) -> dict[str, Any]:
    """Configuration and weights of one of FAMILIES, tensor by tensor."""
    headers = [(part, gguf.read(part)) for part in gguf.parts(path)]
    header = headers[0][1]
    family = FAMILIES[header.architecture]
    tensors = [(part, head, tensor) for part, head in headers for tensor in head.tensors]
    factors = [_weights(*each) for each in tensors if each[2].name == ROPE]
    tensors = [each for each in tensors if each[2].name != ROPE]
    names = {tensor.name for _, _, tensor in tensors}
    joined = tie_head and "output.weight" in names and _same_matrix(tensors)
    tied = joined or "output.weight" not in names
    config = _config(path, header, family, {tensor.name: tensor for _, _, tensor in tensors}, tied, dtype)
    wanted = family.tensors(config)
    if missing := sorted(wanted - names):
        raise Unreadable("export.no_tensor", path=path, tensor=missing[0])
    if unknown := sorted(names - wanted - {"output.weight"}):
        raise Unreadable("export.unknown_tensor", path=path, tensor=unknown[0])
    if factors:
        _rope(path, factors[0], config)
    heads, heads_kv = config["num_attention_heads"], config["num_key_value_heads"]

    plan: dict[str, tuple[Path, gguf.Header, gguf.Tensor]] = {}
    for part, head, tensor in tensors:
        if joined and tensor.name == "token_embd.weight":
            continue  # the head is the same matrix with more bits
        source = "token_embd.weight" if joined and tensor.name == "output.weight" else tensor.name
        plan[_hf_name(source, path)] = (part, head, tensor)
    total = sum(tensor.n_elements for _, _, tensor in plan.values())
    kind = _SAFETENSORS_TYPES[dtype]
    files = shards.split({name: (kind, tensor.shape[::-1]) for name, (_, _, tensor) in plan.items()}, SHARD_BYTES)
    need_disk(target, sum(map(shards.n_bytes, files.values())))

    done, lost = 0, _Lost()
    with shards.Writer(target, files) as out:
        for name, (part, head, tensor) in plan.items():
            weights = _weights(part, head, tensor)
            if not np.isfinite(weights).all():
                raise Unreadable("export.not_finite", path=part, tensor=tensor.name)
            lost.count(weights, tensor)
            if family.permuted and ("q_proj." in name or "k_proj." in name):
                weights = _unpermuted(weights, heads if "q_proj" in name else heads_kv)
            if dtype == "float16" and np.abs(weights).max() > np.finfo(np.float16).max:
                raise Unreadable("export.beyond_float16", path=path, tensor=name)
            out.write(name, weights.astype(dtype))
            done += tensor.n_elements
            report("import", done, total, "weights", name)
    (target / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    if joined:
        run.note(say("export.head_joined"))
    return {**lost.said(), "parameters": total, "tied": tied}


class _Lost:
    """What quantization took, summed over tensors."""

    def __init__(self) -> None:
        self.noise, self.size, self.bits = 0.0, 0, 0

    def count(self, weights: NDArray[np.float32], tensor: gguf.Tensor) -> None:
        if len(tensor.shape) > 1 and tensor.type not in ("F32", "F16", "BF16"):
            self.noise += _rounding_noise(weights, tensor.type)
            self.size += weights.size
            self.bits += tensor.n_bytes * 8

    def said(self) -> dict[str, Any]:
        return {
            "bits_per_weight": round(self.bits / self.size, 2) if self.size else 16.0,
            "noise_percent": round(100 * math.sqrt(self.noise / self.size), 1) if self.size else 0.0,
        }


def keys_left(header: gguf.Header) -> list[str]:
    """What the file's metadata says and a folder does not: the tokenizer's keys become its files."""
    carried = {f"{header.architecture}.{key}" for key in CARRIED}
    return sorted(
        key for key in header.metadata if not key.startswith((*HOUSEKEEPING, "tokenizer.")) and key not in carried
    )


def _rope(path: Path, factors: NDArray[np.float32], config: dict[str, Any]) -> None:
    """Write the rule that gave these factors of the rotary frequencies. Raises Unreadable when it is not Llama 3's."""
    width = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    lengths = 2 * math.pi * config["rope_theta"] ** (np.arange(0, width, 2) / width)
    low, high = (LLAMA3["original_max_position_embeddings"] / LLAMA3[f"{end}_freq_factor"] for end in ("low", "high"))
    factor = float(factors.max())
    with np.errstate(divide="ignore"):
        smooth = (LLAMA3["original_max_position_embeddings"] / lengths - LLAMA3["low_freq_factor"]) / (
            LLAMA3["high_freq_factor"] - LLAMA3["low_freq_factor"]
        )
        between = 1 / ((1 - smooth) / factor + smooth)
    wanted = np.where(lengths < high, 1.0, np.where(lengths > low, factor, between))
    if factors.shape != wanted.shape or not np.allclose(factors, wanted, rtol=1e-3):
        raise Unreadable("export.unknown_tensor", path=path, tensor=ROPE)
    if factor != 1.0:
        config["rope_scaling"] = {"rope_type": "llama3", "factor": round(factor, 4), **LLAMA3}


def _hf_name(name: str, path: Path) -> str:
    stem, _, suffix = name.rpartition(".")
    parts = stem.split(".")
    if parts[0] == "blk" and len(parts) == 3 and parts[2] in _BLOCK:
        return f"model.layers.{parts[1]}.{_BLOCK[parts[2]]}.{suffix}"
    if stem in _OUTSIDE:
        return f"{_OUTSIDE[stem]}.{suffix}"
    raise Unreadable("export.unknown_tensor", path=path, tensor=name)


def _config(
    path: Path, header: gguf.Header, family: _Family, tensors: dict[str, gguf.Tensor], tied: bool, dtype: str
) -> dict[str, Any]:
    def needed(key: str) -> Any:
        value = header.of_architecture(key)
        if value is None:
            raise Unreadable("export.no_key", path=path, key=f"{header.architecture}.{key}")
        return value

    if "token_embd.weight" not in tensors:
        raise Unreadable("export.no_tensor", path=path, tensor="token_embd.weight")
    rows = tensors["token_embd.weight"].shape[1]
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
        **family.config(set(tensors)),
    }
    scaling = header.of_architecture("rope.scaling.type")
    if scaling not in (None, "none"):
        config["rope_scaling"] = {"rope_type": scaling, "factor": needed("rope.scaling.factor")}
        if first := header.of_architecture("rope.scaling.original_context_length"):
            config["rope_scaling"]["original_max_position_embeddings"] = first
    if (width := header.of_architecture("attention.key_length")) and width * heads != config["hidden_size"]:
        config["head_dim"] = width
    width = width or config["hidden_size"] // heads
    for key in ("rope.dimension_count", "attention.value_length"):
        if header.of_architecture(key) not in (None, width):  # such models exist; these families' code is not theirs
            value = header.of_architecture(key)
            raise Unreadable(
                "export.unknown_shape", path=path, key=f"{header.architecture}.{key}", value=value, width=width
            )
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
