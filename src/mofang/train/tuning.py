"""Which of a model's weights are trained: a function for each value of a recipe's `tune`.

Each frees parameters of a model in which all are frozen. What is trained whole is float32 whatever the rest is: a
small step added to a bfloat16 weight is lost in its rounding.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from mofang.errors import Invalid
from mofang.recipes.training import Training
from mofang.train import lora


def prepare(model: nn.Module, recipe: Training, dtype: torch.dtype) -> list[nn.Parameter]:
    """Freeze `model`, free what the recipe trains, and put the rest into `dtype`. Returns the trained, in fixed order.

    Raises Invalid when the recipe names what this model does not have.
    """
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    TUNINGS[recipe.tune](model, recipe)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.is_floating_point():  # a quantized weight is bytes
                parameter.data = parameter.data.to(torch.float32 if parameter.requires_grad else dtype)
    return trained(model)


def trained(model: nn.Module) -> list[nn.Parameter]:
    """What is free of a model, in fixed order."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def n_whole(model: nn.Module, recipe: Training) -> int:
    """How many parameters of the model (which may be on the device "meta") are trained whole."""
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    if recipe.tune == "lora":
        _free(_modules(model, recipe.modules_to_save))
    else:
        TUNINGS[recipe.tune](model, recipe)
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def blocks(model: Any) -> nn.ModuleList:
    """The decoder layers."""
    count = model.config.num_hidden_layers
    return next(module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module) == count)


def _lora(model: nn.Module, recipe: Training) -> None:
    lora.add(
        model, recipe.lora_targets, rank=recipe.lora_rank, alpha=recipe.lora_alpha, dropout=recipe.lora_dropout,
        seed=recipe.seed, rslora=recipe.lora_rslora, dora=recipe.lora_dora,
    )  # fmt: skip
    _free(_modules(model, recipe.modules_to_save))


def _full(model: nn.Module, recipe: Training) -> None:
    _free([model])


def _layers(model: nn.Module, recipe: Training) -> None:
    found = blocks(model)
    count = len(found)
    for number in recipe.layers:
        if not -count <= number < count:
            raise Invalid("train.no_such_block", param="layers", number=number, n=count, last=count - 1)
        _free([found[number]])
    _free(_modules(model, recipe.modules_to_save))


def _new_rows(model: nn.Module, recipe: Training) -> None:
    first = recipe.first_new_row or 0
    tables = {id(module.weight): module.weight for module in _tables(model)}
    for weight in tables.values():
        if first >= weight.shape[0]:
            raise Invalid("train.no_new_rows", param="first_new_row", first=first, n=weight.shape[0])
        weight.requires_grad_(True)
        # No gradient, no decay (the recipe refuses it): Adam's step for an old row is exactly 0.
        weight.register_hook(lambda slope: torch.cat([torch.zeros_like(slope[:first]), slope[first:]]))


TUNINGS: dict[str, Callable[[nn.Module, Training], None]] = {
    "lora": _lora,
    "full": _full,
    "layers": _layers,
    "new_rows": _new_rows,
}


def _free(modules: Iterable[nn.Module]) -> None:
    for module in modules:
        for parameter in module.parameters():
            parameter.requires_grad_(True)


def _tables(model: nn.Module) -> list[nn.Module]:
    """The modules with a row for each token: the embedding, and the head where there is one."""
    found = [model.get_input_embeddings(), model.get_output_embeddings()]
    return [module for module in found if module is not None]


def _modules(model: nn.Module, names: Iterable[str]) -> list[nn.Module]:
    """The modules of these names, as peft finds them: the whole name, or its end. Raises Invalid."""
    found = []
    for wanted in names:
        fitting = [module for name, module in model.named_modules() if (name == wanted or name.endswith(f".{wanted}"))]
        if not fitting:
            last = {
                name.rsplit(".", 1)[-1]
                for name, module in model.named_modules()
                if any(True for _ in module.parameters(recurse=False))
            }
            raise Invalid("train.no_such_module", param="modules_to_save", name=wanted, known=", ".join(sorted(last)))
        found += fitting
    return found
