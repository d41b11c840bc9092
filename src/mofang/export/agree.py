"""Whether a merged model says what its base and its adapters say, which are computed apart, in float32.

Adapters' products are added to layers' outputs, never to weights. One module at a time has its weights, read when it
computes: memory holds the largest, not the model. Where transformers joins or renames what files hold, which cannot be
done one by one, the whole model is loaded.
"""

import gc
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

from mofang.export import shards
from mofang.export.adapter import Adapter
from mofang.export.values import tensor
from mofang.models.base import ModelRef
from mofang.tokenizer import load as load_tokenizer

PROBE = (
    "模坊把开放的语言模型从头用到尾：看、教、合并、量化、服务。床前明月光，疑是地上霜。1 + 1 = 2. The quick brown fox."
)
"""Text on which merged model and adapter are compared."""
BOUNDS = {torch.float32: 1e-6, torch.float16: 1e-4, torch.bfloat16: 5e-3}
"""Largest mean KL divergence, in nats, that rounding the sum to that type explains."""

Held = Callable[[str], torch.Tensor]
"""A parameter's values by its name."""
Companion = Callable[[nn.Module, tuple[Any, ...], torch.Tensor], torch.Tensor]


def check(
    base: ModelRef, adapters: Sequence[Adapter], target: Path, dtype: torch.dtype, tables: tuple[str, str]
) -> dict[str, Any]:
    """Mean KL(base and adapters ‖ merged) over a probe text, share of equal likeliest tokens, and the bound.

    `tables` are the names of embedding and head.
    """
    transformers_logging.disable_progress_bar()
    ids = torch.tensor(load_tokenizer(target).encode(PROBE))[None]
    wanted = _read(lambda lent: apart(base, adapters, target, tables, lent=lent), ids)
    gc.collect()
    got = _read(lambda lent: _model(target, target, tables, {}, lent=lent), ids)
    kl = (wanted.exp() * (wanted - got)).sum(-1).mean().item()
    same = (wanted.argmax(-1) == got.argmax(-1)).float().mean().item()
    return {"mean_kl": max(0.0, kl), "same_top": same, "bound": BOUNDS[dtype], "n_tokens": ids.shape[1]}


def _read(make: Callable[[bool], nn.Module], ids: torch.Tensor) -> torch.Tensor:
    try:
        return _logprobs(make(True), ids)
    except RuntimeError:  # a module whose weights another one takes, without calling it
        return _logprobs(make(False), ids)


def apart(
    base: ModelRef, adapters: Sequence[Adapter], target: Path, tables: tuple[str, str], *, lent: bool = True
) -> nn.Module:
    """Base and adapters as a model: tensors that an adapter holds whole in their place, products beside the layers.
    `target` says whether embedding and head are one, and how many rows they have.
    """
    whole = {
        name.removeprefix("base_model.model.").replace(".base_layer.", "."): value.float()
        for each in adapters
        for name, value in each.tensors.items()
        if ".lora_" not in name
    }
    return _model(target, base.path, tables, whole, adapters, lent=lent)


def _model(
    config: Path, folder: Path, tables: tuple[str, str], whole: Mapping[str, torch.Tensor],
    adapters: Sequence[Adapter] = (), *, lent: bool,
) -> nn.Module:  # fmt: skip
    """The model of a configuration with the weights of a folder, `whole` in their place; each read when it computes, or
    all of them now."""
    (embedding, head), places = tables, shards.places(folder)
    with init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(config), dtype=torch.float32)
    parameters = [name for name, _ in model.named_parameters(remove_duplicate=False)]

    def held(name: str) -> torch.Tensor:
        if name in whole:
            return whole[name]
        path, stored = places[name if name in places or name != head else embedding]
        return tensor(shards.read(path, name, stored), stored).float()

    if lent and all(name in places or name in whole or name == head for name in parameters):
        _companions(model, adapters)
        _lend(model, held)
    else:
        del model
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        if head not in places and head in parameters and not _tied(config):
            own = model.get_output_embeddings()
            own.weight = nn.Parameter(own.weight.detach().clone(), requires_grad=False)
        for name, value in whole.items():
            owner, _, last = name.rpartition(".")
            model.get_submodule(owner)._parameters[last] = nn.Parameter(value, requires_grad=False)
        _companions(model, adapters)
    return model.eval()


def _tied(folder: Path) -> bool:
    return bool(AutoConfig.from_pretrained(folder).get_text_config().tie_word_embeddings)


def _lend(model: nn.Module, held: Held) -> None:
    """Give each module its weights while it computes. Its companion is called before they are taken away again."""
    for path, module in model.named_modules():
        own = list(module._parameters)
        own = [name for name in own if module._parameters[name] is not None]
        if not own:
            continue
        empty = dict(module._parameters)

        def lend(module: nn.Module, _: Any, path: str = path, own: list[str] = own) -> None:
            for name in own:
                value = held(f"{path}.{name}" if path else name)
                module._parameters[name] = nn.Parameter(value, requires_grad=False)

        def take(module: nn.Module, *_: Any, empty: dict[str, Any] = empty) -> None:
            module._parameters.update(empty)

        module.register_forward_pre_hook(lend)
        module.register_forward_hook(take)


def _companions(model: nn.Module, adapters: Sequence[Adapter]) -> None:
    for name, module in model.named_modules():
        beside = [each for each in adapters if each.pair(f"{name}.weight")]
        if beside:
            module.register_forward_hook(_companion(beside, f"{name}.weight"))


def _companion(adapters: Sequence[Adapter], name: str) -> Companion:
    """What adds the adapters' products to a layer's output, one after another; DoRA gives its rows their lengths."""

    def hook(module: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
        bias = getattr(module, "bias", None)
        output = output if bias is None else output - bias
        weight = module.weight
        for each in adapters:
            pair, lengths = each.pair(name), each.lengths(name)
            assert pair is not None
            # An embedding that multiplies its output (Gemma) is adapted before it does.
            output = output + pair.of(inputs[0]) * each.weight * getattr(module, "embed_scale", 1.0)
            if any(other.config.get("use_dora") for other in adapters):
                weight = weight + pair.product() * each.weight
            if lengths is not None:
                factor = lengths / weight.norm(dim=1)
                output, weight = output * factor, weight * factor[:, None]
        return output if bias is None else output + bias

    return hook


@torch.no_grad()
def _logprobs(model: nn.Module, ids: torch.Tensor) -> torch.Tensor:
    """(n_tokens, n_vocab) float32."""
    return torch.log_softmax(model(input_ids=ids, use_cache=False).logits[0].float(), -1)
