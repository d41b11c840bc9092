"""The text of documents as lines of JSON, for pre-training and for learning a vocabulary.

What stands in many documents alike, menus, footers, licences, would be learned by heart: a paragraph that occurred before
is left out (Wenzek et al., CCNet, arXiv 1911.00359), and a document of which little is left is too. Each line names its
document, so that what a model was taught can be traced.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from mofang.text.languages import is_in

SHORT = 10
"""Characters, signs apart: shorter paragraphs (是, Note, 1.2) may be said as often as they are."""
_BARE = re.compile(r"[\W\d_]+")


LEAST = 40
"""Characters of a document, below which it is left out."""


def gather(documents: Iterable[tuple[str, Sequence[str]]], out: Path, *, language: str = "") -> dict[str, Any]:
    """Write {"text", "source"} for each (name, its paragraphs), aside and renamed; returns what was written and what not.

    language: "zh" or "en", and paragraphs in another are left out. Holds one document and eight bytes a paragraph.
    """
    counts = Counter[str]()
    seen: set[bytes] = set()
    out.parent.mkdir(parents=True, exist_ok=True)
    aside = out.with_name(f".{out.name}.part")
    try:
        with aside.open("w", encoding="utf-8") as file:
            for name, paragraphs in documents:
                kept = []
                for paragraph in paragraphs:
                    if language and not is_in(paragraph, language):
                        counts["n_other"] += 1
                        continue
                    bare = _BARE.sub("", paragraph)
                    mark = hashlib.blake2b(bare.encode(), digest_size=8).digest()
                    if len(bare) >= SHORT and mark in seen:
                        counts["n_repeated"] += 1
                        continue
                    seen.add(mark)
                    kept.append(paragraph.strip("\n"))
                text = "\n".join(each for each in kept if each.strip())
                if len(text) < LEAST:
                    counts["n_short"] += 1
                    continue
                file.write(json.dumps({"text": text, "source": name}, ensure_ascii=False) + "\n")
                counts["n_documents"] += 1
                counts["n_characters"] += len(text)
        aside.replace(out)
    finally:
        aside.unlink(missing_ok=True)
    return {key: counts[key] for key in ("n_documents", "n_characters", "n_repeated", "n_other", "n_short")}
