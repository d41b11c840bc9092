"""The fast path: a LLaMA-like decoder computed row by row, as its own modules would, with less around the products.

What it saves, by profile (docs/log.md, 2026-11-26): projections that read the same input are one product, their LoRA
companions two small ones; attention goes by blocks (attention.py); norms and SwiGLU are computed again in the backward
pass instead of being kept; and behind the last attention only the positions that are learned go on.

It is taken for what it fits in structure and where it then gives what the model itself gives (`_agrees`); everything
else runs through transformers' modules, right and slower. Source of the layers: transformers' modeling_llama.py.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from mofang.train import attention
from mofang.train.kernels import Kernels
from mofang.train.lora import LoraLinear


class Before(Protocol):
    """What happens to a projection's input: computed twice rather than kept. `weight`: what of it may be trained."""

    def run(self, x: Tensor, weight: Tensor | None) -> Tensor: ...

    def back(self, x: Tensor, weight: Tensor | None, slope: Tensor) -> tuple[Tensor, Tensor | None]:
        """The gradients for x and, where it is trained, for the weight."""


class _Nothing:
    def run(self, x: Tensor, weight: Tensor | None) -> Tensor:
        return x

    def back(self, x: Tensor, weight: Tensor | None, slope: Tensor) -> tuple[Tensor, Tensor | None]:
        return slope, None


class _Norm:
    def __init__(self, kernels: Kernels, eps: float) -> None:
        self.kernels, self.eps = kernels, eps

    def run(self, x: Tensor, weight: Any) -> Tensor:
        return self.kernels.norm(x, weight, self.eps)

    def back(self, x: Tensor, weight: Any, slope: Tensor) -> tuple[Tensor, Tensor | None]:
        of_weight = None
        if weight.requires_grad:
            of_weight = (slope.float() * self.kernels.norm(x, torch.ones_like(weight), self.eps)).sum(0)
        return self.kernels.norm_back(x, weight, self.eps, slope), of_weight


class _SwiGlu:
    def __init__(self, kernels: Kernels) -> None:
        self.kernels = kernels

    def run(self, x: Tensor, weight: Tensor | None) -> Tensor:
        return self.kernels.swiglu(x)

    def back(self, x: Tensor, weight: Tensor | None, slope: Tensor) -> tuple[Tensor, Tensor | None]:
        return self.kernels.swiglu_back(x, slope), None


class _Turn(torch.autograd.Function):
    """kernels.turn and its way back."""

    @staticmethod
    def forward(ctx: Any, kernels, x, cos, sin, n_turned):
        ctx.save_for_backward(cos, sin)
        ctx.kernels, ctx.n_turned = kernels, n_turned
        return kernels.turn(x, cos, sin, n_turned)

    @staticmethod
    def backward(ctx: Any, upstream):
        return None, ctx.kernels.turn_back(upstream, *ctx.saved_tensors, ctx.n_turned), None, None, None


class _Projection(torch.autograd.Function):
    """before(x) · Wᵀ + bias + (before(x) · Aᵀ) · Bᵀ; x (n, in), W (out, in), A (r, in), B (out, r) with LoRA's scale."""

    @staticmethod
    def forward(ctx: Any, before, x, beside, weight, bias, a, b):
        seen = before.run(x, beside)
        out = seen @ weight.t() if bias is None else torch.addmm(bias, seen, weight.t())
        narrow = None
        if a is not None and b is not None:
            narrow = seen @ a.t()
            out.addmm_(narrow, b.t())
        ctx.save_for_backward(x, beside, weight, a, b, narrow)
        ctx.before = before
        return out

    @staticmethod
    def backward(ctx: Any, upstream):
        x, beside, weight, a, b, narrow = ctx.saved_tensors
        _, for_x, for_beside, for_weight, for_bias, for_a, _ = ctx.needs_input_grad
        seen = ctx.before.run(x, beside) if for_weight or for_a else None
        of_x = of_beside = of_weight = of_bias = of_a = of_b = None
        low = upstream @ b if a is not None else None
        if for_x or for_beside:
            slope = upstream @ weight
            if low is not None:
                slope.addmm_(low, a)
            of_x, of_beside = ctx.before.back(x, beside, slope)
        if for_weight:
            of_weight = upstream.t() @ seen
        if for_bias:
            of_bias = upstream.sum(0)
        if for_a and low is not None:
            of_a, of_b = low.t() @ seen, upstream.t() @ narrow
        return None, of_x, of_beside, of_weight, of_bias, of_a, of_b


class _Group:
    """Linear layers that read the same input, as one."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        self.layers = layers
        plain = [layer.base if isinstance(layer, LoraLinear) else layer for layer in layers]
        self.plain: list[nn.Linear] = plain
        self.stacked: Tensor | None = None
        if not any(layer.weight.requires_grad for layer in plain):
            self.stacked = plain[0].weight.data
            if len(plain) > 1:
                self.stacked = torch.cat([layer.weight.data for layer in plain])
                for layer, part in zip(plain, self.stacked.split([layer.out_features for layer in plain]), strict=True):
                    layer.weight.data = part  # one copy in memory

    def __call__(self, before: Before, x: Tensor, beside: Tensor | None = None) -> Tensor:
        weight = self.stacked
        if weight is None:
            parts = [layer.weight.to(x.dtype) for layer in self.plain]  # before they are joined: half the bytes to move
            weight = parts[0] if len(parts) == 1 else torch.cat(parts)
        projected: Tensor = _Projection.apply(before, x, beside, weight, self._bias(x), *self._lora(x))
        return projected

    def _bias(self, x: Tensor) -> Tensor | None:
        if all(layer.bias is None for layer in self.plain):
            return None
        parts = [x.new_zeros(layer.out_features) if layer.bias is None else layer.bias for layer in self.plain]
        return torch.cat([part.to(x.dtype) for part in parts])

    def _lora(self, x: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """A (ranks, in) of all, and B (out, ranks), each layer's in its own rows and columns."""
        taught = [layer for layer in self.layers if isinstance(layer, LoraLinear) and not layer.off]
        if not taught:
            return None, None
        parts = [
            layer.lora_B * layer.scale if layer in taught else x.new_zeros(plain.out_features, 0)
            for layer, plain in zip(self.layers, self.plain, strict=True)
        ]
        return torch.cat([layer.lora_A for layer in taught]).to(x.dtype), torch.block_diag(*parts).to(x.dtype)


class Decoder:
    """Of a model that `fits`: (ids, segments, places) → the final states at those places."""

    def __init__(self, model: Any, dtype: torch.dtype, kernels: Kernels) -> None:
        self.body = model.base_model
        self.dtype = dtype
        self.kernels = kernels
        self.layers = [
            (
                layer,
                _Group([getattr(layer.self_attn, name) for name in ("q_proj", "k_proj", "v_proj")]),
                _Group([layer.self_attn.o_proj]),
                _Group([layer.mlp.gate_proj, layer.mlp.up_proj]),
                _Group([layer.mlp.down_proj]),
            )
            for layer in self.body.layers
        ]

    def __call__(self, ids: Tensor, segments: Sequence[int], places: Tensor, parents: Sequence[int] = ()) -> Tensor:
        """ids (n,), segments that sum up to n, places (m,) → (m, H); `parents` as in attention.attend."""
        x = self.body.embed_tokens(ids).to(self.dtype)
        cos, sin = self.body.rotary_emb(x, attention.positions(segments, parents).to(ids.device))
        cos, sin = cos[0].to(self.dtype), sin[0].to(self.dtype)
        for number, (layer, qkv, out, wide, down) in enumerate(self.layers, start=1):
            attended = self._attend(layer, qkv, x, (cos, sin), segments, parents)
            if number == len(self.layers):
                x, attended = x[places], attended[places]
            x = x + out(_Nothing(), attended)
            inner = wide(self._norm(layer.post_attention_layernorm), x, layer.post_attention_layernorm.weight)
            x = x + down(_SwiGlu(self.kernels), inner)
        states: Tensor = self.body.norm(x)
        return states

    def _norm(self, module: Any) -> _Norm:
        return _Norm(self.kernels, module.variance_epsilon)

    def _attend(
        self,
        layer: Any,
        qkv: _Group,
        x: Tensor,
        angles: tuple[Tensor, Tensor],
        segments: Sequence[int],
        parents: Sequence[int],
    ) -> Tensor:
        module, norm = layer.self_attn, layer.input_layernorm
        heads = qkv(self._norm(norm), x, norm.weight).view(len(x), -1, module.head_dim)
        n_kv = qkv.plain[1].out_features // module.head_dim
        n_q = heads.shape[1] - 2 * n_kv
        if hasattr(module, "q_norm"):
            q, k, v = heads.split([n_q, n_kv, n_kv], dim=1)
            heads = torch.cat([module.q_norm(q).to(self.dtype), module.k_norm(k).to(self.dtype), v], dim=1)
        q, k, v = _Turn.apply(self.kernels, heads, *angles, n_q + n_kv).split([n_q, n_kv, n_kv])
        return attention.attend(q, k, v, segments, module.scaling, parents).reshape(len(x), -1)


def fitting(model: Any, dtype: torch.dtype, kernels: Kernels) -> Decoder | None:
    """The fast path for this model as it is to be trained, or None where it would not give the same states."""
    if isinstance(model, FSDPModule) or not fits(model):
        return None
    decoder = Decoder(model, dtype, kernels)
    return decoder if _agrees(model, decoder) else None


_LAYER = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
_ATTENTION, _NORMS = {"q_proj", "k_proj", "v_proj", "o_proj"}, {"q_norm", "k_norm"}
_MLP = {"gate_proj", "up_proj", "down_proj"}


def fits(model: Any) -> bool:
    """Whether a model, which may be on the device "meta", is built as the fast path needs it."""
    body, config = model.base_model, model.config
    if getattr(config, "hidden_act", "") != "silu" or not hasattr(body, "layers") or not hasattr(body, "rotary_emb"):
        return False
    return all(
        _children(layer) == _LAYER
        and _children(layer.self_attn) in (_ATTENTION, _ATTENTION | _NORMS)
        and _children(layer.mlp) - {"act_fn"} == _MLP
        and hasattr(layer.input_layernorm, "variance_epsilon")
        and getattr(layer.self_attn, "sliding_window", None) is None
        and all(_is_plain(part) for part in (*layer.self_attn.children(), *layer.mlp.children()))
        for layer in body.layers
    )


def _children(module: nn.Module) -> set[str]:
    return {name for name, _ in module.named_children()}


def _is_plain(part: nn.Module) -> bool:
    """Whether what it computes, and what is trained in it, is what `_Projection` does."""
    if isinstance(part, LoraLinear):
        return type(part) is LoraLinear and isinstance(part.dropout, nn.Identity) and _is_plain(part.base)
    return not isinstance(part, nn.Linear) or type(part) is nn.Linear  # a quantized one unpacks its weight


def probe(model: Any, device: torch.device) -> Tensor:
    """(24,): ids to compare two ways of computing a model by."""
    return (torch.arange(24, device=device) * 7919 + 1000) % model.config.vocab_size


def alike(wanted: Tensor, got: Tensor, dtype: torch.dtype) -> bool:
    """Whether two ways of computing, in `dtype`, give the same states (n, H).

    By the median over tokens: in bfloat16 a few can lie far apart, since what is rounded differently early grows (one
    of 24 special tokens was 1.3 of its length away from float32's state, on either path). A layer that is computed in
    another way puts all of them apart.
    """
    apart = (wanted.float() - got.float()).norm(dim=1) / wanted.float().norm(dim=1)
    return bool(apart.median() < (1e-3 if dtype == torch.float32 else 0.1))


@torch.no_grad()
def _agrees(model: Any, decoder: Decoder) -> bool:
    """Whether both give the same states for two short examples in one row."""
    device = next(model.parameters()).device
    segments, ids = [9, 15], probe(model, device)
    told = {"position_ids": attention.positions(segments).to(device), "segments": segments, "use_cache": False}
    with torch.autocast(device.type, decoder.dtype, enabled=decoder.dtype != torch.float32):
        wanted = model.base_model(input_ids=ids[None], **told).last_hidden_state[0]
    return alike(wanted, decoder(ids, segments, torch.arange(24, device=device)), decoder.dtype)
