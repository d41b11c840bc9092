"""A Hugging Face folder: config.json and the headers of its safetensors. Minimal facts, nothing is loaded.

A safetensors file begins with 8 bytes, the length of a JSON object that names each tensor's type, shape and place
(https://huggingface.co/docs/safetensors). Only that object is read. Python files that lie beside a model are never
looked at; pickled weights (.bin, .pt) do not count as weights.
"""

import json
import re
from collections import Counter
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from mofang.errors import Unreadable
from mofang.models.base import Format, FormatReader, Kind, ModelFacts

MAX_JSON_BYTES = 1 << 26
"""64 MiB: config files have kilobytes, headers of the largest models a few megabytes."""
INDEX = "model.safetensors.index.json"
_PART = re.compile(r"^(?P<stem>.+)-\d{5}-of-(?P<count>\d{5})\.safetensors$")
_GPT_NAMES = {
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "hidden_size": "n_embd",
    "max_position_embeddings": "n_positions",
}
"""The same in GPT-2's and GPT-J's config.json."""


def is_model(folder: Path) -> bool:
    """Whether the folder holds a model or an adapter of this kind."""
    names = ("config.json", "adapter_config.json")
    return any((folder / name).is_file() for name in names) and any(folder.glob("*.safetensors"))


def is_pickled(folder: Path) -> bool:
    """Whether the folder's weights are Python pickles, which may run programs when they are read, and nothing else."""
    pickles = any(folder.glob("pytorch_model*.bin"))
    return pickles and (folder / "config.json").is_file() and not any(folder.glob("*.safetensors"))


def format_of(folder: Path) -> Format:
    """Which of the formats that live in such a folder this is."""
    if (folder / "adapter_config.json").is_file():
        return "lora"
    quantized = read_json(folder / "config.json").get("quantization_config") or {}
    return "gptq" if quantized.get("quant_method") == "gptq" else "hf"


def size_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in weights(folder))


def kind(folder: Path) -> Kind:
    if (folder / "adapter_config.json").is_file():
        return "base"
    heads = [str(name) for name in read_json(folder / "config.json").get("architectures") or []]
    if any(name.endswith("ForSequenceClassification") for name in heads):
        return "reranker"
    if heads and not any("LM" in name or "ConditionalGeneration" in name for name in heads):
        return "embedding"
    return "chat" if template(folder) else "base"


def facts(folder: Path) -> ModelFacts:
    config = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    count, by_type = 0, Counter[str]()
    for path in weights(folder):
        for tensor in layout(path).values():
            count += prod(tensor.shape)
            by_type[tensor.dtype] += tensor.end - tensor.begin
    quantized = config.get("quantization_config") or {}
    heads = _first(config, "num_attention_heads")
    return ModelFacts(
        architecture=str(config.get("model_type", "")),
        parameters=count,
        n_layers=_first(config, "num_hidden_layers"),
        n_ctx_train=_first(config, "max_position_embeddings"),
        n_embd=_first(config, "hidden_size"),
        n_head=heads,
        n_head_kv=_whole(config.get("num_key_value_heads")) or heads,
        n_vocab=_whole(config.get("vocab_size")),
        quantization=_quantization(quantized) or (by_type.most_common(1)[0][0] if by_type else ""),
        tokenizer=str(read_json(folder / "tokenizer_config.json", missing={}).get("tokenizer_class", "")),
        chat_template=template(folder),
        kv_bytes_per_token=_kv_bytes(config),
        metadata={key: value for key, value in config.items() if isinstance(value, str | int | float | bool)},
    )


def _quantization(stated: dict[str, Any]) -> str:
    method, bits = stated.get("quant_method"), stated.get("bits")
    return f"{str(method).upper()} {bits}-bit" if method and bits else str(method or "").upper()


def _kv_bytes(config: dict[str, Any]) -> int | None:
    layers, heads, width = (_first(config, key) for key in ("num_hidden_layers", "num_attention_heads", "hidden_size"))
    if not layers or not heads or not width:
        return None
    head = _whole(config.get("head_dim")) or width // heads
    return layers * (_whole(config.get("num_key_value_heads")) or heads) * head * 2 * 2


def template(folder: Path) -> str | None:
    path = folder / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8", errors="replace")
    template = read_json(folder / "tokenizer_config.json", missing={}).get("chat_template")
    return template if isinstance(template, str) else None


def weights(folder: Path) -> list[Path]:
    """The files that hold the model, as transformers chooses them: model.safetensors, else those that the index names,
    else whatever is there. Raises Unreadable where there are none, and for one that is missing.
    """
    whole, index = folder / "model.safetensors", folder / INDEX
    if whole.is_file():
        return [whole]
    found = sorted(path.name for path in folder.glob("*.safetensors"))
    wanted = set(found)
    for name in found:
        if part := _PART.match(name):
            count = min(int(part["count"]), 99_999)
            wanted |= {f"{part['stem']}-{n:05d}-of-{count:05d}.safetensors" for n in range(1, count + 1)}
    if index.is_file():
        named = read_json(index).get("weight_map")
        if not isinstance(named, dict) or not all(isinstance(n, str) and Path(n).name == n for n in named.values()):
            raise Unreadable("models.config_broken", path=index, why="weight_map")
        wanted = set(named.values())
    missing = sorted(wanted - set(found))
    if missing and found:
        raise Unreadable("models.shard_missing", path=folder, missing=missing[0], n=len(missing), count=len(wanted))
    if not found:
        raise Unreadable("models.no_weights", path=folder)
    return [folder / name for name in sorted(wanted)]


@dataclass(frozen=True, slots=True)
class Stored:
    """Where a tensor lies in its file: its type as safetensors says it, its shape, its bytes from `begin` to `end`."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def layout(path: Path) -> dict[str, Stored]:
    """Every tensor of a safetensors file in the file's order; the data that the header promises must be there."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or not 2 <= length <= min(MAX_JSON_BYTES, size - 8):
            raise Unreadable("models.safetensors_broken", path=path, why=f"header length {length}")
        text = file.read(length)
    data = 8 + length
    try:
        found = {}
        for name, entry in json.loads(text).items():
            if name != "__metadata__":
                first, last = (int(offset) for offset in entry["data_offsets"])
                shape = tuple(int(n) for n in entry["shape"])
                found[name] = Stored(str(entry["dtype"]), shape, data + first, data + last)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Unreadable("models.safetensors_broken", path=path, why=error) from error
    end = max((tensor.end for tensor in found.values()), default=data)
    if end > size:
        raise Unreadable("models.gguf_truncated", path=path, size=size, needed=end)
    return found


def read_json(path: Path, missing: dict[str, Any] | None = None) -> dict[str, Any]:
    if missing is not None and not path.is_file():
        return missing
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise ValueError(f"{path.stat().st_size} bytes")
        value = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(value, dict):
            raise ValueError("not an object")
    except (OSError, ValueError, RecursionError) as error:
        raise Unreadable("models.config_broken", path=path, why=error) from error
    return value


def _first(config: dict[str, Any], name: str) -> int | None:
    """A whole number of config.json, under today's name or GPT-2's."""
    return _whole(config.get(name)) or _whole(config.get(_GPT_NAMES[name]))


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


FORMAT = FormatReader(facts, kind, size_bytes)
