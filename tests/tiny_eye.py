"""A projector small enough to make in a test: a vision transformer of random weights, as LLaVA's converter writes it.

It makes a picture of 28 × 28 points into four embeddings of a tiny Llama's width.
"""

from pathlib import Path

import numpy as np

SIZE, PATCH, WIDTH, INNER, LAYERS = 28, 14, 32, 64, 2
N_TOKENS = (SIZE // PATCH) ** 2


def write(target: Path, *, width: int = 64, seed: int = 0) -> Path:
    """`width`: of the model's embeddings."""
    import gguf

    numbers = np.random.default_rng(seed)

    def some(*shape: int) -> np.ndarray:
        return numbers.normal(0, 0.5, shape).astype(np.float32)

    out = gguf.GGUFWriter(target, "clip")
    out.add_bool("clip.has_vision_encoder", True)
    out.add_string("clip.projector_type", "mlp")
    out.add_bool("clip.use_gelu", True)
    for name, value in {
        "image_size": SIZE,
        "patch_size": PATCH,
        "embedding_length": WIDTH,
        "feed_forward_length": INNER,
        "block_count": LAYERS,
        "projection_dim": width,
        "attention.head_count": 2,
    }.items():
        out.add_uint32(f"clip.vision.{name}", value)
    out.add_float32("clip.vision.attention.layer_norm_epsilon", 1e-5)
    out.add_array("clip.vision.image_mean", [0.5, 0.5, 0.5])
    out.add_array("clip.vision.image_std", [0.5, 0.5, 0.5])
    out.add_tensor("v.patch_embd.weight", some(WIDTH, 3, PATCH, PATCH))
    out.add_tensor("v.position_embd.weight", some(N_TOKENS + 1, WIDTH))
    out.add_tensor("v.class_embd", some(WIDTH))
    for part in ("pre_ln", "post_ln"):
        out.add_tensor(f"v.{part}.weight", 1 + some(WIDTH))
        out.add_tensor(f"v.{part}.bias", some(WIDTH))
    for layer in range(LAYERS):
        block = f"v.blk.{layer}"
        for part in ("attn_q", "attn_k", "attn_v", "attn_out"):
            out.add_tensor(f"{block}.{part}.weight", some(WIDTH, WIDTH))
            out.add_tensor(f"{block}.{part}.bias", some(WIDTH))
        for part in ("ln1", "ln2"):
            out.add_tensor(f"{block}.{part}.weight", 1 + some(WIDTH))
            out.add_tensor(f"{block}.{part}.bias", some(WIDTH))
        out.add_tensor(f"{block}.ffn_up.weight", some(INNER, WIDTH))
        out.add_tensor(f"{block}.ffn_up.bias", some(INNER))
        out.add_tensor(f"{block}.ffn_down.weight", some(WIDTH, INNER))
        out.add_tensor(f"{block}.ffn_down.bias", some(WIDTH))
    out.add_tensor("mm.0.weight", some(width, WIDTH))
    out.add_tensor("mm.0.bias", some(width))
    out.add_tensor("mm.2.weight", some(width, width))
    out.add_tensor("mm.2.bias", some(width))
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    return target


def picture(*rgb: int) -> str:
    """A data URL of a picture in one colour."""
    import base64
    import io

    from PIL import Image

    stream = io.BytesIO()
    Image.new("RGB", (SIZE, SIZE), rgb).save(stream, "PNG")
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()
