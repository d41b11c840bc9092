"""GPTQ's packing against its specification, written down once more here; and files that are not what they should be."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from mofang.errors import Unreadable
from mofang.export.gptq import format


@given(st.sampled_from(format.BITS), st.integers(1, 3), st.integers(1, 4), st.booleans(), st.randoms())
def test_what_was_packed_comes_back(bits: int, blocks: int, width: int, less: bool, chance: object) -> None:
    codes = np.array(
        [[chance.randrange(2**bits) for _ in range(width)] for _ in range(32 * blocks)],  # type: ignore[attr-defined]
        np.uint8,
    )
    words = format.pack(codes, bits, less=less)
    assert words.dtype == np.int32 and words.shape == (blocks * bits, width)
    assert np.array_equal(format.unpack(words, bits, less=less), codes)


@pytest.mark.parametrize("bits", format.BITS)
def test_codes_are_a_stream_of_bits_and_zeros_are_stored_less_one(bits: int) -> None:
    codes = np.random.default_rng(bits).integers(1, 2**bits, (64, 3)).astype(np.uint8)
    for column in range(3):
        stream = sum(int(code) << (n * bits) for n, code in enumerate(codes[:, column]))
        words = format.pack(codes, bits)[:, column].view(np.uint32)
        assert [int(word) for word in words] == [stream >> (32 * n) & 0xFFFFFFFF for n in range(2 * bits)]
    assert np.array_equal(format.unpack(format.pack(codes, bits, less=True), bits), codes - 1)


def test_zeros_of_the_usual_model() -> None:
    """Symmetric 4 bits: https://github.com/AutoGPTQ/AutoGPTQ's files hold 0x77777777."""
    words = format.pack(np.full((32, 1), 8, np.uint8), 4, less=True)
    assert {int(word) for word in words.ravel()} == {0x77777777}


def layer(bits: int = 4, *, n_in: int = 64, n_out: int = 32, size: int = 32) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    groups = n_in // size
    return {
        "qweight": format.pack(rng.integers(0, 2**bits, (n_in, n_out)), bits),
        "qzeros": format.pack(rng.integers(1, 2**bits, (n_out, groups)), bits, less=True).T.copy(),
        "scales": rng.random((groups, n_out)).astype(np.float16),
        "g_idx": (np.arange(n_in) // size).astype(np.int32),
    }


def write(folder: Path, parts: dict[str, np.ndarray], **stated: object) -> Path:
    folder.mkdir()
    save_file({f"model.layers.0.mlp.up_proj.{name}": value for name, value in parts.items()}, folder / "m.safetensors")
    config = {"quant_method": "gptq", "bits": 4, "group_size": 32, **stated}
    (folder / "config.json").write_text(json.dumps({"quantization_config": config}))
    return folder


@pytest.mark.parametrize("kind", ["gptq", "gptq_v2"])
@pytest.mark.parametrize("bits", format.BITS)
def test_a_folder_is_read(tmp_path: Path, bits: int, kind: str) -> None:
    parts = layer(bits)
    codes = format.unpack(parts["qweight"], bits).astype(int)
    zeros = format.unpack(parts["qzeros"].T, bits).T.astype(int) + (kind == "gptq")
    if kind == "gptq" and bits in (2, 4, 8):
        assert zeros.max() < 2**bits
    scattered = np.random.default_rng(1).permutation(parts["g_idx"]).astype(np.int32)
    folder = write(tmp_path / "m", {**parts, "g_idx": scattered}, bits=bits, checkpoint_format=kind)
    ((name, found),) = format.layers(folder)
    assert name == "model.layers.0.mlp.up_proj"
    config = format.config(folder)
    expected = (parts["scales"].astype(np.float64)[scattered] * (codes - zeros[scattered])).T
    assert np.array_equal(found.weight(config).astype(np.float64), expected)


def test_a_file_without_groups_has_them_in_order(tmp_path: Path) -> None:
    parts = layer()
    plain = [found.weight(format.config(tmp_path / "a")) for _, found in format.layers(write(tmp_path / "a", parts))]
    del parts["g_idx"]
    ((_, found),) = format.layers(write(tmp_path / "b", parts))
    assert np.array_equal(found.weight(format.config(tmp_path / "b")), plain[0])


@pytest.mark.parametrize(
    "change, stated, code",
    [
        ({"scales": None}, {}, "gptq_incomplete"),
        ({"scales": np.ones((2, 16), np.float16)}, {}, "gptq_misfit"),
        ({"scales": np.full((2, 32), np.nan, np.float16)}, {}, "gptq_misfit"),
        ({"g_idx": np.full(64, 7, np.int32)}, {}, "gptq_misfit"),
        ({"g_idx": np.zeros(32, np.int32)}, {}, "gptq_misfit"),
        ({}, {"bits": 5}, "gptq_kind"),
        ({}, {"checkpoint_format": "marlin"}, "gptq_kind"),
        ({}, {"quant_method": "awq"}, "gptq_not_one"),
        ({"qweight": None}, {}, "gptq_not_one"),
    ],
)
def test_what_is_not_as_it_should_be_is_said(tmp_path: Path, change: dict, stated: dict, code: str) -> None:
    parts = {name: value for name, value in {**layer(), **change}.items() if value is not None}
    with pytest.raises(Unreadable) as raised:
        list(format.layers(write(tmp_path / "m", parts, **stated)))
    assert raised.value.code == code and raised.value.message() and raised.value.hint()


def test_a_truncated_file_is_said(tmp_path: Path) -> None:
    folder = write(tmp_path / "m", layer())
    file = folder / "m.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(Unreadable) as raised:
        list(format.layers(folder))
    assert raised.value.code == "gguf_truncated"
