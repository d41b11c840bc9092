"""Sets of questions with what should be found, read from files and matched to a base's documents.

BEIR's layout: queries.jsonl {"_id", "text"}, qrels/<split>.tsv (query-id, corpus-id, score; the first line is a
header), and corpus.jsonl {"_id", "title", "text"}, which only whoever fills a base needs. Or one .jsonl of questions:
{"question", "answer"?, "document"? or "documents"?, "spans"?, "unanswerable"?, "id"?}; other fields are left alone.
Source: github.com/beir-cellar/beir, "Load your custom dataset".
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from mofang.errors import Invalid
from mofang.knowledge.base import DocumentInfo
from mofang.strings import say

DEFAULT_SPLIT = "test"

Files = Sequence[tuple[str, Path]]
"""(name with "/" between its parts, where it lies)."""


@dataclass(frozen=True, slots=True)
class Gold:
    """A piece of text that answers a question: a quote, or the characters start to end of a document."""

    quote: str = ""
    document: str = ""
    """"": any of the question's documents, or of the base's where it names none."""
    start: int = 0
    end: int = 0


@dataclass(frozen=True, slots=True)
class Question:
    """One row of a set, as it stands there."""

    id: str
    text: str
    where: str
    """File and line, for errors."""
    documents: Mapping[str, int] = field(default_factory=dict)
    """As the set names them → grade; 0: looked at and not relevant."""
    spans: tuple[Gold, ...] = ()
    answer: str = ""
    unanswerable: bool = False


@dataclass(frozen=True, slots=True)
class Judged:
    """A question whose documents and spans are those of a base."""

    id: str
    text: str
    documents: Mapping[str, int]
    """Document id → grade. What the base lacks keeps the set's name: it can never be found."""
    spans: tuple[tuple[str, int, int], ...] = ()
    """(document id, start, end)."""
    answer: str = ""
    unanswerable: bool = False


# ---- reading ----


def load(files: Files, split: str | None = None) -> list[Question]:
    """The questions of a set. Raises Invalid, naming file and line of what cannot be used."""
    by_name = {PurePosixPath(name).name: (name, path) for name, path in files}
    qrels = {PurePosixPath(name).stem: (name, path) for name, path in files if name.endswith(".tsv")}
    rows = [(name, path) for name, path in files if name.endswith(".jsonl") and not name.endswith("corpus.jsonl")]
    if qrels:
        if "queries.jsonl" not in by_name:
            raise Invalid("evaluate.no_queries", param="files", files=_names(files))
        questions = _beir(by_name["queries.jsonl"], _chosen(qrels, split))
    elif len(rows) == 1:
        questions = list(_rows(*rows[0]))
    else:
        raise Invalid("evaluate.no_set", param="files", files=_names(files))
    if not questions:
        raise Invalid("evaluate.empty_set", param="files", files=_names(files))
    return questions


def _names(files: Files) -> str:
    return ", ".join(name for name, _ in files) or "-"


def _chosen(qrels: Mapping[str, tuple[str, Path]], split: str | None) -> tuple[str, Path]:
    if split is None:
        split = DEFAULT_SPLIT if DEFAULT_SPLIT in qrels or len(qrels) > 1 else next(iter(qrels))
    if split not in qrels:
        raise Invalid("evaluate.no_split", param="split", split=split, known=", ".join(sorted(qrels)))
    return qrels[split]


def _beir(queries: tuple[str, Path], qrels: tuple[str, Path]) -> list[Question]:
    texts: dict[str, tuple[str, str]] = {}
    for where, row in _json_rows(*queries):
        key = _text(row, "_id", where)
        if key in texts:
            raise Invalid("evaluate.same_id", where=where, id=key)
        texts[key] = (_text(row, "text", where), where)
    graded: dict[str, dict[str, int]] = {}
    for number, line in _lines(*qrels):
        where = _at(qrels[0], number)
        parts = line.split("\t")
        if len(parts) != 3:
            raise Invalid("evaluate.bad_columns", where=where, found=len(parts))
        query, document, score = (part.strip() for part in parts)
        if not _is_integer(score):
            if number == 1:
                continue  # the header
            raise Invalid("evaluate.bad_score", where=where, score=score)
        if query not in texts:
            raise Invalid("evaluate.unknown_query", where=where, id=query, file=queries[0])
        graded.setdefault(query, {})[document] = int(score)
    return [Question(key, *texts[key], documents) for key, documents in graded.items()]


def _rows(name: str, path: Path) -> Iterator[Question]:
    seen: set[str] = set()
    for number, (where, row) in enumerate(_json_rows(name, path), start=1):
        key = str(row.get("id") or number)
        if key in seen:
            raise Invalid("evaluate.same_id", where=where, id=key)
        seen.add(key)
        named = _list(row, "documents", where) + ([row["document"]] if row.get("document") else [])
        for document in named:
            if not isinstance(document, str) or not document:
                raise Invalid("evaluate.bad_field", where=where, field="documents", wanted=say("evaluate.a_name"))
        spans = tuple(_gold(span, row, where) for span in _list(row, "spans", where))
        documents = dict.fromkeys([*named, *(span.document for span in spans if span.document)], 1)
        unanswerable = row.get("unanswerable") or False
        if not isinstance(unanswerable, bool):
            raise Invalid("evaluate.bad_field", where=where, field="unanswerable", wanted="true / false")
        if unanswerable and (documents or spans):
            raise Invalid("evaluate.contradiction", where=where)
        answer = _text(row, "answer", where) if row.get("answer") else ""
        yield Question(key, _text(row, "question", where), where, documents, spans, answer, unanswerable)


def _gold(span: Any, row: Mapping[str, Any], where: str) -> Gold:
    """ "a quote", [start, end], {"quote", "document"?} or {"start", "end", "document"?}."""
    document, place = "", span
    if isinstance(span, dict):
        document = str(span.get("document") or "")
        place = span["quote"] if "quote" in span else [span.get("start"), span.get("end")]
    if isinstance(place, str) and place.strip():
        return Gold(quote=place, document=document)
    whole = isinstance(place, list) and len(place) == 2 and all(type(edge) is int for edge in place)
    if not whole or not 0 <= place[0] < place[1]:
        raise Invalid("evaluate.bad_field", where=where, field="spans", wanted=say("evaluate.a_span"))
    document = document or str(row.get("document") or "")
    if not document:
        raise Invalid("evaluate.span_without_document", where=where)
    return Gold(document=document, start=place[0], end=place[1])


def _json_rows(name: str, path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in _lines(name, path):
        where = _at(name, number)
        try:
            row = json.loads(line)
        except ValueError as error:
            raise Invalid("evaluate.not_json", where=where, why=error) from error
        if not isinstance(row, dict):
            raise Invalid("evaluate.not_json", where=where, why=say("evaluate.no_object"))
        yield where, row


def _lines(name: str, path: Path) -> Iterator[tuple[int, str]]:
    """(number from 1, line) of what is not blank. Lines end at line feeds alone: a text may hold U+2028."""
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
            except UnicodeDecodeError as error:
                raise Invalid("evaluate.not_utf8", where=_at(name, number)) from error
            if line.strip():
                yield number, line


def _at(name: str, number: int) -> str:
    return f"{name}:{number}"


def _text(row: Mapping[str, Any], key: str, where: str) -> str:
    value = row.get(key)
    if type(value) is int and key == "_id":
        return str(value)
    if not isinstance(value, str) or not value.strip():
        raise Invalid("evaluate.bad_field", where=where, field=key, wanted=say("evaluate.a_text"))
    return value


def _list(row: Mapping[str, Any], key: str, where: str) -> list[Any]:
    value = row.get(key) or []
    if not isinstance(value, list):
        raise Invalid("evaluate.bad_field", where=where, field=key, wanted=say("evaluate.a_list"))
    return value


def _is_integer(text: str) -> bool:
    return text.removeprefix("-").isdecimal()


# ---- matching to a base ----


class Names:
    """A set's names of documents → ids of a base's: its name, its id, and its name without folders or suffix, where
    only one document has that."""

    def __init__(self, documents: Sequence[DocumentInfo]) -> None:
        self._ids: dict[str, str] = {}
        for alias in (_by_base_stem, _by_base_name, _by_stem, _by_id, _by_name):  # the surest last: it wins
            found: dict[str, str | None] = {}
            for document in documents:
                key = alias(document)
                found[key] = None if key in found else document.id
            self._ids.update({key: value for key, value in found.items() if value is not None})

    def get(self, name: str) -> str | None:
        return self._ids.get(name)


def _by_name(document: DocumentInfo) -> str:
    return document.name


def _by_id(document: DocumentInfo) -> str:
    return document.id


def _by_stem(document: DocumentInfo) -> str:
    return str(PurePosixPath(document.name).with_suffix(""))


def _by_base_name(document: DocumentInfo) -> str:
    return PurePosixPath(document.name).name


def _by_base_stem(document: DocumentInfo) -> str:
    return PurePosixPath(document.name).stem


def match(
    questions: Sequence[Question], documents: Sequence[DocumentInfo], text: Callable[[str], str]
) -> tuple[list[Judged], list[str]]:
    """The questions in terms of a base, and the documents that it lacks, by the set's names.

    text: a document's whole canonical text by id. Raises Invalid when the base holds none of the documents, and for a
    span that is not there.
    """
    names, missing = Names(documents), dict[str, None]()
    judged = []
    for question in questions:
        graded = {}
        for name, grade in question.documents.items():
            found = names.get(name)
            if found is None and grade > 0:
                missing[name] = None
            graded[found or name] = grade
        inside = [one for name in question.documents if (one := names.get(name))]
        spans = []
        for gold in question.spans:
            wanted = [one for one in (names.get(gold.document),) if one] if gold.document else inside
            if gold.document and not wanted:
                continue  # its document is missing, and told of
            spans.append(_place(gold, question, wanted or [document.id for document in documents], text))
        graded.update({document: 1 for document, _, _ in spans if document not in graded})
        judged.append(Judged(question.id, question.text, graded, tuple(spans), question.answer, question.unanswerable))
    wanted_at_all = {name for question in questions for name, grade in question.documents.items() if grade > 0}
    if wanted_at_all and len(missing) == len(wanted_at_all):
        raise Invalid("evaluate.other_documents", wanted=", ".join(list(missing)[:3]), n=len(missing))
    return judged, list(missing)


def _place(
    gold: Gold, question: Question, documents: Sequence[str], text: Callable[[str], str]
) -> tuple[str, int, int]:
    if not gold.quote:
        (document,) = documents[:1]
        if gold.end > len(text(document)):
            raise Invalid(
                "evaluate.span_beyond", where=question.where, start=gold.start, end=gold.end, length=len(text(document))
            )
        return document, gold.start, gold.end
    for document in documents:
        found = find_quote(gold.quote, text(document))
        if found:
            return document, *found
    raise Invalid("evaluate.no_quote", where=question.where, quote=gold.quote[:60])


def find_quote(quote: str, text: str) -> tuple[int, int] | None:
    """The characters of `text` that say `quote`, whatever white space stands in either; None when none do."""
    places = [place for place, character in enumerate(text) if not character.isspace()]
    bare = "".join(text[place] for place in places)
    wanted = "".join(quote.split())
    at = bare.find(wanted)
    return None if at < 0 or not wanted else (places[at], places[at + len(wanted) - 1] + 1)


# ---- a set on this machine's disk ----


def files_of(path: Path) -> list[tuple[str, Path]]:
    """What of a set is to be read: the file itself, or a folder's queries and qrels. Raises Invalid."""
    if path.is_file():
        return [(path.name, path)]
    found = [path / "queries.jsonl", *sorted((path / "qrels").glob("*.tsv"))]
    if not path.is_dir() or not all(one.is_file() for one in found) or len(found) < 2:
        raise Invalid("evaluate.no_such_set", param="set", path=path)
    return [(one.relative_to(path).as_posix(), one) for one in found]


def corpus(path: Path) -> Iterator[tuple[str, str]]:
    """(id, title and text) of each document of a BEIR folder's corpus.jsonl. Raises Invalid."""
    file = path / "corpus.jsonl"
    if not file.is_file():
        raise Invalid("evaluate.no_corpus", param="set", path=path)
    for where, row in _json_rows(file.name, file):
        title = str(row.get("title") or "").strip()
        text = str(row.get("text") or "").strip()
        if not title and not text:
            raise Invalid("evaluate.bad_field", where=where, field="text", wanted=say("evaluate.a_text"))
        yield _text(row, "_id", where), "\n\n".join(part for part in (title, text) if part)
