"""Which files a person means by the paths that they typed, under which names they are uploaded, and in what batches.

A document's name is what a person would call it: its path below the current folder, else below the folder that was
named. So `kb add 手册 docs` and later `kb add 手册 docs/安装.md` mean the same document. Knows nothing of the gateway.
"""

import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from mofang.errors import Invalid

BATCH_BYTES = 32_000_000
BATCH_FILES = 64
"""A batch is one upload and one job. Large enough to keep the embedder busy, small enough to show results soon."""
FAR = 8
"""So many times as large are they for workers that are begun for each: a Ray and its models take some seconds."""


@dataclass(frozen=True, slots=True)
class Skipped:
    path: str
    reason: Literal["hidden", "suffix", "link"]


@dataclass
class Selection:
    """`files`: (name, path), in order. `skipped`: what lay in the folders and was not taken, and why."""

    files: list[tuple[str, Path]] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)


def select(paths: Sequence[Path], suffixes: Collection[str]) -> Selection:
    """The files of `paths`, folders with all below them. Raises Invalid for a path that does not exist.

    A file that was named itself is always taken: whether it can be read is for the loader to say. In folders, hidden
    files, files whose suffix (".md") is not in `suffixes`, and links to folders are skipped.
    """
    chosen = Selection()
    seen: set[Path] = set()
    for given in paths:
        path = given.expanduser()
        if not path.exists():
            raise Invalid("cli.no_such_path", path=given, param="paths")
        base = path.absolute()
        for file in below(path, suffixes, chosen.skipped) if path.is_dir() else [path]:
            real = file.resolve()
            if real not in seen:
                seen.add(real)
                chosen.files.append((_name(file.absolute(), base), file))
    chosen.files = _apart(chosen.files)
    return chosen


def below(folder: Path, suffixes: Collection[str], skipped: list[Skipped]) -> Iterator[Path]:
    """The files of a folder and all below it, in order; what is not taken goes into `skipped`."""
    for where, folders, names in os.walk(folder):
        here = Path(where)
        for name in sorted(folders):
            if name.startswith("."):
                skipped.append(Skipped(str(here / name), "hidden"))
            elif (here / name).is_symlink():
                skipped.append(Skipped(str(here / name), "link"))
        folders[:] = [name for name in sorted(folders) if not name.startswith(".")]
        for name in sorted(names):
            path = here / name
            if name.startswith("."):
                skipped.append(Skipped(str(path), "hidden"))
            elif path.suffix.lower() not in suffixes:
                skipped.append(Skipped(str(path), "suffix"))
            elif not path.is_file():
                skipped.append(Skipped(str(path), "link"))
            else:
                yield path


def _name(file: Path, base: Path) -> str:
    file, base, here = (Path(os.path.normpath(path)) for path in (file, base, Path.cwd()))
    if file.is_relative_to(here):
        return file.relative_to(here).as_posix()
    return file.relative_to(base.parent).as_posix()


def _apart(files: list[tuple[str, Path]]) -> list[tuple[str, Path]]:
    """Two files of one name from different folders must not replace each other: they get their whole path."""
    names = [name for name, _ in files]
    return [(name if names.count(name) == 1 else path.absolute().as_posix().lstrip("/"), path) for name, path in files]


def batches(files: Iterable[tuple[str, Path]], *, times: int = 1) -> Iterator[list[tuple[str, Path]]]:
    """Uploads of a reasonable size, or `times` as large. A file that is large by itself goes alone, so that its refusal
    is its own."""
    batch: list[tuple[str, Path]] = []
    total = 0
    for name, path in files:
        n_bytes = path.stat().st_size
        if batch and (len(batch) == BATCH_FILES * times or total + n_bytes > BATCH_BYTES * times):
            yield batch
            batch, total = [], 0
        batch.append((name, path))
        total += n_bytes
    if batch:
        yield batch
