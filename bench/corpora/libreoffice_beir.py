#!/usr/bin/env python3
"""A real retrieval set, in BEIR layout, from LibreOffice's Chinese help (fetch.sh brings it).

    libreoffice_beir.py [CORPORA_DIR [OUT_DIR]]        this folder, and its subfolder libreoffice, when not given

Writes OUT_DIR/corpus.jsonl (a page's Chinese text without its headings), queries.jsonl, qrels/dev.tsv and
qrels/test.tsv (the pages split in two halves by digest: choose on dev, report test). Query ids starting with "zh:"
are the pages' own Chinese titles, "en:" the English titles of the same pages (cross-language). One right page a
query; pages and titles that are mostly not Chinese are left out. Standard library only.
"""

import collections
import hashlib
import html
import re
import sys
from pathlib import Path

from beir import han_share, plain, write

HERE = Path(__file__).parent


def pages(corpora: Path, language: str) -> dict[str, tuple[str, str]]:
    """Path of a help page → its title and its text, for "zh-CN" or "en-US"."""
    base = corpora / f"libreoffice-help-{language.lower()}/usr/share/libreoffice/help/{language}/text"
    found = {}
    for path in sorted(base.rglob("*.html")):
        source = path.read_text(encoding="utf-8", errors="ignore")
        title = re.search(r"<title>(.*?)</title>", source, re.S)
        body = re.search(r'id="DisplayArea"(.*?)(<div id="DonationFrame"|</body>)', source, re.S)
        if title and body:
            text = re.sub(r"<h[1-3].*?</h[1-3]>", " ", body.group(1), flags=re.S)
            text = plain(text).split('SoftwareApplication">')[-1].strip()
            found[path.relative_to(base).as_posix()] = (html.unescape(title.group(1)).strip(), text)
    return found


def main(corpora: Path = HERE, out: Path | None = None) -> None:
    chinese, english = pages(corpora, "zh-CN"), pages(corpora, "en-US")
    if not chinese or not english:
        sys.exit(f"{corpora} has no LibreOffice help: bash {HERE / 'fetch.sh'} {corpora}")
    titles = collections.Counter(title for title, _ in chinese.values())
    keys = [
        key
        for key, (title, text) in chinese.items()
        if key in english
        and titles[title] == 1
        and len(text) > 80
        and han_share(title) >= 0.5
        and han_share(text) >= 0.4
    ]
    write(
        out or corpora / "libreoffice",
        {key: chinese[key][1] for key in keys},
        {"zh": {key: chinese[key][0] for key in keys}, "en": {key: english[key][0] for key in keys}},
        lambda key: "dev" if hashlib.sha256(key.encode()).digest()[0] % 2 else "test",
    )


if __name__ == "__main__":
    if len(sys.argv) > 3 or any(argument.startswith("-") for argument in sys.argv[1:]):
        sys.exit(__doc__)
    main(*map(Path, sys.argv[1:]))
