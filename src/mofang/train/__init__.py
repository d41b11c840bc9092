"""Training: torch and transformers live here. `methods/` has one file a method; loop.py is the one visible loop."""

from mofang.registry import Entry, Registry

QUANTIZERS = Registry(
    "quantizer",
    {"nf4": Entry("mofang.train.nf4:Nf4", "4 bits by bitsandbytes, on a GPU", extra="qlora", library="bitsandbytes")},
)
"""How a frozen base is made small beneath LoRA; the recipe's `quantize_base` names one, or "none"."""

BOARDS = Registry(
    "board",
    {
        "tensorboard": Entry(
            "mofang.train.board:TensorBoard", "TensorBoard's events", extra="tensorboard", library="tensorboardX"
        )
    },
)
"""Places for metrics beside metrics.jsonl: board(run), with begin(rows), write(row), close()."""

STRATEGIES = Registry(
    "strategy",
    {
        "ddp": Entry("mofang.train.world:Ranks", "each process has the whole model"),
        "fsdp": Entry("mofang.train.sharded:Sharded", "each process has a part of every weight (FSDP2)"),
    },
)
"""What several processes share out besides the examples: a World for processes that torch.distributed has joined, called
with the time after which one that keeps the others waiting counts as hung. A launcher's `strategy` names one."""
