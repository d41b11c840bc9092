"""Examples for training: files → rows → token ids with a loss mask → a cache on disk. numpy, no torch.

A kind of file is a file under files/ and a line in FILES; its entry yields (row, record). A format is a file under
formats/ and a line in FORMATS; its entry is a Format (data/formats/base.py).
"""

from mofang.registry import Entry, Registry

FILES = Registry(
    "data_file",
    {
        "jsonl": Entry("mofang.data.files.json:records", "an object a line"),
        "json": Entry("mofang.data.files.json:records", "a list of objects"),
        "csv": Entry("mofang.data.files.csv:records", "a table with a heading"),
        "tsv": Entry("mofang.data.files.csv:records", "a table with a heading"),
        "parquet": Entry("mofang.data.files.parquet:records", "a table of Apache Arrow", "train", "pyarrow"),
        "txt": Entry("mofang.data.files.text:records", "plain text"),
        "md": Entry("mofang.data.files.text:records", "plain text"),
    },
)
"""By the file's suffix."""

FORMATS = Registry(
    "data_format",
    {
        "pairs": Entry("mofang.data.formats.pairs:FORMAT", "two answers: chosen, rejected"),
        "alpaca": Entry("mofang.data.formats.alpaca:FORMAT", "instruction, input, output"),
        "messages": Entry("mofang.data.formats.messages:FORMAT", "OpenAI's messages: role and content, and tools"),
        "sharegpt": Entry("mofang.data.formats.sharegpt:FORMAT", "conversations: from and value"),
        "text": Entry("mofang.data.formats.text:FORMAT", "text"),
    },
)
"""In the order in which a record is tried."""
