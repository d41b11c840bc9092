"""What is known of a model on disk without loading it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

Kind = Literal["chat", "embedding", "reranker", "base"]
Format = Literal["gguf", "hf", "gptq", "lora"]


@dataclass(frozen=True, slots=True)
class ModelRef:
    """A model that can be used: its name, and where it lies."""

    name: str
    path: Path
    """The .gguf file (the first one of a split model), or the folder of a Hugging Face model."""
    format: Format
    kind: Kind
    size_bytes: int
    sha256: str | None = None
    """Of the file, as computed when it was pulled or added; None for files found in MOFANG_MODEL_PATH."""
    source: str = ""
    """Where it came from, for people: "pypi", "huggingface", "modelscope", a path…"""
    managed: bool = True
    """Lies under the home folder: `rm` deletes it. False: found in MOFANG_MODEL_PATH or added in place."""
    runnable: bool = True
    """An engine can answer from it as it is; False: it is there to be trained, merged or exported."""
    manifest: dict[str, Any] = field(default_factory=dict)
    """manifest.json as it was read: licence, digests, parents, when and from where it was pulled."""
    base: str = ""
    """Of an adapter over a base ("base:adapter"): the base's name; the same process answers for both."""


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """Read from the file's own metadata. None: the file does not say."""

    architecture: str
    parameters: int
    n_layers: int | None
    n_ctx_train: int | None
    n_embd: int | None
    n_head: int | None
    n_head_kv: int | None
    n_vocab: int | None
    quantization: str
    """As people call it: "Q4_K_M", "F16"…"""
    tokenizer: str
    chat_template: str | None
    kv_bytes_per_token: int | None
    """Bytes of key and value cache for one token of context, at 16 bits."""
    metadata: dict[str, Any] = field(default_factory=dict)
    """The file's short metadata values (no token lists)."""


@dataclass(frozen=True, slots=True)
class FormatReader:
    """How a format is read without loading a model. Each function raises Unreadable for a damaged or cut-off one."""

    facts: Callable[[Path], ModelFacts]
    kind: Callable[[Path], Kind]
    size_bytes: Callable[[Path], int]
    """Bytes of the weights, all files together."""


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """Bytes that a loaded model will take. `total` is their sum."""

    weights: int
    kv_cache: int
    compute: int
    """Buffers for one batch, and the server itself."""
    total: int
