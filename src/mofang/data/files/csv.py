"""CSV and TSV with a heading, in whichever encoding a Chinese office writes; read row by row."""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mofang.data.files.text import opened
from mofang.errors import Unreadable
from mofang.strings import say

LONGEST = 1 << 30
"""Characters of one field; csv's own limit of 131,072 is less than a long document."""


def records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line where the row begins, column → text). Raises Unreadable."""
    csv.field_size_limit(max(LONGEST, csv.field_size_limit()))
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    with opened(path) as file:
        reader = csv.reader(file, delimiter=delimiter, strict=True)
        names: list[str] | None = None
        before = 0
        try:
            for values in reader:
                row, before = before + 1, reader.line_num
                if not values:
                    continue
                if names is None:
                    names = [name.strip() for name in values]
                elif len(values) > len(names):
                    why = say("data.why_too_many", n=len(values), known=len(names))
                    raise Unreadable("data.bad_row", path=path, row=row, field=f"{len(names) + 1}", why=why)
                else:
                    yield row, dict(zip(names, values, strict=False))
        except csv.Error as error:
            raise Unreadable("data.bad_row", path=path, row=before + 1, field="-", why=error) from error
        except UnicodeDecodeError as error:
            raise Unreadable("data.not_utf8", path=path, row=before + 1) from error
