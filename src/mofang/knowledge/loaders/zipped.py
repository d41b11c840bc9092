"""Files that are zip archives inside (docx, xlsx, pptx, epub, zip): what is refused before anything is unpacked."""

import mmap
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mofang.errors import TooLarge, Unreadable

MAX_UNPACKED = 1_000_000_000
"""Bytes of all members together."""
MAX_RATIO = 200
"""Unpacked by packed. Deflate reaches 1,032; tables of repeated words 50."""
RATIO_FROM = 20_000_000
"""Unpacked bytes from which the ratio counts: a small file of zeros harms nobody."""
MAX_MEMBERS = 20_000

_OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
"""Begins Office files of before 2007, and encrypted ones of any year."""
_ENCRYPTED_PACKAGE = "EncryptedPackage".encode("utf-16-le")


@contextmanager
def opened(path: Path, name: str) -> Iterator[zipfile.ZipFile]:
    """The archive, checked; what breaks inside the block because the file is damaged is said in our words.

    Raises Unreadable: knowledge.office_encrypted, knowledge.office_old, knowledge.package_damaged,
    knowledge.zip_encrypted; TooLarge: knowledge.zip_bomb, for one that unpacks to too much.
    """
    _refuse_old(path, name)
    try:
        with zipfile.ZipFile(path) as archive:
            check(archive, path, name)
            yield archive
    except (zipfile.BadZipFile, zipfile.LargeZipFile, zlib.error, NotImplementedError, EOFError) as error:
        raise Unreadable("knowledge.package_damaged", name=name) from error


def check(archive: zipfile.ZipFile, path: Path, name: str) -> None:
    """By what the directory says: zipfile never unpacks more of a member than that."""
    members = archive.infolist()
    unpacked = sum(member.file_size for member in members)
    ratio = unpacked / max(1, path.stat().st_size)
    if len(members) > MAX_MEMBERS or unpacked > MAX_UNPACKED or (unpacked > RATIO_FROM and ratio > MAX_RATIO):
        raise TooLarge(
            "knowledge.zip_bomb",
            name=name,
            n=len(members),
            size_mb=unpacked // 1_000_000,
            limit_mb=MAX_UNPACKED // 1_000_000,
            n_limit=MAX_MEMBERS,
            ratio=round(ratio),
            ratio_limit=MAX_RATIO,
        )
    if any(member.flag_bits & 1 for member in members):
        raise Unreadable("knowledge.zip_encrypted", name=name)


def _refuse_old(path: Path, name: str) -> None:
    with path.open("rb") as file:
        if file.read(len(_OLE)) != _OLE:
            return
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            is_encrypted = data.find(_ENCRYPTED_PACKAGE) >= 0
    raise Unreadable("knowledge.office_encrypted" if is_encrypted else "knowledge.office_old", name=name)
