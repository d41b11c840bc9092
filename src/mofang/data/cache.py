"""Examples tokenized once and kept on disk: written aside, renamed when whole, and mapped into memory when read.

    home/cache/examples/<key>/{ids.bin, mask.bin, index.bin, meta.json}

The key is the content of the files, the tokenizer with its template, and every setting that decides which ids come
out; so a file that moves is found again, and one that changes is read anew. The folder may be deleted at any time.
Building holds one batch in memory, reading holds what is looked at.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from mofang.data.encode import Example, examples, is_usable
from mofang.data.made import Made
from mofang.data.readers import Layout, files_of, rows, wanted
from mofang.data.rows import Row
from mofang.errors import Conflict, Unreadable
from mofang.tokenizer import Tokenizer

VERSION = 1
"""Of the files and of how a row becomes ids: another number, and everything is tokenized again."""
INDEX = np.dtype(
    [
        ("start", "<i8"), ("row", "<i8"), ("digest", "<u8"), ("length", "<i4"), ("supervised", "<i4"), ("file", "<i4"),
        ("cut", "<i4"),
    ]
)  # fmt: skip
Tell = Callable[[int], None]
"""Hears of the rows that were read so far; may raise to stop."""


@dataclass(frozen=True, slots=True)
class File:
    """A file of examples, by content."""

    path: Path
    size_bytes: int
    sha256: str


class Prepared(Made[Example]):
    """The examples of one source, in its order; those of a pair follow each other. Reads what is asked for."""

    def __init__(self, folder: Path, files: Sequence[File], skipped: Sequence[Path]) -> None:
        """Raises Unreadable for files that are not what meta.json says."""
        self.folder = folder
        self.files = files
        self.skipped = skipped
        """Files of the folder that are no examples."""
        try:
            self.meta: dict[str, Any] = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
            self.entries: NDArray[np.void] = _mapped(folder / "index.bin", INDEX, self.meta["n_examples"])
            self._ids = _mapped(folder / "ids.bin", np.dtype("<i4"), self.meta["n_tokens"])
            self._mask = _mapped(folder / "mask.bin", np.dtype("?"), self.meta["n_tokens"])
        except (OSError, ValueError, KeyError) as error:
            raise Unreadable("data.broken_cache", path=folder) from error

    def __len__(self) -> int:
        return len(self.entries)

    def make(self, number: int) -> Example:
        one = self.entries[number]
        part = slice(int(one["start"]), int(one["start"]) + int(one["length"]))
        file, row = self.files[one["file"]].path, int(one["row"])
        return Example(self._ids[part], self._mask[part], file, row, bool(one["cut"]), int(one["digest"]))

    @property
    def first_dropped(self) -> tuple[Path, int] | None:
        """File and row of the first example of which no answer was left."""
        found = self.meta["first_dropped"]
        return (self.files[found[0]].path, found[1]) if found else None


def prepare(
    path: Path,
    tokenizer: Tokenizer,
    *,
    folder: Path,
    max_length: int,
    kind: type[Row],
    layout: Layout | None = None,
    tell: Tell | None = None,
) -> Prepared:
    """The examples of a file or a folder of files, from `folder` when they were tokenized before.

    Raises NotFound, Unreadable, Invalid as readers and encode; Conflict when a file changes meanwhile.
    """
    layout = layout or Layout()
    paths, skipped = files_of(path)
    before = [_state(each) for each in paths]
    files = [File(each, each.stat().st_size, _sha256(each)) for each in paths]
    key = _key(files, tokenizer, max_length, kind, layout)
    target = folder / key
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / f".{key}.lock"):  # another training of the same examples waits, and finds them
        if target.is_dir():
            try:
                return Prepared(target, files, skipped)
            except Unreadable:
                shutil.rmtree(target)
        aside = folder / f".{key}.part"
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()
        try:
            found = wanted(chain.from_iterable(rows(each, layout) for each in paths), kind)
            meta = _write(aside, _told(found, tell), tokenizer, max_length, {each: n for n, each in enumerate(paths)})
            if not meta["n_rows"]:
                raise Unreadable("data.empty", path=path)
            if [_state(each) for each in paths] != before:
                raise Conflict("data.changed", path=path)
            (aside / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
            aside.rename(target)
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise
    return Prepared(target, files, skipped)


def _write(
    aside: Path, found: Iterator[Row], tokenizer: Tokenizer, max_length: int, numbers: dict[Path, int]
) -> dict[str, Any]:
    counts = {"n_rows": 0, "n_examples": 0, "n_tokens": 0, "n_supervised": 0, "n_cut": 0, "n_dropped": 0}
    first_dropped: list[int] | None = None

    def counted() -> Iterator[Row]:
        for row in found:
            counts["n_rows"] += 1
            yield row

    with (
        (aside / "ids.bin").open("wb") as ids,
        (aside / "mask.bin").open("wb") as mask,
        (aside / "index.bin").open("wb") as index,
    ):
        for together in examples(counted(), tokenizer, max_length=max_length):
            if not is_usable(together):
                counts["n_dropped"] += len(together)
                first_dropped = first_dropped or [numbers[together[0].file], together[0].row]
                continue
            for one in together:
                entry = (
                    counts["n_tokens"], one.row, one.digest, len(one.ids), one.n_supervised, numbers[one.file], one.cut,
                )  # fmt: skip
                index.write(np.array([entry], INDEX).tobytes())
                ids.write(one.ids.astype("<i4", copy=False).tobytes())
                mask.write(one.mask.tobytes())
                counts["n_examples"] += 1
                counts["n_tokens"] += len(one.ids)
                counts["n_supervised"] += one.n_supervised
                counts["n_cut"] += one.cut
    return {"version": VERSION, **counts, "first_dropped": first_dropped}


def _told(found: Iterator[Row], tell: Tell | None) -> Iterator[Row]:
    for number, row in enumerate(found, 1):
        yield row
        if tell and number % 1000 == 0:
            tell(number)


def _mapped(path: Path, dtype: np.dtype[Any], n: int) -> NDArray[Any]:
    if path.stat().st_size != n * dtype.itemsize:
        raise ValueError(path)
    return np.asarray(np.memmap(path, dtype, mode="r", shape=(n,))) if n else np.empty(0, dtype)


def _key(files: Sequence[File], tokenizer: Tokenizer, max_length: int, kind: type[Row], layout: Layout) -> str:
    decides = {
        "version": VERSION,
        "files": [(file.path.suffix.lower(), file.sha256) for file in files],
        "tokenizer": tokenizer.sha256(),
        "template": tokenizer.chat_template,
        "special": [tokenizer.eos_id, tokenizer.bos_id, tokenizer.add_bos, sorted(tokenizer.end_ids)],
        "max_length": max_length,
        "kind": kind.__name__,
        "format": layout.format,
        "columns": sorted((layout.columns or {}).items()),
    }
    return hashlib.sha256(json.dumps(decides).encode()).hexdigest()[:32]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _state(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns
