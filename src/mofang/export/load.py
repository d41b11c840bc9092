"""A folder's model in PyTorch, whole and in float32, whatever its weights are kept in: what others are compared with."""

from typing import Any

import torch
from accelerate import init_empty_weights
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

from mofang.errors import Unreadable
from mofang.export.gptq import format
from mofang.models.base import ModelRef


def causal_model(ref: ModelRef) -> Any:
    """The model of a Hugging Face or GPTQ folder, in eval mode."""
    transformers_logging.disable_progress_bar()
    return _LOADERS[ref.format](ref)


def _hf(ref: ModelRef) -> Any:
    return AutoModelForCausalLM.from_pretrained(ref.path, dtype=torch.float32)


def _gptq(ref: ModelRef) -> Any:
    """Quantized weights take their values' place: transformers would ask for GPTQModel."""
    from safetensors.torch import load_file

    config = AutoConfig.from_pretrained(ref.path)
    del config.quantization_config
    with init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    stated = format.config(ref.path)
    state = {f"{name}.weight": torch.from_numpy(layer.weight(stated)) for name, layer in format.layers(ref.path)}
    for file in sorted(ref.path.glob("*.safetensors")):
        parts = load_file(file)
        state |= {name: value.float() for name, value in parts.items() if name.rpartition(".")[2] not in format.PARTS}
    missing, unknown = model.load_state_dict(state, strict=False, assign=True)
    model.tie_weights()
    odd = [*unknown, *(name for name in missing if not (name == "lm_head.weight" and config.tie_word_embeddings))]
    if odd:
        raise Unreadable("export.no_tensor", path=ref.path, tensor=odd[0])
    return model.eval()


_LOADERS = {"hf": _hf, "gptq": _gptq}
