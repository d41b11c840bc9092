"""EPUB books: the chapters in the order of reading, each by the web page loader. Own parsing of the two small files
that say which: the library that does it is AGPL.

Source: EPUB 3.3 (W3C), 4.2.6.3.1 (container.xml), 5 (package document).
"""

import posixpath
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from mofang.errors import Unreadable
from mofang.knowledge.base import ParsedDocument
from mofang.knowledge.loaders import html, zipped
from mofang.knowledge.loaders.build import Builder, Outline, stem
from mofang.strings import say
from mofang.text.encodings import decode

_CONTAINER = "META-INF/container.xml"
_PAGES = ("application/xhtml+xml", "text/html", "application/x-dtbook+xml")
_CLOSED = re.compile(r"<(title|script|style|iframe|textarea|noscript|a|p|div|span|td|th|i|b|em|strong)\b([^<>]*)/>")
"""XHTML closes an empty element with "/>"; to an HTML parser that opens it."""


def load(path: Path, name: str) -> ParsedDocument:
    """Raises what zipped.opened raises, and Unreadable: knowledge.package_damaged, knowledge.epub_locked."""
    builder = Builder()
    missing: list[str] = []
    with zipped.opened(path, name) as archive:
        title, chapters = _package(archive, name)
        locked = _locked(archive)
        if chapters and all(chapter in locked for chapter in chapters):
            raise Unreadable("knowledge.epub_locked", name=name)
        for chapter in chapters:
            if chapter in locked or chapter not in archive.NameToInfo:
                missing.append(chapter)
                continue
            builder.outline = Outline()
            page = decode(archive.read(chapter)).text if archive.NameToInfo[chapter].file_size else ""
            html.read(_CLOSED.sub(r"<\1\2></\1>", page), builder)
    notes = (say("knowledge.chapters_missing", n=len(missing), names="、".join(missing[:5])),) if missing else ()
    return ParsedDocument(builder.text, builder.blocks, title or stem(name), notes)


def _package(archive: zipfile.ZipFile, name: str) -> tuple[str, list[str]]:
    """The book's title, and its chapters' paths within the archive."""
    container = _xml(archive, _CONTAINER, name)
    root = next((item.get("full-path") for item in _named(container, "rootfile")), None)
    if not root:
        raise Unreadable("knowledge.package_damaged", name=name)
    package = _xml(archive, root, name)
    files = {
        item.get("id"): posixpath.normpath(posixpath.join(posixpath.dirname(root), unquote(item.get("href") or "")))
        for item in _named(package, "item")
        if item.get("media-type") in _PAGES
    }
    chapters = [files[item.get("idref")] for item in _named(package, "itemref") if item.get("idref") in files]
    title = next((" ".join("".join(item.itertext()).split()) for item in _named(package, "title")), "")
    return title, chapters


def _locked(archive: zipfile.ZipFile) -> set[str]:
    """Paths that are encrypted (fonts often are, to hide them; chapters by a shop's lock)."""
    if "META-INF/encryption.xml" not in archive.NameToInfo:
        return set()
    found = _xml(archive, "META-INF/encryption.xml", "")
    return {unquote(item.get("URI") or "") for item in _named(found, "CipherReference")}


def _named(tree: Any, tag: str) -> Iterator[Any]:
    return tree.iter("{*}" + tag)  # type: ignore[no-any-return]


def _xml(archive: zipfile.ZipFile, member: str, name: str) -> Any:
    from lxml import etree

    parser = etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False)
    try:
        return etree.fromstring(archive.read(member), parser)
    except (KeyError, etree.XMLSyntaxError) as error:
        raise Unreadable("knowledge.package_damaged", name=name) from error
