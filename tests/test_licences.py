"""No GPL or AGPL among what the package needs, its extras and tools included (LGPL is allowed: it is only linked)."""

import re
from importlib import metadata

from packaging.requirements import Requirement

STRONG = re.compile(r"\b(AGPL|GPL)\b|(?<!Lesser )(?<!Library )General Public License|Affero", re.IGNORECASE)
WEAK = re.compile(r"\bLGPL|Lesser General Public|Library General Public", re.IGNORECASE)
PERMISSIVE = re.compile(
    r"\b(MIT|BSD|Apache|ISC|PSF|MPL|Unlicense|HPND|Zlib|0BSD|CC0)\b|Python Software Foundation", re.I
)


def _needed(root: str) -> dict[str, metadata.Distribution]:
    """Every installed distribution that `root` needs, extras of root included."""
    found: dict[str, metadata.Distribution] = {}
    waiting = [root]
    while waiting:
        name = waiting.pop()
        key = re.sub(r"[-_.]+", "-", name).lower()
        if key in found:
            continue
        try:
            found[key] = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue  # an extra that is not installed here, or a marker of another system
        waiting += [Requirement(line).name for line in found[key].requires or []]
    return found


def _licences(distribution: metadata.Distribution) -> list[str]:
    about = distribution.metadata
    classifiers = [line for line in about.get_all("Classifier") or [] if line.startswith("License ::")]
    first_line = (about.get("License") or "").strip().splitlines()[:1]
    return [text for text in (about.get("License-Expression"), *first_line, *classifiers) if text]


def _is_strong(licences: list[str]) -> bool:
    """Copyleft, and no permissive alternative is offered ("MIT OR GPL" is a choice, and we choose)."""
    text = "; ".join(licences)
    return bool(STRONG.search(WEAK.sub("", text))) and not PERMISSIVE.search(text)


def test_no_strong_copyleft() -> None:
    needed = _needed("mofang")
    assert {"numpy", "fastapi", "streamlit", "pytest"} <= needed.keys()
    strong = {name: _licences(each) for name, each in needed.items() if _is_strong(_licences(each))}
    assert not strong


def test_the_test_knows_copyleft_when_it_sees_it() -> None:
    assert _is_strong(["GPL-3.0-or-later"])
    assert _is_strong(["License :: OSI Approved :: GNU Affero General Public License v3"])
    assert not _is_strong(["LGPL-3.0-only"])
    assert not _is_strong(["MIT OR GPL-2.0-only"])


def test_ours_is_apache() -> None:
    assert metadata.metadata("mofang")["License-Expression"] == "Apache-2.0"
