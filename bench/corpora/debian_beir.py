#!/usr/bin/env python3
"""A second retrieval set, in BEIR layout, from the Debian Reference in Chinese and English (fetch.sh brings both).

    debian_beir.py [CORPORA_DIR [OUT_DIR]]        this folder, and its subfolder debian, when not given

A document is a section (h2 or h3, without those below it): its Chinese text without headings. Queries are its Chinese
title ("zh:") and the English title under the same anchor ("en:", cross-language). All of it is qrels/test.tsv: settings
are chosen on another set (libreoffice_beir.py). Sections that are too short or are not translated are left out, and so
are the queries of titles that are not. Standard library only.
"""

import collections
import re
import sys
from pathlib import Path

from beir import han_share, plain, write

HERE = Path(__file__).parent
HEADING = re.compile(r'<h[23] class="title">\s*<a id="([^"]+)"\s*(?:/>|></a>)(.*?)</h[23]>', re.S)
MIN_CHARACTERS, MIN_HAN = 80, 0.15
"""Of a section. Half of the translated text is commands and names of packages."""


def sections(corpora: Path, language: str) -> dict[str, tuple[str, str]]:
    """Chapter#anchor → title without its number, and text, for "zh-cn" or "en"."""
    base = corpora / f"debian-reference-{language}/usr/share/debian-reference"
    found = {}
    for path in sorted([*base.glob(f"ch*.{language}.html"), *base.glob(f"apa.{language}.html")]):
        source = path.read_text(encoding="utf-8").split('<div class="navfooter"')[0]
        for heading in HEADING.finditer(source):
            anchor, title = heading.groups()
            text = re.split(r"<h[1-6][\s>]", source[heading.end() :], maxsplit=1)[0]
            title = re.sub(r"^[\dA-Z]+\.(\d+\.)*\s*", "", plain(title))
            found[f"{path.name.split('.')[0]}#{anchor}"] = (title, plain(text))
    return found


def main(corpora: Path = HERE, out: Path | None = None) -> None:
    chinese, english = sections(corpora, "zh-cn"), sections(corpora, "en")
    if not chinese or not english:
        sys.exit(f"{corpora} has no Debian Reference in both languages: bash {HERE / 'fetch.sh'} {corpora}")
    titles = collections.Counter(title for title, _ in chinese.values())
    texts = {
        key: text for key, (_, text) in chinese.items() if len(text) > MIN_CHARACTERS and han_share(text) >= MIN_HAN
    }
    asked = [key for key in texts if key in english and han_share(chinese[key][0]) > 0 and titles[chinese[key][0]] == 1]
    write(
        out or corpora / "debian",
        texts,
        {"zh": {key: chinese[key][0] for key in asked}, "en": {key: english[key][0] for key in asked}},
        lambda _: "test",
    )


if __name__ == "__main__":
    if len(sys.argv) > 3 or any(argument.startswith("-") for argument in sys.argv[1:]):
        sys.exit(__doc__)
    main(*map(Path, sys.argv[1:]))
