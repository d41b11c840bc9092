"""A BERT's layers as an ONNX graph: rows of the embedding in, one vector out. No padding: a run computes one text.

Products of 8-bit integers are the fastest that onnxruntime knows on a CPU (VNNI, AMX). It rounds a product's whole
input with one scale, and a BERT has a few channels that are twenty times as large as the others: rounded with them, the
others lose what they say. So channels are first brought to like sizes, the factor going into the weights ("SmoothQuant",
Xiao et al. 2022), and before the widest product the largest few are computed apart in float32 (the idea of
"LLM.int8()", Dettmers et al. 2022). How large channels grow is seen on a few texts. e5-small: 1 - cosine to float32
.0025 without, .0003 with; a quarter of a point of that is all that retrieval notices (docs/log.md, 2026-11-25).

Operators: https://onnx.ai/onnx/operators/ and onnxruntime's docs/ContribOperators.md (domain com.microsoft).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from mofang.engine.onnx.weights import Floats, Weights

VERSION = 1
"""Of what is written here: a graph kept from before is made anew when it is another."""
INPUT, OUTPUT = "rows", "vector"
MICROSOFT = "com.microsoft"
OPSET, IR = 18, 10


@dataclass(frozen=True, slots=True)
class Rounding:
    """How the input of a product is brought into 8 bits."""

    alpha: float
    """0: channels as they are, 1: all of one size; what is taken from the input goes into the weights."""
    n_apart: int = 0
    """Channels, the largest ones, that are computed in float32."""


ROUNDING = {"attn_q": Rounding(0.7), "ffn_up": Rounding(0.7), "ffn_down": Rounding(0.5, n_apart=4)}
"""By the product's first matrix. `attn_output` is not here: its inputs, means of values, are of like sizes.

Chosen on e5-small; 1 - cosine to float32, mean of 20 texts: alpha .5 .0025, .6 .0010, .7 .0006, .85 .0007; with four
channels apart in ffn_down .0003, in all three .0002 but 4 % slower."""


def channels(n_layers: int) -> list[str]:
    """What has to be watched to know how large the products' inputs grow: names of values in the float32 graph."""
    return [name for i in range(n_layers) for name in (f"in{i}", f"middle{i}", f"gelu{i}")]


def build(weights: Weights, *, largest: Mapping[str, Floats] | None = None, watched: Sequence[str] = ()) -> bytes:
    """The graph, serialised. Input: (1, n_tokens, n_embd) rows of the token embedding; output: (1, n_embd), pooled, not
    yet of length 1.

    largest: the largest magnitude of each channel by `channels`' names; products are of 8-bit integers then, and of
    float32 without. watched: values to give out as well.
    """
    shape = weights.shape()
    write = _Writer(weights, largest)
    at = write.constant("positions", weights.tensor("position_embd.weight") + weights.tensor("token_types.weight")[0])
    zero, one = write.constant("zero", np.array([0], np.int64)), write.constant("one", np.array([1], np.int64))
    length = write.node("Shape", [INPUT], "length", start=1, end=2)
    x = write.node("Add", [INPUT, write.node("Slice", [at, zero, length, zero], "position")], "embedded")
    x = write.norm(x, "token_embd_norm", "in0", shape.eps)
    for i in range(shape.n_layers):
        block = f"blk.{i}."
        qkv = write.product(x, [block + name for name in ("attn_q", "attn_k", "attn_v")], f"qkv{i}")
        q, k, v = write.split(qkv, [shape.n_embd] * 3, [f"q{i}", f"k{i}", f"v{i}"])
        seen = write.node("MultiHeadAttention", [q, k, v], f"seen{i}", MICROSOFT, num_heads=shape.n_heads)
        x = write.node("Add", [write.product(seen, [block + "attn_output"], f"told{i}"), x], f"sum{i}")
        x = write.norm(x, block + "attn_output_norm", f"middle{i}", shape.eps)
        up = write.node("Gelu", [write.product(x, [block + "ffn_up"], f"up{i}")], f"gelu{i}", MICROSOFT)
        x = write.node("Add", [write.product(up, [block + "ffn_down"], f"down{i}"), x], f"total{i}")
        x = write.norm(x, block + "layer_output_norm", f"in{i + 1}", shape.eps)
    if shape.pooling == "mean":
        write.node("ReduceMean", [x, one], OUTPUT, keepdims=0)
    else:
        first = write.constant("first", np.array(0, np.int64))
        write.node("Gather", [x, first], OUTPUT, axis=1)
    outputs = [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, [1, shape.n_embd])]
    outputs += [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in watched]
    rows = helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, [1, "n_tokens", shape.n_embd])
    made = helper.make_graph(write.nodes, "bert", [rows], outputs, write.constants)
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)]
    return bytes(helper.make_model(made, opset_imports=opsets, ir_version=IR).SerializeToString())


class _Writer:
    """Nodes and constants as they come; a value is its name."""

    def __init__(self, weights: Weights, largest: Mapping[str, Floats] | None) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self._weights = weights
        self._largest = largest

    def constant(self, name: str, values: NDArray[np.generic]) -> str:
        self.constants.append(numpy_helper.from_array(np.asarray(values, order="C"), name))
        return name

    def node(self, kind: str, inputs: list[str], output: str, domain: str = "", **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [output], domain=domain, **attributes))
        return output

    def split(self, value: str, sizes: list[int], outputs: list[str]) -> list[str]:
        into = self.constant(f"{value}.sizes", np.array(sizes, np.int64))
        self.nodes.append(helper.make_node("Split", [value, into], outputs, axis=-1))
        return outputs

    def norm(self, value: str, tensor: str, output: str, eps: float) -> str:
        # Not joined with the sum before it: onnxruntime's SkipLayerNormalization takes seven times as long as the two.
        gain, bias = (self.constant(f"{output}.{part}", self._weights.tensor(f"{tensor}.{part}")) for part in _PARTS)
        return self.node("LayerNormalization", [value, gain, bias], output, epsilon=eps, axis=-1)

    def product(self, value: str, tensors: list[str], output: str) -> str:
        """value · (the matrices, one beside the other)ᵀ + their biases."""
        matrix = np.concatenate([self._weights.tensor(f"{name}.weight") for name in tensors])
        bias = self.constant(
            f"{output}.bias", np.concatenate([self._weights.tensor(f"{name}.bias") for name in tensors])
        )
        if self._largest is None:
            dense = self.node("MatMul", [value, self.constant(f"{output}.weight", matrix.T)], f"{output}.product")
            return self.node("Add", [dense, bias], output)
        rounding = ROUNDING.get(tensors[0].rsplit(".", 1)[-1])
        apart = ""
        if rounding:
            value, matrix, apart = self._smoothed(value, matrix, rounding, output)
        scale = np.maximum(np.abs(matrix).max(axis=1), np.finfo(np.float32).tiny) / 127
        rounded = np.rint(matrix / scale[:, None]).astype(np.int8)
        inputs = [
            value,
            self.constant(f"{output}.weight", rounded.T),
            self.constant(f"{output}.scale", scale.astype(np.float32)),
            "",  # no zero point: weights are symmetric
            bias,
        ]
        made = self.node("DynamicQuantizeMatMul", inputs, f"{output}.rounded" if apart else output, MICROSOFT)
        return self.node("Add", [made, apart], output) if apart else made

    def _smoothed(self, value: str, matrix: Floats, rounding: Rounding, output: str) -> tuple[str, Floats, str]:
        """The input with channels of like sizes, the matrix that makes up for it, and the product of those apart."""
        assert self._largest is not None
        size = np.maximum(self._largest[value], 1e-4)
        weight = np.maximum(np.abs(matrix).max(axis=0), 1e-5)
        largest_first = np.argsort(-size, kind="stable")
        apart, kept = np.sort(largest_first[: rounding.n_apart]), np.sort(largest_first[rounding.n_apart :])
        factor = size**rounding.alpha / weight ** (1 - rounding.alpha)
        factor /= np.exp(np.mean(np.log(factor[kept])))
        factor[apart] = 1.0
        smooth = (1 / factor).astype(np.float32)
        smooth[apart] = 0.0
        changed = matrix * factor
        changed[:, apart] = 0.0
        product = ""
        if len(apart):
            number = self.constant(f"{output}.apart", apart.astype(np.int64))
            taken = self.node("Gather", [value, number], f"{output}.taken", axis=2)
            product = self.node(
                "MatMul", [taken, self.constant(f"{output}.exact", matrix[:, apart].T)], f"{output}.added"
            )
        return (
            self.node("Mul", [value, self.constant(f"{output}.smooth", smooth)], f"{output}.in"),
            changed.astype(np.float32),
            product,
        )


_PARTS = ("weight", "bias")
