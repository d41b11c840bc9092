"""A zip taken in like a folder: its files by name, read out of it one by one when their turn comes.

Names are cleaned like those of any file; archives within archives are not followed; what is skipped is told. Old
Windows programs write names in GBK without saying so, which zipfile takes for code page 437.
"""

import zipfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, cast

from mofang.errors import MofangError, Unreadable
from mofang.knowledge import LOADERS
from mofang.knowledge.loaders import suffix, zipped
from mofang.knowledge.loaders.build import stem
from mofang.strings import say

SUFFIX = "zip"
_UTF8_NAME = 0x800
"""Flag bit 11 of a member: its name is UTF-8. Source: APPNOTE.TXT 6.3.10, 4.4.4."""
_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Member:
    """A file inside an open archive; `path` is the archive's own."""

    archive: zipfile.ZipFile
    info: zipfile.ZipInfo
    name: str
    path: Path

    def open(self, mode: Literal["rb"]) -> zipfile.ZipExtFile:
        return cast("zipfile.ZipExtFile", self.archive.open(self.info))


Source = Path | Member
"""What an ingest reads a file from."""


def path_of(source: Source) -> Path:
    """The file on disk that it comes from."""
    return source.path if isinstance(source, Member) else source


@dataclass
class Unpacked:
    """`files`: (relative name, source), archives replaced by what is in them. `told`: an archive's name → its notes,
    or what was wrong with it."""

    files: list[tuple[str, Source]] = field(default_factory=list)
    told: dict[str, "tuple[str, ...] | MofangError"] = field(default_factory=dict)


@contextmanager
def unpacked(files: Sequence[tuple[str, Path]]) -> Iterator[Unpacked]:
    """Archives stay open for the length of the block. One that cannot be read is told and does not stop the others."""
    result = Unpacked()
    with ExitStack() as stack:
        for name, path in files:
            if suffix(name) != SUFFIX:
                result.files.append((name, path))
                continue
            try:
                archive = stack.enter_context(_opened(path, name))
            except MofangError as error:
                result.told[name] = error
                continue
            members, skipped = _members(archive, path)
            folder = name.rsplit(".", 1)[0]
            # A folder packed as a whole has its name in front already.
            prefix = "" if all(one.name.startswith(f"{stem(name)}/") for one in members) else f"{folder}/"
            result.files += [(f"{prefix}{member.name}", member) for member in members]
            result.told[name] = _notes(len(members), skipped)
        yield result


@contextmanager
def _opened(path: Path, name: str) -> Iterator[zipfile.ZipFile]:
    if path.stat().st_size == 0:
        raise Unreadable("knowledge.empty_file", name=name)
    with zipped.opened(path, name) as archive:
        yield archive


def _members(archive: zipfile.ZipFile, path: Path) -> tuple[list[Member], list[str]]:
    """What can be read, and the names of the rest: other formats, archives, what systems leave."""
    members: list[Member] = []
    skipped: list[str] = []
    known = set(LOADERS.names())
    for info in archive.infolist():
        name = _name(info).replace("\\", "/")
        if info.is_dir():
            continue
        is_hidden = any(part.startswith((".", "__MACOSX")) for part in name.split("/") if part not in (".", ".."))
        if is_hidden or suffix(name) not in known:
            skipped.append(name)
        else:
            members.append(Member(archive, info, name, path))
    return members, skipped


def _name(info: zipfile.ZipInfo) -> str:
    if info.flag_bits & _UTF8_NAME:
        return info.filename
    raw = info.orig_filename.encode("cp437", "replace")
    for encoding in ("utf-8", "gb18030"):
        try:
            return raw.decode(encoding)
        except UnicodeDecodeError:
            continue
    return info.filename


def _notes(n_members: int, skipped: Sequence[str]) -> tuple[str, ...]:
    notes = [say("knowledge.zip_holds", n=n_members)]
    if skipped:
        shown = "、".join(skipped[:_SHOWN]) + ("…" if len(skipped) > _SHOWN else "")
        notes.append(say("knowledge.zip_skipped", n=len(skipped), names=shown))
    return tuple(notes)
