"""Parquet, as hubs keep data sets: read a batch at a time by Apache Arrow's own library."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as arrow
from pyarrow import parquet

from mofang.errors import Unreadable

BATCH = 512
"""Rows in memory at a time."""


def records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(row from 1, column → value). Raises Unreadable."""
    row = 0
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=BATCH):
                for record in batch.to_pylist():
                    row += 1
                    yield row, record
    except (arrow.ArrowException, OSError) as error:
        raise Unreadable("data.broken_file", path=path, row=row, why=error) from error
