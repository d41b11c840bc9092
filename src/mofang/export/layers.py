"""A causal model of transformers of which one decoder layer at a time is in memory, and what its layers are given.

Nothing here names a family: which modules are the layers, which of their linear modules read the same input, and what
else a layer is called with is seen from one reading of one sequence.
"""

import os
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from mofang.errors import Unreadable
from mofang.export.gptq import format
from mofang.platform import has_fast_bfloat16

BATCH_TOKENS = 4096
"""Tokens that a layer reads at a time; bounds memory."""
STRIPES = 6
"""A sum of x xᵀ is computed in this many stripes, of each of which only what is right of the diagonal: 7/12 of the work."""


class _Enough(Exception):
    """What was to be seen was seen."""


class Hidden:
    """States between two layers, (n_sequences, length, width), in a file: the system keeps of it what fits."""

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        self.path = path
        n = shape[0] * shape[1] * shape[2]
        _take(path, n * dtype.itemsize)
        self.values = torch.from_file(str(path), shared=True, size=n, dtype=dtype).view(shape)

    def batches(self) -> Iterator[tuple[slice, Tensor]]:
        count = max(1, BATCH_TOKENS // self.values.shape[1])
        for begin in range(0, len(self.values), count):
            part = slice(begin, begin + count)
            yield part, self.values[part]


def _take(path: Path, n_bytes: int) -> None:
    """Take a file's room on the disk now: a write into a mapped file on a full one ends the process without a word."""
    with path.open("ab") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, n_bytes)


class _Once:
    """A module's forward that is computed once for each batch, from when its weights are final."""

    def __init__(self, module: nn.Module, last: "_Last | None") -> None:
        self.forward = module.forward
        self.last = last
        self.batch = 0
        self.kept: dict[int, Any] = {}

    def __call__(self, *given: Any, **more: Any) -> Any:
        if self.batch not in self.kept:
            last = self.last if self.last and self.batch in self.last.inputs else None
            self.kept[self.batch] = last.answer(self.batch) if last else self.forward(*given, **more)
        return self.kept[self.batch]


class _Last:
    """The linear module whose answer is that of the part of a layer which it belongs to, and its inputs of each batch."""

    def __init__(self, module: nn.Linear, form: tuple[None, ...] | None) -> None:
        self.module = module
        self.form = form
        """What stands behind the answer when the part returns a tuple."""
        self.inputs: dict[int, Tensor] = {}
        self.file: Hidden | None = None

    def keep(self, part: slice, x: Tensor, hidden: Hidden) -> None:
        """Keep the inputs (b, length, n_in) of a batch, in a file beside that of the states."""
        if self.file is None:
            path = hidden.path.with_name("inputs.bin")
            self.file = Hidden(path, (*hidden.values.shape[:2], x.shape[-1]), x.dtype)
            path.unlink()  # it lives for as long as it is mapped
        self.file.values[part] = x
        self.inputs[part.start] = self.file.values[part]

    def answer(self, batch: int) -> Any:
        made = self.module(self.inputs.pop(batch).to(self.module.weight.device))
        return made if self.form is None else (made, *self.form)


def device() -> torch.device:
    """The first GPU, or the CPU. (Only the CPU has been run.)"""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def dtype(on: torch.device) -> torch.dtype:
    """What layers are computed in while texts are read: bfloat16 where that is fast."""
    return torch.bfloat16 if on.type == "cuda" or has_fast_bfloat16() else torch.float32


class Decoder:
    """The model of a folder. Raises Unreadable for one that is not built of layers of linear modules."""

    def __init__(self, folder: Path, on: torch.device, dtype: torch.dtype) -> None:
        self.folder, self.on, self.dtype = folder, on, dtype
        self.places = format.where(folder)
        config = AutoConfig.from_pretrained(folder)
        with init_empty_weights(include_buffers=False):
            self.model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
        self.model.eval()
        for name, buffer in self.model.named_buffers():
            owner, _, own = name.rpartition(".")
            self.model.get_submodule(owner)._buffers[own] = buffer.to(on)
        n_layers = config.get_text_config().num_hidden_layers
        found = [
            (name, module)
            for name, module in self.model.named_modules()
            if isinstance(module, nn.ModuleList) and len(module) == n_layers
        ]
        if not found:
            raise Unreadable("export.gptq_family", path=folder, architecture=str(config.model_type), what="-")
        self.prefix, self.layers = found[0]
        self.tied = f"{self._name(self.model.get_output_embeddings())}.weight" not in self.places
        """Whether the head is the embedding's matrix."""
        self.once: dict[str, _Once] = {}
        """Parts of the loaded layer whose outputs are kept."""
        self.lasts: dict[str, tuple[str, _Last]] = {}
        """Linear modules of the loaded layer that are the last of a part of it."""
        self.calls: list[dict[str, Any]] = []
        """What each layer is called with beside the states."""
        for index, layer in enumerate(self.layers):
            odd = _not_linear(layer)
            if odd:
                raise Unreadable(
                    "export.gptq_family", path=folder, architecture=str(config.model_type), what=f"{index}.{odd}"
                )

    def __len__(self) -> int:
        return len(self.layers)

    def tensor(self, name: str) -> Tensor:
        """A tensor as its file holds it. Raises Unreadable for one that is not there, or holds NaN or infinity."""
        path = self.places.get(name)
        if path is None:
            raise Unreadable("export.no_tensor", path=self.folder, tensor=name)
        with safe_open(str(path), framework="pt") as file:
            found = file.get_tensor(name)
        if found.is_floating_point() and not bool(found.isfinite().all()):
            raise Unreadable("export.not_finite", path=path, tensor=name)
        return found

    @torch.no_grad()
    def begin(self, ids: Tensor, path: Path) -> Hidden:
        """The states (n_sequences, length, width) that the first layer is given for ids (n_sequences, length)."""
        with self._embedding():
            first = self._given(ids[:1])
            hidden = Hidden(path, (len(ids), *first.shape[1:]), self.dtype)
            for row in range(len(ids)):
                hidden.values[row] = self._given(ids[row : row + 1])[0]
        return hidden

    @torch.no_grad()
    def prepare(self, ids: Tensor) -> int:
        """See with what layers are called for sequences like ids; returns the states' width."""
        with self._embedding():
            return self._given(ids[:1]).shape[-1]

    @contextmanager
    def _embedding(self) -> Iterator[None]:
        embedding = self.model.get_input_embeddings()
        _set(embedding, "weight", self.tensor(f"{self.embedding_name}.weight").to(self.on, self.dtype))
        yield
        embedding.to("meta")

    def _given(self, ids: Tensor) -> Tensor:
        """What the first layer is given for ids (1, length); `calls` says with what each layer is called."""
        seen: list[Tensor] = []
        self.calls = []

        def watched(states: Tensor, *rest: Any, **more: Any) -> Tensor:
            seen.append(states)
            if rest:
                raise Unreadable("export.gptq_family", path=self.folder, architecture="-", what="positional arguments")
            self.calls.append(more)
            if len(self.calls) == len(self.layers):
                raise _Enough
            return states

        for layer in self.layers:
            layer.forward = watched
        try:
            self.model(input_ids=ids.to(self.on), use_cache=False)
        except _Enough:
            pass
        finally:
            for layer in self.layers:
                del layer.forward
        return seen[0]

    @property
    def embedding_name(self) -> str:
        """The module that makes states of ids."""
        return self._name(self.model.get_input_embeddings())

    @property
    def head_name(self) -> str:
        """The module whose matrix makes logits of states; for a tied head the embedding."""
        return self.embedding_name if self.tied else self._name(self.model.get_output_embeddings())

    def _name(self, module: nn.Module) -> str:
        return next(name for name, each in self.model.named_modules() if each is module)

    @contextmanager
    def head(self) -> Iterator[Callable[[Tensor], Tensor]]:
        """What makes logits (b, length, n_vocab) of the states (b, length, width) behind the last layer."""
        out = self.model.get_output_embeddings()
        own = {f"{self._name(module)}.weight" for module in (self.model.get_input_embeddings(), out)}
        others = [name for name, _ in self.model.named_parameters() if not name.startswith(f"{self.prefix}.")]
        values = {name: self.tensor(name) for name in others if name not in own}
        for name, value in values.items():
            _set(self.model, name, value.to(self.on, self.dtype))
        _set(out, "weight", self.tensor(f"{self.head_name}.weight").to(self.on, self.dtype))

        def logits(states: Tensor) -> Tensor:
            for layer in self.layers:
                layer.forward = lambda given, **more: states
            try:
                made: Tensor = self.model(inputs_embeds=torch.zeros_like(states), use_cache=False).logits
                return made
            finally:
                for layer in self.layers:
                    del layer.forward

        try:
            yield logits
        finally:
            for name, value in values.items():
                _set(self.model, name, value.to("meta"))
            out.to("meta")

    def load(self, index: int) -> nn.Module:
        """A layer with its weights. `unload` forgets them."""
        layer: nn.Module = self.layers[index]
        for name, _ in list(layer.named_parameters()):
            value = self.tensor(f"{self.prefix}.{index}.{name}").to(self.on, self.dtype)
            _set(layer, name, value)
        return layer

    def unload(self, index: int) -> None:
        for name in self.once:
            del self.layers[index].get_submodule(name).forward
        self.once, self.lasts = {}, {}
        self.layers[index].to("meta")

    @property
    def widest(self) -> int:
        """Inputs of the widest linear module."""
        return max(module.in_features for layer in self.layers for _, module in linears(layer))

    def keep_outputs(self, index: int, final: Collection[str]) -> None:
        """Compute parts of a layer no more than once from now on whose linear modules are all `final`."""
        lasts = dict(self.lasts.values())
        names = [name for name, _ in linears(self.layers[index])]
        for part, module in self.layers[index].named_children():
            own = [name for name in names if name.startswith(f"{part}.")]
            if own and part not in self.once and all(name in final for name in own):
                self.once[part] = module.forward = _Once(module, lasts.get(part))

    def run(self, index: int, states: Tensor, batch: int = 0) -> Tensor:
        """What a layer makes of states (b, length, width), which are the batch of that number."""
        for once in self.once.values():
            once.batch = batch
        made = self.layers[index](states.to(self.on), **self.calls[index])
        return made[0] if isinstance(made, tuple) else made

    @torch.no_grad()
    def stages(self, index: int, hidden: Hidden) -> list[list[str]]:
        """Names of a layer's linear modules in the order of their calls; those that read the same input are together."""
        inputs: dict[int, list[str]] = {}
        answers: dict[int, str] = {}
        kept: list[Tensor] = []  # an address may serve twice once its tensor is gone

        def seen(name: str) -> Callable[..., None]:
            def hook(module: nn.Module, given: tuple[Tensor, ...]) -> None:
                kept.append(given[0])
                inputs.setdefault(given[0].data_ptr(), []).append(name)

            return hook

        def answered(name: str) -> Callable[..., None]:
            def hook(module: nn.Module, given: tuple[Tensor, ...], made: Tensor) -> None:
                kept.append(made)
                if given[0].shape[:-1] == hidden.values[:1].shape[:-1]:
                    answers[made.data_ptr()] = name

            return hook

        def ended(part: str) -> Callable[..., None]:
            def hook(module: nn.Module, given: Any, made: Any) -> None:
                first, *rest = made if isinstance(made, tuple) else (made,)
                name = answers.get(first.data_ptr(), "") if isinstance(first, Tensor) else ""
                if name.startswith(f"{part}.") and all(other is None for other in rest):
                    linear = self.layers[index].get_submodule(name)
                    assert isinstance(linear, nn.Linear)
                    self.lasts[name] = part, _Last(linear, tuple(rest) if isinstance(made, tuple) else None)

            return hook

        hooks = [module.register_forward_pre_hook(seen(name)) for name, module in linears(self.layers[index])]
        hooks += [module.register_forward_hook(answered(name)) for name, module in linears(self.layers[index])]
        hooks += [module.register_forward_hook(ended(part)) for part, module in self.layers[index].named_children()]
        try:
            self.run(index, hidden.values[:1])
        finally:
            for hook in hooks:
                hook.remove()
        return list(inputs.values())

    @torch.no_grad()
    def hessians(
        self, index: int, names: list[str], hidden: Hidden, tell: Callable[[int], None], *, only: bool
    ) -> dict[str, Tensor]:
        """Σ x xᵀ over all states, (n_in, n_in) float32, for each of the named modules. With `only` a reading ends there,
        and inputs are kept that spare the next readings what lies before them.

        Products are in the layers' type, as inputs are; their sum is float32.
        """
        modules = dict(linears(self.layers[index]))
        sums = {
            name: torch.zeros(modules[name].in_features, modules[name].in_features, device=self.on) for name in names
        }

        read = slice(0)

        def adds(name: str) -> Callable[..., None]:
            _, last = self.lasts.get(name, ("", None))

            def hook(module: nn.Module, given: tuple[Tensor, ...]) -> None:
                _add_square(sums[name], given[0].reshape(-1, given[0].shape[-1]))
                if only and last:
                    last.keep(read, given[0], hidden)
                if only and name == names[-1]:
                    raise _Enough

            return hook

        hooks = [modules[name].register_forward_pre_hook(adds(name)) for name in names]
        try:
            for read, states in hidden.batches():
                tell(read.start)
                try:
                    self.run(index, states, read.start)
                except _Enough:
                    continue
        finally:
            for hook in hooks:
                hook.remove()
        for total in sums.values():
            total.copy_(total.triu() + total.triu(1).t())
        return sums

    @torch.no_grad()
    def advance(self, index: int, hidden: Hidden, path: Path, tell: Callable[[int], None]) -> Hidden:
        """The states behind a layer, in a file of their own."""
        after = Hidden(path, tuple(hidden.values.shape), self.dtype)
        for part, states in hidden.batches():
            tell(part.start)
            after.values[part] = self.run(index, states, part.start)
        return after


def _add_square(total: Tensor, x: Tensor) -> None:
    """Add xᵀ x for x (n, n_in) to total (n_in, n_in), on its diagonal and right of it."""
    width = -(-len(total) // STRIPES)
    for begin in range(0, len(total), width):
        total[begin : begin + width, begin:] += x[:, begin : begin + width].t() @ x[:, begin:]


def linears(layer: nn.Module) -> list[tuple[str, nn.Linear]]:
    return [(name, module) for name, module in layer.named_modules() if isinstance(module, nn.Linear)]


def replace(layer: nn.Module, name: str, weight: Tensor) -> None:
    """Give a linear module another weight."""
    module = layer.get_submodule(name)
    assert isinstance(module, nn.Linear)
    module.weight = nn.Parameter(weight.to(module.weight.dtype), requires_grad=False)


def _set(layer: nn.Module, name: str, value: Tensor) -> None:
    owner, _, own = name.rpartition(".")
    layer.get_submodule(owner)._parameters[own] = nn.Parameter(value, requires_grad=False)


def _not_linear(layer: nn.Module) -> str:
    """A matrix of a layer that is no linear module's, or one whose shape cannot be packed; "" for none."""
    ours = {f"{name}.weight" for name, module in linears(layer) if not (module.in_features | module.out_features) % 32}
    return next((name for name, value in layer.named_parameters() if value.ndim > 1 and name not in ours), "")
