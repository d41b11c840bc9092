"""A peft LoRA adapter (adapter_config.json, adapter_model.safetensors), and the GGUF adapter that llama.cpp reads.

The GGUF is what llama.cpp's convert_lora_to_gguf.py writes with --outtype of the adapter's own type, byte for byte; the
[train] tests hold one against the other. Needs no torch, and of the base only the header of its GGUF: which tensors it
has, their shapes, and how many heads llama.cpp's order of rotary dimensions has to be followed for.

What llama.cpp would leave out in silence is refused by name. One thing differs from the converter, which ignores it:
rank-stabilised LoRA scales by alpha/√r where llama.cpp always computes alpha/r, so that alpha·√r is written.
Source: peft's LoraConfig; llama.cpp convert_lora_to_gguf.py, conversion/llama.py (LlamaModel.permute), llama-adapter.cpp.
"""

import hashlib
import math
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGML_QUANT_VERSION as QUANT_VERSION
from gguf import GGMLQuantizationType, GGUFType, GGUFWriter, Keys, Metadata, get_tensor_name_map
from gguf.constants import MODEL_ARCH, MODEL_ARCH_NAMES
from gguf.quants import quantize
from numpy.typing import NDArray

from mofang.errors import Conflict, Unreadable
from mofang.models.base import FormatReader, Kind, ModelFacts
from mofang.models.formats import gguf, hf

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
VERSION = 1
"""Of what this file writes; the key of kept conversions has it."""
PREFIX = "base_model.model."
PERMUTED = {"llama": True, "qwen2": False, "qwen3": False}
"""Architectures of bases → whether the rows of q and k are in llama.cpp's order of rotary dimensions there."""
_TYPES: dict[str, tuple[Any, Any]] = {
    "F32": (np.dtype("<f4"), GGMLQuantizationType.F32),
    "F16": (np.dtype("<f2"), GGMLQuantizationType.F16),
    "BF16": (np.dtype("<u2"), GGMLQuantizationType.BF16),
}
"""safetensors' type → how its bytes are read, and the type in the GGUF."""

Config = dict[str, Any]
CHANGING = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Ways to begin that take what the adapter begins with out of the base."""
Condition = tuple[str, Callable[[Config], Any]]

UNKNOWN: tuple[Condition, ...] = (
    ("peft_type", lambda c: c.get("peft_type", "LORA") != "LORA"),
    ("use_qalora", lambda c: c.get("use_qalora")),
    ("trainable_token_indices", lambda c: c.get("trainable_token_indices")),
    ("target_parameters", lambda c: c.get("target_parameters")),
    ("lora_bias", lambda c: c.get("lora_bias")),
    ("layer_replication", lambda c: c.get("layer_replication")),
    ("alora_invocation_tokens", lambda c: c.get("alora_invocation_tokens") or c.get("invocation_string")),
    # These change the base's own weights when they begin.
    ("init_lora_weights", lambda c: str(c.get("init_lora_weights")).startswith(CHANGING)),
)
"""Fields of the configuration, and what they say when the adapter is none that is computed here in any way."""

REFUSED: tuple[Condition, ...] = (
    *UNKNOWN,
    ("use_dora", lambda c: c.get("use_dora")),
    ("modules_to_save", lambda c: c.get("modules_to_save")),
    ("bias", lambda c: c.get("bias", "none") != "none"),
    ("fan_in_fan_out", lambda c: c.get("fan_in_fan_out")),
    ("alpha_pattern", lambda c: c.get("alpha_pattern")),
    ("rank_pattern", lambda c: c.get("rank_pattern") and c.get("use_rslora")),
    ("lora_alpha", lambda c: not c["lora_alpha"]),  # llama.cpp takes 0 for "no alpha", and scales by 1
)
"""The same when a GGUF adapter cannot hold it."""


@dataclass(frozen=True, slots=True)
class Pair:
    """The two matrices of one layer: A (rank, inputs) and B (outputs, rank)."""

    a: hf.Stored
    b: hf.Stored


def facts(folder: Path) -> ModelFacts:
    """Nothing of the base is known here."""
    tensors = hf.layout(_weights(folder))
    by_type = Counter(tensor.dtype for tensor in tensors.values())
    config = hf.read_json(folder / CONFIG)
    return ModelFacts(
        architecture="lora",
        parameters=sum(math.prod(tensor.shape) for tensor in tensors.values()),
        n_layers=None,
        n_ctx_train=None,
        n_embd=None,
        n_head=None,
        n_head_kv=None,
        n_vocab=None,
        quantization=by_type.most_common(1)[0][0] if by_type else "",
        tokenizer="",
        chat_template=hf.template(folder),
        kv_bytes_per_token=None,
        metadata={key: value for key, value in config.items() if isinstance(value, str | int | float | bool)},
    )


def kind(folder: Path) -> Kind:
    """Alone it answers nothing."""
    return "base"


def size_bytes(folder: Path) -> int:
    return _weights(folder).stat().st_size


def stated_base(folder: Path) -> str:
    """The last part of the name or path that the adapter gives for its base: "Qwen2.5-0.5B-Instruct"."""
    stated = hf.read_json(folder / CONFIG).get("base_model_name_or_path")
    return Path(str(stated or "").replace("\\", "/")).name


def stamp(folder: Path) -> str:
    """What changes when the adapter's files do, and costs nothing."""
    states = [(folder / name).stat() for name in (CONFIG, WEIGHTS)]
    return f"{folder}:" + ":".join(f"{state.st_size}.{state.st_mtime_ns}" for state in states)


def check(folder: Path, base: Path) -> None:
    """Raises Unreadable for an adapter that cannot be served, Conflict when it does not fit the GGUF `base`."""
    _plan(folder, gguf.read(gguf.parts(base)[0]), base)


def converted(folder: Path, base: Path, kept: Path) -> Path:
    """The adapter as a GGUF file in the folder `kept`, named by its content and converted when it is not there yet.

    Raises what `check` raises.
    """
    header = gguf.read(gguf.parts(base)[0])
    plan = _plan(folder, header, base)
    heads = _heads(header)
    digest = hashlib.sha256(f"{VERSION}:{header.architecture}:{heads}\n".encode())
    for name in (CONFIG, WEIGHTS):
        digest.update(hashlib.sha256((folder / name).read_bytes()).digest())
    target = kept / f"{digest.hexdigest()}.gguf"
    if not target.is_file():
        kept.mkdir(parents=True, exist_ok=True)
        aside = kept / f".{target.name}.{os.getpid()}.part"
        try:
            _write(folder, header, plan, aside)
            aside.replace(target)
        finally:
            aside.unlink(missing_ok=True)
    return target


def convert(folder: Path, base: Path, target: Path) -> None:
    """Write the GGUF adapter `target`. Raises what `check` raises."""
    header = gguf.read(gguf.parts(base)[0])
    _write(folder, header, _plan(folder, header, base), target)


# ---- inside ----


def _weights(folder: Path) -> Path:
    path = folder / WEIGHTS
    if not path.is_file():
        raise Unreadable("models.no_weights", path=folder)
    return path


def _config(folder: Path) -> Config:
    """Raises Unreadable for what a GGUF adapter cannot hold."""
    config = hf.read_json(folder / CONFIG)
    try:
        refused = next((name for name, is_refused in REFUSED if is_refused(config)), None)
        float(config["lora_alpha"]), int(config["r"])
    except (KeyError, TypeError, ValueError) as error:
        raise Unreadable("models.config_broken", path=folder / CONFIG, why=error) from error
    if refused:
        raise Unreadable("models.adapter_kind", path=folder, field=refused, value=config.get(refused))
    return config


def _plan(folder: Path, base: gguf.Header, base_path: Path) -> dict[str, Pair]:
    """The base's name of each adapted layer → its pair, in the file's order; every shape fits the base."""
    _config(folder)
    if base.architecture not in PERMUTED:
        known = ", ".join(PERMUTED)
        raise Unreadable("models.adapter_family", path=folder, architecture=base.architecture, known=known)
    found = _pairs(folder)
    in_base = {tensor.name: tensor for part in gguf.parts(base_path) for tensor in gguf.read(part).tensors}
    names = _names(base)
    plan = {}
    for name, pair in found.items():
        known = names.get_name(f"{name}.weight", try_suffixes=(".weight",))
        tensor = in_base.get(str(known))
        if tensor is None and known == "output.weight":  # a tied head is the embedding: llama.cpp has no place for it
            raise Unreadable("models.adapter_kind", path=folder, field="lm_head", value=base_path.name)
        wanted = tensor.shape if tensor else ()
        if (pair.a.shape[1], pair.b.shape[0]) != wanted:
            shape = f"{pair.a.shape[1]} × {pair.b.shape[0]}"
            there = " × ".join(map(str, wanted)) or "–"
            raise Conflict(
                "models.adapter_misfit", path=folder, base=base_path.name, layer=name, shape=shape, there=there
            )
        plan[str(known)] = pair
    return plan


def _names(base: gguf.Header) -> Any:
    number = next(number for number, name in MODEL_ARCH_NAMES.items() if name == base.architecture)
    return get_tensor_name_map(MODEL_ARCH(number), int(base.of_architecture("block_count") or 0))


def _pairs(folder: Path) -> dict[str, Pair]:
    """Module path → its pair. Raises Unreadable for any tensor that belongs to none."""
    path = _weights(folder)
    halves: dict[str, dict[str, hf.Stored]] = {}
    for name, tensor in hf.layout(path).items():
        module, _, part = name.removeprefix(PREFIX).rpartition(".lora_")
        if part not in ("A.weight", "B.weight") or not name.startswith(PREFIX):
            raise Unreadable("models.adapter_tensor", path=folder, tensor=name)
        if len(tensor.shape) != 2 or tensor.dtype not in _TYPES:
            raise Unreadable("models.safetensors_broken", path=path, why=f"{name}: {tensor.dtype} {tensor.shape}")
        halves.setdefault(module, {})[part[0]] = tensor
    if not halves:
        raise Unreadable("models.safetensors_broken", path=path, why="0 tensors")
    for module, half in halves.items():
        if half.keys() != {"A", "B"} or half["A"].shape[0] != half["B"].shape[1]:
            raise Unreadable("models.adapter_tensor", path=folder, tensor=f"{PREFIX}{module}.lora_A.weight")
    return {module: Pair(half["A"], half["B"]) for module, half in halves.items()}


def _heads(base: gguf.Header) -> tuple[int, int]:
    """(heads of queries, heads of keys)."""
    n_head = int(base.of_architecture("attention.head_count") or 0)
    return n_head, int(base.of_architecture("attention.head_count_kv") or n_head)


def _write(folder: Path, base: gguf.Header, plan: dict[str, Pair], target: Path) -> None:
    config = _config(folder)
    alpha = float(config["lora_alpha"]) * (math.sqrt(int(config["r"])) if config.get("use_rslora") else 1.0)
    first = next(iter(plan.values())).a.dtype
    writer = GGUFWriter(target, base.architecture)
    heads = (
        dict(zip(("attn_q.weight", "attn_k.weight"), _heads(base), strict=True)) if PERMUTED[base.architecture] else {}
    )
    for name, pair in plan.items():
        low, high = _values(folder, pair.a), _values(folder, pair.b)
        n_head = next((count for suffix, count in heads.items() if name.endswith(suffix)), 0)
        for part, values in (("lora_a", low), ("lora_b", _permuted(high, n_head) if n_head else high)):
            kind = _TYPES[first][1]
            writer.add_tensor(f"{name}.{part}", quantize(values, kind), raw_dtype=kind)
    writer.add_type(GGUFType.ADAPTER)
    writer.add_string(Keys.Adapter.TYPE, "lora")
    _describe(folder, writer)
    writer.add_float32(Keys.Adapter.LORA_ALPHA, alpha)
    writer.add_quantization_version(QUANT_VERSION)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _describe(folder: Path, writer: Any) -> None:
    """Name, licence and so on, from the folder's name and its README, as llama.cpp's converter finds them."""
    try:
        stated = Metadata.load(None, folder, None, writer.get_total_parameter_count()[0])
        stated.name = stated.name or folder.name
        stated.set_gguf_meta_model(writer)
    except Exception as error:  # a stranger's YAML can hold anything
        raise Unreadable("models.readme_broken", path=folder / "README.md", why=error) from error


def _values(folder: Path, tensor: hf.Stored) -> NDArray[np.float32]:
    """(rows, columns) float32."""
    kind = _TYPES[tensor.dtype][0]
    raw = np.fromfile(folder / WEIGHTS, kind, math.prod(tensor.shape), offset=tensor.begin).reshape(tensor.shape)
    if tensor.dtype == "BF16":
        return (raw.astype(np.uint32) << 16).view(np.float32)
    return raw.astype(np.float32)


def _permuted(rows: NDArray[np.float32], n_head: int) -> NDArray[np.float32]:
    """From Hugging Face's order of rotary dimensions (halves) to llama.cpp's (pairs side by side)."""
    half = rows.shape[0] // n_head // 2
    return np.ascontiguousarray(rows.reshape(n_head, 2, half, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape))


FORMAT = FormatReader(facts, kind, size_bytes)
