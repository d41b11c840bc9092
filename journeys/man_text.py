"""Manual pages as plain text, one file a page.

    python journeys/man_text.py FOLDER OUT

Every *.N.gz beneath FOLDER (roff, as a Debian package brings it) becomes OUT/*.N.txt: commands of the typesetter go, the
text of titles and of marked words stays.
"""

import gzip
import re
import sys
from pathlib import Path

PAGE = re.compile(r"\.\d\w*\.gz$")
FONTS = re.compile(r"\\f(?:\[[^\]]*\]|\(..|.)|\\[&,/|^)%c]|\\s[+-]?\d+")
SIGNS = {
    r"\-": "-", r"\e": "\\", r"\ ": " ", r"\~": " ", r"\(bu": "•", r"\(em": "—", r"\(aq": "'", r"\(dq": '"',
    r"\(co": "©", r"\(oq": "‘", r"\(cq": "’", r"\\": "\\",
}  # fmt: skip
SAYS = re.compile(r"\.\s*(?:SH|SS|Sh|Ss|SM|SB|B|I|BI|BR|IR|RB|RI|IB|Nm|Nd|IP|TP|It)\b\s*(.*)")
"""Commands whose argument is read."""


def text(page: str) -> str:
    lines = []
    for line in page.splitlines():
        if line.startswith("'"):
            continue
        if line.startswith("."):
            says = SAYS.match(line)
            line = says[1].replace('"', "") if says else ""
        line = FONTS.sub("", line)
        for sign, meant in SIGNS.items():
            line = line.replace(sign, meant)
        if line.strip():
            lines.append(line.strip())
    return "\n".join(lines)


def main() -> None:
    source, out = map(Path, sys.argv[1:])
    out.mkdir(parents=True, exist_ok=True)
    pages = [path for path in sorted(source.rglob("*.gz")) if PAGE.search(path.name)]
    for path in pages:
        read = gzip.decompress(path.read_bytes()).decode("utf-8", "replace")
        (out / f"{path.name[:-3]}.txt").write_text(text(read), encoding="utf-8")
    print(f"{len(pages)} 页手册 / manual pages → {out}")


if __name__ == "__main__":
    main()
