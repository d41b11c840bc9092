"""GPTQ's files: how whole numbers are packed, what configuration says, a folder read layer by layer. numpy, no torch.

A linear layer of n_in inputs and n_out outputs in b bits, its inputs in G groups, is four tensors beside its bias:

    qweight  int32 (n_in · b / 32, n_out)   codes, packed along the inputs
    qzeros   int32 (G, n_out · b / 32)      zeros, packed along the outputs; less 1 in "gptq", as they are in "gptq_v2"
    scales   float16 (G, n_out)
    g_idx    int32 (n_in,)                  the group of each input

    w[o, i] = scales[g_idx[i], o] · (code[i, o] - zero[g_idx[i], o])

Codes are a stream of bits, the lowest first, that runs over the borders of words (in 3 bits a word begins amid a code).
The 1 is taken off and put back word by word where codes do not run over words, else code by code, so that a zero of 0
comes back from files of GPTQModel. Source: GPTQModel 7.7, nn_modules/qlinear, utils/model.py.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from mofang.errors import Unreadable
from mofang.models.formats import hf

BITS = (2, 3, 4, 8)
CONFIG = "quantize_config.json"
PARTS = ("qweight", "qzeros", "scales", "g_idx")
_ZEROS_LESS = {"gptq": True, "gptq_v2": False}

Ints = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Config:
    """What a folder says of how it was quantized."""

    bits: int
    group_size: int
    zeros_less: bool
    """Files hold zero - 1."""


@dataclass(frozen=True, slots=True)
class Layer:
    """One linear layer as its file holds it."""

    qweight: Ints
    qzeros: Ints
    scales: NDArray[np.float16]
    g_idx: Ints

    def whole(self, config: Config) -> NDArray[np.int16]:
        """(n_in, n_out): code - zero of every weight."""
        zeros = unpack(self.qzeros.T, config.bits, less=config.zeros_less).T
        return unpack(self.qweight, config.bits).astype(np.int16) - zeros.astype(np.int16)[self.g_idx]

    def weight(self, config: Config) -> NDArray[np.float32]:
        """(n_out, n_in): exactly, as 11 and 9 bits are multiplied in 24."""
        scales = self.scales.astype(np.float32)[self.g_idx]
        return np.ascontiguousarray((scales * self.whole(config)).T)


def pack(codes: NDArray[Any], bits: int, *, less: bool = False) -> Ints:
    """(n · bits / 32, m) int32 of codes (n, m); n is a multiple of 32. `less`: each less 1, see above."""
    groups = codes.reshape(-1, 32, codes.shape[1]).astype(np.uint32)
    if less and 32 % bits:
        groups = groups - np.uint32(1) & _top(bits)
    words = np.zeros((len(groups), bits, codes.shape[1]), np.uint32)
    for n in range(32):
        word, bit = divmod(n * bits, 32)
        words[:, word] |= groups[:, n] << np.uint32(bit)
        if bit + bits > 32:
            words[:, word + 1] |= groups[:, n] >> np.uint32(32 - bit)
    if less and not 32 % bits:
        words -= _ones(bits)
    return words.reshape(-1, codes.shape[1]).view(np.int32)


def unpack(words: Ints, bits: int, *, less: bool = False) -> NDArray[np.uint8]:
    """(n, m) codes of (n · bits / 32, m) words, as `pack` made them."""
    groups = np.ascontiguousarray(words).view(np.uint32).reshape(-1, bits, words.shape[1])
    if less and not 32 % bits:
        groups = groups + _ones(bits)
    codes = np.empty((len(groups), 32, words.shape[1]), np.uint8)
    for n in range(32):
        word, bit = divmod(n * bits, 32)
        code = groups[:, word] >> np.uint32(bit)
        if bit + bits > 32:
            code = code | groups[:, word + 1] << np.uint32(32 - bit)
        if less and 32 % bits:
            code = code + np.uint32(1)
        codes[:, n] = code & _top(bits)
    return codes.reshape(-1, words.shape[1])


def _top(bits: int) -> np.uint32:
    return np.uint32(2**bits - 1)


def _ones(bits: int) -> np.uint32:
    """A word of codes of 1."""
    return np.uint32(0xFFFFFFFF // (2**bits - 1))


def config(folder: Path) -> Config:
    """Raises Unreadable for a folder that is no GPTQ model, or one of a kind that is not read."""
    stated = hf.read_json(folder / CONFIG, missing={}) or hf.read_json(folder / "config.json").get(
        "quantization_config"
    )
    if not isinstance(stated, dict) or stated.get("quant_method", "gptq") != "gptq":
        raise Unreadable("export.gptq_not_one", path=folder)
    bits, kind = stated.get("bits"), stated.get("checkpoint_format") or "gptq"
    if bits not in BITS or kind not in _ZEROS_LESS or stated.get("pack_dtype", "int32") != "int32":
        raise Unreadable("export.gptq_kind", path=folder, kind=f"{kind}, {bits} bits", known=", ".join(map(str, BITS)))
    return Config(int(bits), int(stated.get("group_size", -1)), _ZEROS_LESS[kind])


def statement(bits: int, group_size: int, *, sym: bool, desc_act: bool, meta: dict[str, Any]) -> dict[str, Any]:
    """What config.json and quantize_config.json say of a model that was quantized here."""
    return {
        "quant_method": "gptq",
        "checkpoint_format": "gptq",
        "bits": bits,
        "group_size": group_size,
        "desc_act": desc_act,
        "sym": sym,
        "lm_head": False,
        "pack_dtype": "int32",
        "meta": meta,
    }


def where(folder: Path) -> dict[str, Path]:
    """The file of each tensor. Raises Unreadable for a file that is missing or cut off."""
    return {name: file for file in hf.weights(folder) for name in hf.layout(file)}


def layers(folder: Path) -> Iterator[tuple[str, Layer]]:
    """(module's name, layer) one after another. Raises Unreadable when parts are missing or do not fit together."""
    stated, places = config(folder), where(folder)
    names = [name.removesuffix(".qweight") for name in places if name.endswith(".qweight")]
    if not names:
        raise Unreadable("export.gptq_not_one", path=folder)
    for name in names:
        yield name, _checked(_read(places, name, stated), name, folder, stated)


def _read(places: dict[str, Path], name: str, stated: Config) -> Layer:
    found = {}
    for part in PARTS:
        path = places.get(f"{name}.{part}")
        if path is not None:
            try:
                with safe_open(str(path), framework="np") as file:
                    found[part] = file.get_tensor(f"{name}.{part}")
            except SafetensorError as error:
                raise Unreadable("models.safetensors_broken", path=path, why=error) from error
    missing = [part for part in PARTS[:3] if part not in found]
    if missing:
        raise Unreadable("export.gptq_incomplete", name=name, parts=", ".join(missing))
    n_in = found["qweight"].shape[0] * 32 // stated.bits
    size = stated.group_size if stated.group_size > 0 else n_in
    plain = np.arange(n_in, dtype=np.int32) // size  # files without act-order may leave it out
    return Layer(found["qweight"], found["qzeros"], found["scales"].astype(np.float16), found.get("g_idx", plain))


def _checked(layer: Layer, name: str, folder: Path, stated: Config) -> Layer:
    (words, n_out), (groups, _) = layer.qweight.shape, layer.scales.shape
    fits = (
        words % stated.bits == 0
        and layer.scales.shape[1] == n_out
        and layer.qzeros.shape == (groups, n_out * stated.bits // 32)
        and n_out % 32 == 0
        and layer.g_idx.shape == (words * 32 // stated.bits,)
        and 0 <= int(layer.g_idx.min()) <= int(layer.g_idx.max()) < groups
        and bool(np.isfinite(layer.scales).all())
    )
    if not fits:
        raise Unreadable("export.gptq_misfit", path=folder, name=name)
    return layer
