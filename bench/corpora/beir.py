"""What the scripts beside this one share: text out of markup, and the BEIR layout on disk. Standard library only."""

import html
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path


def plain(markup: str) -> str:
    """Its text on one line."""
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", " ", markup))).strip()


def han_share(text: str) -> float:
    return sum("\u4e00" <= c <= "\u9fff" for c in text) / max(1, len(text))


def write(
    out: Path, texts: Mapping[str, str], titles: Mapping[str, Mapping[str, str]], half: Callable[[str], str]
) -> None:
    """OUT/corpus.jsonl, queries.jsonl and qrels/HALF.tsv.

    texts: by id of the document. titles: language → id → title, each a query whose one right document is that of its
    id. half(id): the file of its queries, "dev" or "test".
    """
    corpus = [{"_id": key, "title": "", "text": text} for key, text in texts.items()]
    queries, rows = [], {}
    for key in next(iter(titles.values())):
        for language, of in titles.items():
            queries.append({"_id": f"{language}:{key}", "text": of[key]})
            rows.setdefault(half(key), []).append(f"{language}:{key}\t{key}\t1\n")
    (out / "qrels").mkdir(parents=True, exist_ok=True)
    for name, lines in (("corpus", corpus), ("queries", queries)):
        with (out / f"{name}.jsonl").open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    for name, lines in rows.items():
        (out / "qrels" / f"{name}.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(lines), encoding="utf-8")
    print(f"{out}: {len(corpus)} documents, {len(queries)} queries")
