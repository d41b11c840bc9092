"""A frozen base in 4 bits beneath LoRA, as QLoRA has it (Dettmers et al., arXiv 2305.14314): NF4 with the scales of its
blocks quantized again, by bitsandbytes, through which transformers loads the weights.

A weight is unpacked for each product and gets no gradient. What is trained, the embedding, the norms and the head are
as they would be without it.
"""

from typing import Any

import torch
from torch import nn
from transformers import BitsAndBytesConfig

from mofang.errors import Invalid


class Nf4:
    """Of a layer's weight: 4 bits, for each block of 64 a scale of 8, for each 256 of those one of 32."""

    bytes_each = (4 + 8 / 64 + 32 / (64 * 256)) / 8
    devices = ("cuda",)
    """Where it may be used. bitsandbytes computes on a CPU as well, which the tests make use of."""

    def check(self, device: torch.device) -> None:
        """Raises Invalid where it may not be used."""
        if device.type not in self.devices:
            raise Invalid("train.needs_gpu", param="quantize_base", value="nf4")

    def n_packed(self, shape: nn.Module) -> int:
        """How many weights of a model, which may be on the device "meta", will be in 4 bits: of every linear layer but
        the head. Raises Invalid when one of those is to be trained whole."""
        head = shape.get_output_embeddings()
        layers = [
            (name, part) for name, part in shape.named_modules() if isinstance(part, nn.Linear) and part is not head
        ]
        whole = next((name for name, part in layers if part.weight.requires_grad), None)
        if whole:
            raise Invalid("train.whole_in_4_bits", param="modules_to_save", name=whole)
        return sum(part.weight.numel() for _, part in layers)

    def loading(self, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
        """What from_pretrained must be told."""
        how = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
        )
        return {"quantization_config": how, "device_map": {"": device}}
