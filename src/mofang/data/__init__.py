"""Examples for training: files → conversations → token ids with a loss mask → rows. numpy, no torch.

A format is a file and a line here; its entry is a Format (data/formats/base.py).
"""

from mofang.registry import Entry, Registry

FORMATS = Registry(
    "data_format",
    {
        "alpaca": Entry("mofang.data.formats.alpaca:FORMAT", "instruction, input, output"),
        "messages": Entry("mofang.data.formats.messages:FORMAT", "OpenAI's messages: role and content"),
        "sharegpt": Entry("mofang.data.formats.sharegpt:FORMAT", "conversations: from and value"),
    },
)
