"""Uploaded files, streamed to a folder as they come: nothing is held in memory, and no name leaves the folder.

Names are kept as the user knows them but lie on disk as numbers; a browser's UTF-8, curl's raw GBK and a folder's
relative paths are all understood (RFC 7578, WHATWG HTML 4.10.21.8).
"""

import asyncio
import re
import shutil
from collections.abc import Collection
from contextlib import closing, suppress
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from fastapi import Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from mofang.errors import Invalid, MofangError, TooLarge
from mofang.server.store import new_id

FIELD = "files"
VALUE_BYTES = 1000
"""Of a field beside the files."""
NAME_CHARS = 200
"""Of one part of a path; file systems end at 255 bytes, and these names are only labels."""
FILES_LIMIT = 10_000

STREAMED = re.compile("/v1/(knowledge/[^/]+/(documents|evaluate)|datasets|files)")
"""Paths of the routes that take files with `receive`, which counts by itself; every other body has `body_limit_mb`."""

_BINARY = {"type": "string", "format": "binary"}


def openapi(field: str, *values: str, many: bool = True) -> dict[str, Any]:
    """What a route declares that takes files in `field`, and text in `values`."""
    properties = {field: {"type": "array", "items": _BINARY} if many else _BINARY}
    schema = {
        "type": "object",
        "required": [field, *values],
        "properties": properties | {name: {"type": "string"} for name in values},
    }
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}}


OPENAPI = openapi(FIELD)


class Upload:
    """A folder of uploaded files. `files` holds (relative name, path on disk) in the order of their arrival, `values`
    the fields of text beside them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files: list[tuple[str, Path]] = []
        self.values: dict[str, str] = {}
        folder.mkdir(parents=True)

    def path(self, name: str) -> Path:
        """Where the next file goes; the suffix is kept, since it says how to read the file."""
        suffix = PurePosixPath(name).suffix
        return self.folder / f"{len(self.files):05d}{suffix if re.fullmatch(r'[.][0-9A-Za-z]{1,10}', suffix) else ''}"

    def discard(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


async def receive(
    request: Request, folder: Path, *, limit_mb: int, field: str = FIELD, values: Collection[str] = ()
) -> Upload:
    """All files of a multipart request. Raises TooLarge or Invalid, after which nothing is left on disk.

    field: the name of the parts that are files; values: those of parts that are text.

    The rest of a refused request is read and thrown away: a client that is still sending would otherwise see a cut
    connection instead of the reason.
    """
    upload = await asyncio.to_thread(Upload, folder / new_id("upload"))
    try:
        with closing(_Parts(upload, _boundary(request), limit_mb, field, values)) as parts:
            async for chunk in request.stream():
                await asyncio.to_thread(parts.feed, chunk)
        parts.check_complete()
        return upload
    except BaseException as error:
        await asyncio.to_thread(upload.discard)
        if isinstance(error, MofangError):
            await drain(request)
        raise


async def drain(request: Request) -> None:
    """Read what the client still sends and forget it."""
    with suppress(RuntimeError):  # starlette: the stream was read to its end
        async for _ in request.stream():
            pass


def _boundary(request: Request) -> bytes:
    kind, options = parse_options_header(request.headers.get("content-type"))
    boundary = options.get(b"boundary")
    if kind != b"multipart/form-data" or not boundary:
        raise Invalid("server.not_multipart", found=request.headers.get("content-type", "-"))
    return boundary


class _Parts:
    """python-multipart's callbacks, each writing on. Blocking: fed from a worker thread."""

    def __init__(self, upload: Upload, boundary: bytes, limit_mb: int, field: str, values: Collection[str]) -> None:
        self._upload = upload
        self._field = field
        self._values = values
        self._value_of = ""
        """The field of text whose part this is."""
        self._text = b""
        self._limit_mb = limit_mb
        self._name = ""
        self._file: BinaryIO | None = None
        self._size = 0
        self._header = b""
        self._value = b""
        self._disposition = b""
        self._complete = False
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin,
                "on_header_field": self._on_header,
                "on_header_value": self._on_value,
                "on_header_end": self._on_header_end,
                "on_headers_finished": self._open,
                "on_part_data": self._write,
                "on_part_end": self.close,
                "on_end": self._end,
            },
        )

    def feed(self, chunk: bytes) -> None:
        try:
            self._parser.write(chunk)
        except FormParserError as error:
            raise Invalid("server.bad_upload", why=error) from error

    def check_complete(self) -> None:
        if not self._complete:
            raise Invalid("server.bad_upload", why="no closing boundary")
        if not self._upload.files:
            raise Invalid("server.no_files", param=self._field, field=self._field)

    def _begin(self) -> None:
        self._disposition = b""

    def _on_header(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _on_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _on_header_end(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = self._value
        self._header = self._value = b""

    def _open(self) -> None:
        raw, name = read_disposition(self._disposition)
        field = raw.decode("utf-8", "replace")
        self._value_of = field if name is None and field in self._values else ""
        if self._value_of:
            return
        if field != self._field or name is None:
            raise Invalid("server.unknown_part", param=self._field, field=field, wanted=self._field)
        if len(self._upload.files) >= FILES_LIMIT:
            raise Invalid("server.too_many_files", param="files", limit=FILES_LIMIT)
        self._name, self._size = safe_name(name), 0
        path = self._upload.path(self._name)
        self._file = path.open("xb")
        self._upload.files.append((self._name, path))

    def _write(self, data: bytes, start: int, end: int) -> None:
        if self._value_of:
            self._text = (self._text + data[start:end])[:VALUE_BYTES]
            return
        self._size += end - start
        if self._size > self._limit_mb * 1_000_000:
            raise TooLarge("server.upload_too_large", name=self._name, limit_mb=self._limit_mb)
        assert self._file is not None
        self._file.write(memoryview(data)[start:end])

    def close(self) -> None:
        """The end of a part."""
        if self._value_of:
            self._upload.values[self._value_of] = self._text.decode("utf-8", "replace")
            self._value_of, self._text = "", b""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _end(self) -> None:
        self._complete = True


# The name may hold bytes of any encoding, also GBK's second bytes, which look like "\" or letters: so it ends at the
# quote that a ";" or the end of the header follows.
_FIELD = re.compile(rb'(?:^|[;\s])name="([^"]*)"')
_FILENAME = re.compile(rb'(?:^|[;\s])filename="(.*?)"\s*(?:;|$)', re.DOTALL)


def read_disposition(header: bytes) -> tuple[bytes, str | None]:
    """(field name, file name) of a Content-Disposition; the file name is None where the part is no file."""
    field, name = _FIELD.search(header), _FILENAME.search(header)
    return field[1] if field else b"", decode_name(name[1]) if name else None


def decode_name(raw: bytes) -> str:
    """UTF-8 as the standard says, else GB18030 as a Chinese terminal sends it; quotes unescaped either way."""
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        text = raw.decode("gb18030", "replace")
    else:
        text = text.replace('\\"', '"').replace("%22", '"').replace("%0D", "\r").replace("%0A", "\n")
    return text


def safe_name(name: str) -> str:
    """A relative path: no drive, no root, no "..", no control characters; "unnamed" when nothing is left."""
    printable = "".join(char for char in name if char.isprintable())
    without_drive = re.sub(r"^[A-Za-z]:", "", printable.replace("\\", "/"))
    parts = [part.strip()[:NAME_CHARS] for part in without_drive.split("/")]
    return "/".join(part for part in parts if part not in ("", ".", "..")) or "unnamed"
