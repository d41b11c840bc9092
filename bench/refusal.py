"""Refusal and citations: 100 pages taken out of LibreOffice's Chinese help, and what was asked about them all the same.

    refusal.py fill HOME       a base without those pages in HOME, and HOME/questions.jsonl
    refusal.py measure HOME    what search alone refuses: titles and questions whose page is gone, whose page is there, and
                               questions about other things (bench/questions/other.txt; none is an everyday query)

Titles are the pages' own; questions were written by a person who saw the pages (bench/questions/libreoffice.jsonl), in other
words than theirs. A title that another page carries as a heading is no unanswerable one and is left out. Nothing is
tuned: a question is refused when the base's nearest passage is no nearer than everyday questions' on average and no
passage holds a third of its words' information (knowledge/evidence.py). For the answers of a model:

    export MOFANG_HOME=HOME MOFANG_MODEL_PATH=~/.cache/mofang-tests/models
    mofang serve &
    mofang kb eval help HOME/questions.jsonl --answers

Needs bench/corpora (fetch.sh, libreoffice_beir.py) and the tests' embedding model.
"""

import argparse
import asyncio
import json
import random
import sys
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from ingest import MODEL, PAGES
from mofang.engine import ENGINES
from mofang.knowledge.evaluate import f1
from mofang.knowledge.library import CANDIDATES, Library
from mofang.messages import Progress
from mofang.models.base import ModelRef
from mofang.settings import Settings
from mofang.text.pairs import bare

HERE = Path(__file__).parent
SET = HERE / "corpora/libreoffice"
BASE = "help"
REMOVED = 100


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=["fill", "measure"])
    parser.add_argument("home", type=Path)
    choice = parser.parse_args()
    if not (SET / "queries.jsonl").is_file() or not MODEL.is_file():
        sys.exit("bash bench/corpora/fetch.sh; python bench/corpora/libreoffice_beir.py; make test")
    async with _library(choice.home) as library:
        if choice.step == "fill":
            await fill(library, choice.home)
        else:
            await measure(library, rows(choice.home / "questions.jsonl"))


@asynccontextmanager
async def _library(home: Path) -> AsyncIterator[Library]:
    ref = ModelRef(MODEL.stem, MODEL, "gguf", "embedding", MODEL.stat().st_size, manifest={"normalizer": "nfkc"})
    engine = await ENGINES.get("onnx")(ref, Settings(home=home), progress=lambda _: None)

    @asynccontextmanager
    async def opened(name: str) -> AsyncIterator[Any]:
        yield engine

    try:
        yield Library(home / "knowledge", opened)
    finally:
        await engine.close()


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


async def fill(library: Library, home: Path) -> None:
    titles = {row["_id"].split(":", 1)[1]: row["text"] for row in rows(SET / "queries.jsonl") if row["_id"][:2] == "zh"}
    asked: dict[str, list[dict[str, Any]]] = {}
    for row in rows(HERE / "questions/libreoffice.jsonl"):
        asked.setdefault(row["document"], []).append(row)
    # Half of the pages that questions were written for, then others; as many stay.
    drawn = random.Random(0)
    with_questions = drawn.sample(sorted(asked), len(asked))
    without = drawn.sample(sorted(set(titles) - set(asked)), len(titles) - len(asked))
    gone = [*with_questions[::2], *without][:REMOVED]
    kept = [*with_questions[1::2], *[page for page in without if page not in gone]][:REMOVED]

    library.create(BASE, embedding_model=MODEL.stem)
    files = [
        (name, path)
        for path in sorted(PAGES.rglob("*.html"))
        if (name := path.relative_to(PAGES).as_posix()) not in gone
    ]
    await library.add(BASE, files, progress=_show)
    headings = {bare(heading) for document in library.documents(BASE) for heading in _headings(library, document.id)}
    found: list[dict[str, Any]] = []
    for page in gone:
        if bare(titles.get(page, "")) not in headings | {""}:
            found.append({"question": titles[page], "unanswerable": True, "kind": "title"})
        found += [
            {"question": row["question"], "unanswerable": True, "kind": "question"} for row in asked.get(page, [])
        ]
    for page in kept:
        if titles.get(page):
            found.append({"question": titles[page], "document": page, "kind": "title"})
        found += [{**row, "kind": "question"} for row in asked.get(page, [])]
    other = (HERE / "questions/other.txt").read_text(encoding="utf-8").split()
    found += [{"question": question, "unanswerable": True, "kind": "other"} for question in other]
    with (home / "questions.jsonl").open("w", encoding="utf-8") as file:
        for number, row in enumerate(found, start=1):
            file.write(json.dumps({**row, "id": str(number)}, ensure_ascii=False) + "\n")
    print(f"{len(files)} pages, {len(found)} questions")


def _headings(library: Library, document: str) -> Iterable[str]:
    return (line.strip() for line in library.text(BASE, document)["text"].splitlines() if len(line) <= 60)


async def measure(library: Library, questions: list[dict[str, Any]]) -> None:
    pairs: dict[str, list[tuple[bool, bool]]] = {}
    for row in questions:
        hits = await library.search([BASE], row["question"], k=CANDIDATES)
        refused = not hits or not await library.covers([BASE], row["question"], hits)
        pairs.setdefault(row["kind"], []).append((row.get("unanswerable", False), refused))
    print("| | unanswerable | refused | answerable | refused | F1 |\n|---|---|---|---|---|---|")
    for kind, found in [*pairs.items(), ("all", [pair for each in pairs.values() for pair in each])]:
        bad, good = [guess for truth, guess in found if truth], [guess for truth, guess in found if not truth]
        score = f"{f1(found)['f1']:.2f}" if good else "-"
        print(f"| {kind} | {len(bad)} | {_share(bad)} | {len(good)} | {_share(good)} | {score} |")


def _share(guesses: list[bool]) -> str:
    return f"{sum(guesses) / len(guesses):.0%}" if guesses else "-"


def _show(progress: Progress) -> None:
    if progress.stage == "embed":
        print(f"\r{progress.done}/{progress.total} {progress.rate:.0f}/s ", end="", file=sys.stderr)


if __name__ == "__main__":
    asyncio.run(main())
