"""A GGUF of a family that we do not read ourselves, read by transformers: the whole model in float32, then a folder.

transformers leaves out in silence what it has no name for, so numbers are counted: as many weights must come out as lie
in the file.
"""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM
from transformers.integrations.ggml import GGUF_CONFIG_MAPPING
from transformers.utils import logging as transformers_logging

from mofang.errors import Unreadable
from mofang.models.formats import gguf
from mofang.models.sources.base import need_disk
from mofang.runs import Reporter

NOT_CAUSAL = frozenset({"general", "tokenizer", "t5", "umt5"})
"""Entries of transformers' table that are no decoders."""
DERIVED = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
"""Written by the converter from the configuration, not learned."""


def families() -> list[str]:
    """Architectures that transformers reads from GGUF, by llama.cpp's names."""
    return sorted({name.replace("_moe", "moe").replace("_", "-") for name in GGUF_CONFIG_MAPPING} - NOT_CAUSAL)


def write(path: Path, target: Path, *, dtype: str, report: Reporter) -> dict[str, Any]:
    """Write configuration and weights; (parameters, tied). Raises Unreadable for what transformers cannot read whole."""
    parts = gguf.parts(path)
    if len(parts) > 1:
        raise Unreadable("export.parts_not_read", path=path, count=len(parts))
    tensors = [tensor for tensor in gguf.read(path).tensors if tensor.name not in DERIVED]
    total = sum(tensor.n_elements for tensor in tensors)
    need_disk(target, total * (2 if dtype == "float16" else 4))
    report("import", 0, total, "weights")
    transformers_logging.disable_progress_bar()
    try:
        model, found = AutoModelForCausalLM.from_pretrained(
            path.parent, gguf_file=path.name, dtype=torch.float32, output_loading_info=True
        )
    except Exception as error:  # whatever a family's own reader runs into
        why = f"{type(error).__name__}: {error}"[:300]
        raise Unreadable("export.not_through", path=path, why=why) from error
    read = sum(parameter.numel() for parameter in model.parameters())
    missing = sorted(found["missing_keys"])
    tied = bool(model.config.tie_word_embeddings)
    if read != total or (missing and not tied):
        why = f"{read:,} ≠ {total:,}" + (f"; {', '.join(missing[:3])}" if missing else "")
        raise Unreadable("export.not_through", path=path, why=why)
    for name, parameter in model.named_parameters():
        if not bool(parameter.isfinite().all()):
            raise Unreadable("export.not_finite", path=path, tensor=name)
        if dtype == "float16" and float(parameter.abs().max()) > torch.finfo(torch.float16).max:
            raise Unreadable("export.beyond_float16", path=path, tensor=name)
    report("write", 0, total, "weights")
    model.hf_quantizer = None  # its weights are plain numbers by now
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.to(getattr(torch, dtype)).save_pretrained(target, max_shard_size="4GB")
    return {"parameters": total, "tied": tied}
