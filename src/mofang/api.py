"""The facade behind the command line and `import mofang`: one way to the gateway, whether or not one is running.

The one place where async becomes sync: what answers goes through `mofang.client.Client`, to the gateway that owns this
home or to one that lives in this process for as long as somebody here needs it. So a command line, a workbench and a
stranger's program go the same way, and nobody writes beside the owner. Trainings and exports are processes of their
own (mofang.runs), with or without a gateway.
"""

import asyncio
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mofang import settings as _settings
from mofang.client import ApiError, Client
from mofang.errors import EngineFailed, Invalid, MofangError, NotFound, Unreadable
from mofang.messages import Message, NextToken
from mofang.settings import Settings

if TYPE_CHECKING:
    from mofang.batches import Outcome
    from mofang.data.draft import Passage, Seed
    from mofang.engine.base import Purpose, Vectors
    from mofang.measure import EvalSet
    from mofang.measure.evaluate import Score
    from mofang.models.base import ModelRef
    from mofang.recipes import Recipe
    from mofang.runs import Run, State
    from mofang.tokenizer import Tokenizer

Tell = Callable[["State", list[dict[str, Any]]], None]
"""Hears of a run's state and its new lines of metrics."""


@contextmanager
def gateway(settings: Settings | None = None) -> Iterator[Client]:
    """A client of this home's gateway; started for the length of the block when none runs.

    Raises Conflict for a home that a newer Mofang wrote.
    """
    from mofang.launch import home

    settings = settings or _settings.load()
    home.prepare(settings.home)
    owner = home.find(settings.home)
    if owner:
        with Client(owner.url, owner.key) as client:
            yield client
        return
    from mofang.launch.local import passing_gateway

    with passing_gateway(settings) as running, running.client() as client:
        yield client


class _Shared:
    """One gateway for all objects of this process that need one: begun with the first, ended with the last."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: dict[Path, tuple[AbstractContextManager[Client], Client, list[object]]] = {}

    @contextmanager
    def client(self) -> Iterator[Client]:
        settings, user = _settings.load(), object()
        with self._lock:
            if settings.home not in self._open:
                held = gateway(settings)
                self._open[settings.home] = (held, held.__enter__(), [])
            found = self._open[settings.home]
            client, users = found[1], found[2]
            users.append(user)
        try:
            yield client
        finally:
            with self._lock:
                users.remove(user)
                if not users:
                    del self._open[settings.home]
                    found[0].__exit__(None, None, None)


_shared = _Shared()


# ---- asking ----


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model said. Printing it prints its text."""

    text: str
    finish_reason: str
    usage: dict[str, Any] = field(default_factory=dict)
    timings: dict[str, Any] = field(default_factory=dict)
    sources: list[dict[str, Any]] = field(default_factory=list)
    """Numbered passages of the knowledge bases that were asked; see messages.Source."""

    def __str__(self) -> str:
        return self.text


class Model:
    """A model to talk to. Use it in a `with` block, or call `close`."""

    def __init__(self, name: str = "auto") -> None:
        self._stack = ExitStack()
        self._client = self._stack.enter_context(_shared.client())
        try:
            self.name: str = self._client.load_model(name)["model"] if name != "auto" else "auto"
        except BaseException:
            self.close()
            raise

    def chat(self, messages: str | Sequence[Mapping[str, Any]], **choices: Any) -> Answer:
        """The answer to a question, or to a conversation in OpenAI's shape.

        `choices` are fields of POST /v1/chat/completions: temperature, max_tokens, tools…, and `system` (text) and
        `knowledge` (names of bases to answer from).
        """
        body = self._body(messages, choices)
        found = self._client.request("POST", "/v1/chat/completions", body)
        choice = found["choices"][0]
        message = choice["message"]
        return Answer(
            text=message.get("content") or "",
            finish_reason=choice["finish_reason"],
            usage=found.get("usage") or {},
            timings=found.get("timings") or {},
            sources=found.get("sources") or message.get("sources") or [],
        )

    def stream(self, messages: str | Sequence[Mapping[str, Any]], **choices: Any) -> Iterator[str]:
        """The answer piece by piece; leaving the loop stops the model."""
        with self._client.chat_stream(self._body(messages, choices)) as chunks:
            for chunk in chunks:
                if "error" in chunk:
                    raise EngineFailed("engine.failed", model=self.name, why=chunk["error"].get("message", ""))
                for choice in chunk.get("choices") or ():
                    if text := (choice.get("delta") or {}).get("content"):
                        yield text

    def tokenize(self, text: str) -> list[int]:
        """Token ids of raw text."""
        return self._client.tokenize(text, self.name)

    def next_token(self, prompt: str | list[int], *, n_top: int = 20) -> list[dict[str, Any]]:
        """The likeliest next tokens: token_id, text, logprob."""
        return list(self._client.next_token(prompt, self.name, n_top=n_top)["top"])

    def close(self) -> None:
        """Let go of the gateway. Safe to call twice."""
        self._stack.close()

    def __enter__(self) -> "Model":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _body(self, messages: str | Sequence[Mapping[str, Any]], choices: Mapping[str, Any]) -> dict[str, Any]:
        talk = [{"role": "user", "content": messages}] if isinstance(messages, str) else [dict(m) for m in messages]
        rest = dict(choices)
        if system := rest.pop("system", None):
            talk.insert(0, {"role": "system", "content": system})
        if isinstance(rest.get("knowledge"), str):
            rest["knowledge"] = [rest["knowledge"]]
        return {"model": self.name, "messages": talk, **rest}


def load(name: str = "auto") -> Model:
    """A model of this machine: a name of `list_models()`, or the id of a run that made one."""
    return Model(name)


def embed(texts: Sequence[str], *, purpose: "Purpose" = "passage", model: str = "auto") -> "Vectors":
    """Vectors of texts: (n, dimensions) float32, each row of length 1."""
    import numpy as np

    with _shared.client() as client:
        body = {"input": list(texts), "model": model, "input_type": purpose}
        rows = client.request("POST", "/v1/embeddings", body)["data"]
    return np.array([row["embedding"] for row in rows], np.float32)


# ---- documents ----


class KnowledgeBase:
    """Documents that answers are drawn from; made when there is none of that name.

    Use it in a `with` block, or call `close`.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._stack = ExitStack()
        self._client = self._stack.enter_context(_shared.client())
        if name not in {base["name"] for base in self._client.knowledge()}:
            try:
                self._client.create_knowledge(name)
            except BaseException:
                self.close()
                raise

    def add(
        self, *paths: str | Path, launcher: str = "local", cluster: str = "", workers: int = 0
    ) -> list[dict[str, Any]]:
        """Take in files; returns what happened to each. A file that was added before is replaced.

        launcher: "ray" lets the machines of a Ray cluster read and embed (docs/cluster.md): that at `cluster`, or a Ray
        of its own on this machine without; `workers`: processes that embed, 0 for one a machine or GPU.

        Raises NotFound for a path that is not there.
        """
        where: dict[str, str | int] = {"launcher": launcher, "cluster": cluster, "workers": workers}
        with ExitStack() as stack:
            files = [(Path(path).name, stack.enter_context(Path(path).open("rb"))) for path in paths]
            job = self._client.add_documents(self.name, files, **where)
        return list(_result(self._client, job)["files"])

    def documents(self) -> list[dict[str, Any]]:
        return self._client.documents(self.name)

    def search(self, query: str, k: int = 8) -> list[dict[str, Any]]:
        """The nearest passages, best first."""
        return self._client.search([self.name], query, k)

    def evaluate(
        self, path: str | Path, *, split: str | None = None, answers: bool = False, model: str = "auto"
    ) -> dict[str, Any]:
        """Measure search, and with `answers` the answers of `model`, on a set (docs/knowledge.md); the figures.

        Raises Invalid for a set that cannot be used, with file and line.
        """
        files = set_files(Path(path).expanduser())
        job = self._client.evaluate_knowledge(self.name, files, split=split, answers=answers, model=model)
        return dict(_result(self._client, job))

    def ask(self, question: str, *, model: str = "auto", **choices: Any) -> Answer:
        """An answer with its numbered sources."""
        with Model(model) as asked:
            return asked.chat(question, knowledge=[self.name], **choices)

    def close(self) -> None:
        self._stack.close()

    def __enter__(self) -> "KnowledgeBase":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def document_suffixes() -> frozenset[str]:
    """The suffixes of what can be added, lower case with their dot: {".md", ".pdf", ".zip", …}."""
    from mofang.knowledge import LOADERS
    from mofang.knowledge.archive import SUFFIX

    return frozenset(f".{name}" for name in (*LOADERS, SUFFIX))


def set_files(path: Path) -> list[tuple[str, Path]]:
    """What of a set of questions is sent to the gateway: (relative name, path). Raises Invalid."""
    from mofang.knowledge import evalset

    return evalset.files_of(path.expanduser())


def corpus_files(path: Path, folder: Path) -> list[tuple[str, Path]]:
    """The documents of a BEIR folder's corpus.jsonl, written into `folder`: (name, path). Raises Invalid."""
    from mofang.knowledge import evalset

    files = []
    for number, (key, text) in enumerate(evalset.corpus(path.expanduser())):
        file = folder / f"{number}.txt"
        file.write_text(text, encoding="utf-8")
        files.append((f"{key}.txt", file))
    return files


def draft_questions(
    client: Client,
    name: str,
    out: Path,
    *,
    n: int = 50,
    model: str = "auto",
    seed: int = 0,
    tell: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Let a model draft up to n questions about a base's passages into a file of lines; goes on where one is there.

    Returns {"kept", "dropped": {why: how many of this run}}. Raises Invalid for a file that is something else, NotFound
    for a base or model that is not there, Conflict for a base without passages.
    """
    from mofang.errors import Conflict
    from mofang.knowledge import questions
    from mofang.knowledge.base import Hit
    from mofang.text.languages import language_of

    rows, whole = _drafted_before(out, questions.drafted)
    drawn = [Hit(**{**one, "headings": tuple(one["headings"])}) for one in client.passages(name, 3 * n + 50, seed)]
    if not drawn:
        raise Conflict("evaluate.nothing_to_draft", name=name)

    def asks() -> Iterator[_Ask]:
        for place, passage in questions.remaining(drawn, rows):

            def judge(said: str, passage: Hit = passage, place: int = place) -> dict[str, Any] | str:
                draft = questions.judged(passage, said, [row["question"] for row in rows])
                return draft if isinstance(draft, str) else questions.row(passage, *draft, place)

            yield _Ask(questions.prompt(passage, language_of(passage.text)), judge, questions.SCHEMA)

    return _draft(client, out, rows, whole, asks(), n=n, model=model, unit="questions", tell=tell)


@dataclass(frozen=True, slots=True)
class _Ask:
    """One thing to ask a model for: what of its reply is kept, or why it is not."""

    messages: Sequence[Message]
    judge: Callable[[str], dict[str, Any] | str]
    schema: Mapping[str, Any]
    options: Mapping[str, Any] = field(default_factory=lambda: {"temperature": 0})


def _draft(
    client: Client,
    out: Path,
    rows: list[dict[str, Any]],
    whole: int,
    asks: Iterator[_Ask],
    *,
    n: int,
    model: str,
    unit: str,
    tell: Callable[[dict[str, Any]], None] | None,
) -> dict[str, Any]:
    """Ask until there are n rows, each written to the file as it comes, behind the `whole` bytes of earlier ones."""
    dropped: Counter[str] = Counter()
    began, before = time.monotonic(), len(rows)
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("ab") as file:
        file.truncate(whole)
        while len(rows) < n and (ask := next(asks, None)) is not None:
            body = {
                "model": model,
                "messages": [message.to_openai() for message in ask.messages],
                "max_tokens": 400,
                "response_format": {"type": "json_schema", "json_schema": {"name": "draft", "schema": ask.schema}},
                **ask.options,
            }
            said = client.request("POST", "/v1/chat/completions", body)["choices"][0]["message"]["content"] or ""
            kept = ask.judge(said)
            if isinstance(kept, str):
                dropped[kept] += 1
            else:
                rows.append(kept)
                file.write(json.dumps(kept, ensure_ascii=False).encode() + b"\n")
                file.flush()
            if tell:
                rate = (len(rows) - before) / (time.monotonic() - began)
                left = (n - len(rows)) / rate if rate else None
                step = {"stage": "draft", "done": len(rows), "total": n, "unit": unit, "rate": rate}
                last = rows[-1] if rows else {}
                tell({**step, "seconds_left": left, "detail": last.get("question") or last.get("instruction", "")})
    return {"kept": len(rows), "dropped": dict(dropped)}


def draft_instructions(
    client: Client,
    sources: Sequence[str | Path],
    out: Path,
    *,
    n: int = 50,
    model: str = "auto",
    seed: int = 0,
    tell: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Let a model draft up to n instructions with answers into a file of lines; goes on where one is there.

    sources: files of seed tasks (examples in any layout that training reads), and documents or folders of them (what
    knowledge bases read). Documents are asked about first, each passage once; then seed tasks, n·5 + 50 times at most.
    Returns {"kept", "dropped": {why: how many of this run}, "skipped": files that are neither}. Raises NotFound,
    Unreadable for sources; Invalid for an `out` that is something else; Conflict when there is nothing to draft from.
    """
    from mofang.data import draft
    from mofang.errors import Conflict
    from mofang.text import drafts

    rows, whole = _drafted_before(out, draft.drafted)
    seeds, passages, skipped = _to_draft_from([Path(source).expanduser() for source in sources])
    if not seeds and not passages:
        raise Conflict("data.nothing_to_draft", path=", ".join(map(str, sources)))
    random.Random(seed).shuffle(passages)

    def asks() -> Iterator[_Ask]:
        for passage in draft.remaining(passages, rows):
            yield _Ask(draft.ask_about(passage), judging(passage, draft.from_passage(passage)), draft.SCHEMA)
        first = draft.next_attempt(rows)
        for attempt in range(first, first + 5 * n + 50) if seeds else ():
            tasks = draft.shown(seeds, attempt, seed)
            options = {"temperature": 0.9, "seed": attempt}
            judge = judging(None, draft.from_tasks(tasks, attempt))
            yield _Ask(draft.ask_for_another(tasks), judge, draft.SCHEMA, options)

    def judging(passage: draft.Passage | None, source: dict[str, Any]) -> Callable[[str], dict[str, Any] | str]:
        def judge(said: str) -> dict[str, Any] | str:
            found = drafts.read(said, draft.NAMES)
            if found is None:
                return "unreadable"
            others = [*(one.instruction for one in seeds), *(row["instruction"] for row in rows)]
            return draft.fault(found, passage, others) or draft.made(found, source)

        return judge

    counts = _draft(client, out, rows, whole, asks(), n=n, model=model, unit="instructions", tell=tell)
    return {**counts, "skipped": [str(path) for path in skipped]}


def _drafted_before(out: Path, read: Callable[[Path, bytes], tuple[list[Any], int]]) -> tuple[list[Any], int]:
    """The rows of an earlier run in `out`, and how many bytes of it they are."""
    if out.is_dir():
        raise Invalid("data.out_is_folder", param="out", path=out, name="drafts.jsonl")
    return read(out, out.read_bytes()) if out.exists() else ([], 0)


def _to_draft_from(sources: Sequence[Path]) -> "tuple[list[Seed], list[Passage], list[Path]]":
    """(seed tasks, passages of documents, files that are neither). Raises NotFound, Unreadable."""
    from mofang.data import draft
    from mofang.data.readers import Layout
    from mofang.data.readers import rows as rows_of
    from mofang.data.rows import Conversation
    from mofang.knowledge import LOADERS, SPLITTERS
    from mofang.knowledge.loaders import parse, suffix

    seeds, passages, skipped = [], [], []
    for path, name, is_named in _beneath(sources):
        if suffix(path.name) in ("jsonl", "json", "parquet"):
            seeds += [draft.seed(row) for row in rows_of(path, Layout()) if isinstance(row, Conversation)]
        elif suffix(path.name) in LOADERS.names() or is_named:
            document = parse(path, name)
            passages += [
                draft.Passage(name, chunk.headings, document.text[chunk.start : chunk.end], chunk.start, chunk.end)
                for chunk in SPLITTERS.get("sentence")(document)
            ]
        else:
            skipped.append(path)
    return seeds, passages, skipped


def gather_text(
    sources: Sequence[str | Path],
    out: Path,
    *,
    language: str = "",
    tell: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """The text of documents (whatever knowledge bases read) and of folders of them, as lines for pre-training.

    language: "zh" or "en" leaves out paragraphs in another. Returns {"n_documents", "n_characters", "n_repeated":
    paragraphs that stood in an earlier document or place, "n_other": those in another language, "n_short": documents
    with nothing left to learn, "skipped": files of folders that are no documents, "unreadable": [[path, why]] of those
    that are broken}. Raises NotFound; Invalid for a language; Conflict where `out` exists; Unreadable for a file that
    was named itself, and where nothing is left of all: no file is written then.
    """
    from mofang.data.gather import gather
    from mofang.errors import Conflict
    from mofang.knowledge import LOADERS
    from mofang.knowledge.loaders import parse, suffix
    from mofang.text.languages import LANGUAGES

    if out.is_dir():
        raise Invalid("data.out_is_folder", param="out", path=out, name="corpus.jsonl")
    if out.exists():
        raise Conflict("data.out_taken", path=out)
    if language not in ("", *LANGUAGES):
        raise Invalid("data.no_language", param="language", value=language, known=", ".join(LANGUAGES))
    files = list(_beneath([Path(source).expanduser() for source in sources]))
    found = [each for each in files if suffix(each[0].name) in LOADERS.names() or each[2]]
    skipped = [str(path) for path, _, is_named in files if suffix(path.name) not in LOADERS.names() and not is_named]
    unreadable = []
    if not found:
        raise Unreadable("data.no_documents", path=", ".join(map(str, sources)), known=", ".join(LOADERS.names()))

    def documents() -> Iterator[tuple[str, list[str]]]:
        began = time.monotonic()
        for number, (path, name, is_named) in enumerate(found, 1):
            try:
                document = parse(path, name)
            except MofangError as error:
                if is_named:
                    raise
                unreadable.append([str(path), error.message()])
                continue
            yield name, [document.text[block.start : block.end] for block in document.blocks]
            if tell:
                rate = number / max(time.monotonic() - began, 1e-9)
                left = (len(found) - number) / rate
                shape = {"stage": "read", "done": number, "total": len(found), "unit": "files", "rate": rate}
                tell({**shape, "seconds_left": left, "detail": name})

    counts = gather(documents(), out, language=language)
    if not counts["n_documents"]:
        out.unlink()
        raise Unreadable(
            "data.nothing_left", n=len(found), language=language or "-", unreadable=len(unreadable), **counts
        )
    return {**counts, "skipped": skipped, "unreadable": unreadable}


def _beneath(sources: Sequence[Path]) -> Iterator[tuple[Path, str, bool]]:
    """(file, what to call it, whether it was named itself) of files, and of those in folders, hidden ones apart.

    Raises NotFound.
    """
    for source in sources:
        if not source.exists():
            raise NotFound("data.no_such_file", path=source)
        if not source.is_dir():
            yield source, source.name, True
            continue
        for path in sorted(path for path in source.rglob("*") if path.is_file() and not path.name.startswith(".")):
            yield path, str(path.relative_to(source)), False


def serve_mcp(knowledge: Sequence[str] = (), *, url: str | None = None) -> None:
    """Offer bases over the Model Context Protocol on standard input and output, until they are closed.

    url: a gateway elsewhere; None: this machine's, begun when none runs. Raises MissingExtra.
    """
    from mofang.integrations import mcp

    if url is None:
        with gateway() as client:
            asyncio.run(mcp.serve(client, knowledge))
        return
    key = _settings.load().api_key
    with Client(url, key.get_secret_value() if key else None) as client:
        asyncio.run(mcp.serve(client, knowledge))


def key_id(client: Client, key: str) -> str:
    """The id of a key that was given by its id or, to whoever may list keys, by a name that only one key has."""
    if key.startswith("key-"):
        return key
    known = client.keys()
    named = [found["id"] for found in known if found["name"] == key and found["state"] == "active"]
    if len(named) != 1:
        raise NotFound("keys.no_such_name" if not named else "keys.same_name", name=key)
    return str(named[0])


def document_name(path: str) -> str:
    """The name under which a file of that relative path is kept: cleaned as an upload's is."""
    from mofang.knowledge.ingest import clean_name
    from mofang.server.uploads import safe_name

    return clean_name(safe_name(path))


# ---- many requests ----


def batch(
    path: str | Path,
    out: str | Path | None = None,
    *,
    model: str | None = None,
    concurrency: int = 4,
    again: bool = False,
    tell: Callable[[int, int, float], None] | None = None,
) -> "Outcome":
    """Answer the requests of a file in OpenAI's batch format into `out` (NAME.answers.jsonl beside it by default).

    Begun again with the same files it goes on where it was. `model`: in place of what the requests name; `again`: ask
    anew what was refused; `tell` hears how many are answered, of how many, and requests a second.
    """
    from mofang import batches

    path = Path(path)
    requests = batches.read(path, model)
    first: list[tuple[float, int]] = []

    def told(done: int, total: int) -> None:
        now = time.monotonic()
        first[:] = first or [(now, done)]
        seconds = now - first[0][0]
        if tell:
            tell(done, total, (done - first[0][1]) / seconds if seconds > 0.5 else 0.0)

    with gateway() as client:
        target = Path(out) if out else path.with_name(f"{path.stem}.answers.jsonl")
        return batches.run(client, requests, target, concurrency=concurrency, again=again, tell=told)


# ---- models ----


def list_models() -> list[dict[str, Any]]:
    """The models of this machine."""
    with _shared.client() as client:
        return client.models()


def pull(name: str = "auto", *, kind: str = "chat") -> dict[str, Any]:
    """Bring a model of the catalogue, or from an address (hf:OWNER/REPO/FILE…); returns it."""
    with _shared.client() as client:
        return dict(_result(client, client.pull(name, kind=kind)))


def _result(client: Client, job: Mapping[str, Any]) -> Any:
    """What a job of the gateway made, once it has. Raises ApiError when it failed."""
    for event in client.follow_job(job["id"]):
        if event["type"] == "done":
            return event["result"]
        if event["type"] == "error":
            raise ApiError(502, event["error"])
    raise EngineFailed("cli.job_lost")


# ---- training and exporting ----


def sft(
    *, wait: bool = True, tell: Tell | None = None, launcher: Mapping[str, Any] | None = None, **fields: Any
) -> "Run":
    """Fine-tune a model on questions and answers; `fields` are those of the recipe (docs/training.md): base, data…

    `launcher`: {"launcher": "torchrun", "processes": 2}; one process without.
    Returns the run, ended when `wait` is True. Raises Invalid with all faults of the recipe, MissingExtra with the pip
    line, and what the run failed with. Ctrl-C stops the run, which can be resumed.
    """
    return _run("sft", fields, wait=wait, tell=tell, launcher=launcher)


def dpo(
    *, wait: bool = True, tell: Tell | None = None, launcher: Mapping[str, Any] | None = None, **fields: Any
) -> "Run":
    """Teach a model which of two answers is better, held to what it was; as `sft`, `data` has pairs."""
    return _run("dpo", fields, wait=wait, tell=tell, launcher=launcher)


def orpo(
    *, wait: bool = True, tell: Tell | None = None, launcher: Mapping[str, Any] | None = None, **fields: Any
) -> "Run":
    """The same without a reference model; as `sft`, `data` has pairs."""
    return _run("orpo", fields, wait=wait, tell=tell, launcher=launcher)


def pretrain(
    *, wait: bool = True, tell: Tell | None = None, launcher: Mapping[str, Any] | None = None, **fields: Any
) -> "Run":
    """Teach a model plain text, a new one (`tokenizer`) or on with one (`base`); as `sft`, `data` has texts."""
    return _run("pretrain", fields, wait=wait, tell=tell, launcher=launcher)


def import_gguf(model: str, *, tell: Tell | None = None, **fields: Any) -> "Run":
    """Make a trainable Hugging Face folder of a GGUF model; run.state().result names it."""
    return _run("import", {"model": model, **fields}, tell=tell)


def merge(model: "str | Run", *, tell: Tell | None = None, **fields: Any) -> "Run":
    """Add a run's adapter into its base, checked; run.state().result names the model."""
    return _run("merge", {"model": _id(model), **fields}, tell=tell)


def to_gguf(model: "str | Run", type: str = "", *, tell: Tell | None = None, **fields: Any) -> "Run":
    """Make a GGUF file of a run, a Hugging Face model or a GPTQ model; run.state().result names the model."""
    return _run("gguf", {"model": _id(model), "type": type, **fields}, tell=tell)


def to_gptq(model: "str | Run", *, tell: Tell | None = None, **fields: Any) -> "Run":
    """Quantize the linear layers of a run or a Hugging Face model by GPTQ; run.state().result names the model."""
    return _run("gptq", {"model": _id(model), **fields}, tell=tell)


def check(model: "str | Run", reference: "str | Run" = "", *, tell: Tell | None = None, **fields: Any) -> "Run":
    """Compare a model with another one, what it was made from when none is named; figures in run.state().result."""
    return _run("check", {"model": _id(model), "reference": _id(reference), **fields}, tell=tell)


def list_runs() -> "list[Run]":
    """Every training and export of this home, the newest first."""
    from mofang.runs import Runs

    return Runs(_settings.load().home).list()


def start(recipe: "Recipe", launcher: Mapping[str, Any] | None = None) -> "Run":
    """Start a run and leave it to itself. `launcher`: {"launcher": "torchrun", "processes": 2}; one process without."""
    from mofang.launch import home
    from mofang.recipes import launcher_of
    from mofang.runs import Runs, need

    launched = launcher_of(launcher) if launcher else None
    need(type(recipe), launched)
    settings = _settings.load()
    home.prepare(settings.home)
    run = Runs(settings.home).create(recipe)
    run.start(launched)
    return run


def resume(run: "Run", launcher: Mapping[str, Any] | None = None) -> "Run":
    """Start a run again from its last checkpoint, as `launcher` says (see `start`) or as it was started before."""
    run.start(run.relaunched(launcher or {}))
    return run


def finish(run: "Run", tell: Tell | None = None) -> "State":
    """Wait for a run. Ctrl-C stops it, in order, and is then raised."""
    try:
        return run.wait(tell)
    except KeyboardInterrupt:
        run.stop()
        raise


def recipe(kind: str, fields: Mapping[str, Any], overrides: Sequence[str] = ()) -> "Recipe":
    """A checked recipe, its files as absolute paths: the run's process may stand elsewhere."""
    from mofang.recipes import parse, recipe_class

    found = parse(recipe_class(kind), fields, overrides)
    files = {
        name: [str(Path(path).expanduser().absolute()) for path in getattr(found, name)]
        for name in ("data", "eval_data", "texts")
        if hasattr(found, name)
    }
    files |= {
        name: [str(path.absolute()) if (path := Path(one).expanduser()).exists() else one for one in texts]
        for name in ("text", "calibration")  # which may be names of our own
        if (texts := getattr(found, name, None))
    }
    places = {
        name: str(Path(value).absolute())
        for name in ("base", "model", "reference")
        if isinstance(value := getattr(found, name, ""), str)
        and ("/" in value or "\\" in value)
        and Path(value).exists()
    }
    named = getattr(found, "adapters", None)
    if named:
        files["adapters"] = [
            str(Path(value).absolute()) if ("/" in value or "\\" in value) and Path(value).exists() else value
            for value in named
        ]
    for name in ("tokenizer", "types"):  # a folder here goes before a model's name
        value = getattr(found, name, "")
        if value and (path := Path(value).expanduser()).exists():
            places[name] = str(path.absolute())
    return found.model_copy(update={**files, **places})


def failure(state: "State") -> MofangError:
    """What a run failed with, as an error."""
    return ApiError(500, state.error)


def _run(
    kind: str, fields: Mapping[str, Any], *, wait: bool = True, tell: Tell | None = None,
    launcher: Mapping[str, Any] | None = None,
) -> "Run":  # fmt: skip
    run = start(recipe(kind, fields), launcher)
    if wait:
        state = finish(run, tell)
        if state.status != "done":
            raise failure(state) if state.error else MofangError("runs.worker_failed", why=state.status, log=run.log)
    return run


def _id(model: "str | Run") -> str:
    return model if isinstance(model, str) else model.id


def preview(
    file: str | Path,
    base: str = "auto",
    *,
    n: int = 1,
    max_length: int = 1024,
    format: str = "auto",
    columns: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """The first `n` examples of a file or folder as training on `base` would see them, and counts, lengths and the
    share of trained tokens of all. Needs no torch."""
    from mofang.data.preview import preview as as_text
    from mofang.data.preview import survey
    from mofang.data.readers import Layout
    from mofang.models.store import ModelStore
    from mofang.tokenizer import load as load_tokenizer

    store = ModelStore(_settings.load())
    ref = store.resolve("auto", "chat") if base == "auto" else store.get_or_path(base)
    tokenizer = load_tokenizer(ref.path)
    layout = Layout(format, columns)
    counts, first = survey([Path(file).expanduser()], tokenizer, max_length=max_length, n=n, layout=layout)
    text = "\n".join(as_text(example, tokenizer) for example in first)
    return {"model": ref.name, **counts, "text": text}


# ---- tokenizers ----


def inspect_tokenizer(name: str, text: str | None = None, ids: Sequence[int] = ()) -> dict[str, Any]:
    """Facts of a model's vocabulary; with `text`, how it is cut ("cut"); with `ids`, those tokens ("tokens").

    `name`: a model, or the path of a folder, .gguf, tokenizer.json or tokenizer.model. Raises NotFound, Unreadable.
    """
    from dataclasses import asdict

    from mofang.tokenizer import inspect, named

    tokenizer, _ = named.find(name)
    for token_id in ids:
        if not 0 <= token_id < tokenizer.n_vocab:
            raise NotFound("tokenizer.no_such_id", id=token_id, last=tokenizer.n_vocab - 1)
    found: dict[str, Any] = {}
    if text is not None:
        found["cut"] = inspect.cut(tokenizer, text)
    if ids:
        found["tokens"] = [asdict(inspect.piece(tokenizer, token_id)) for token_id in ids]
    return found or inspect.facts(tokenizer)


def measure_tokenizer(
    name: str, texts: Sequence[str | Path], *, against: str = "", bits: bool = False
) -> dict[str, Any]:
    """Characters and bytes per token on texts, by script; dead tokens; lines that do not come back.

    With `against` (the extended tokenizer) also its figures ("after") and a verdict ("card"); with `bits` the model's
    bits per character on the beginning of the texts. Raises Invalid, NotFound, Unreadable.
    """
    from mofang.tokenizer import extension, measure, named
    from mofang.tokenizer import texts as reading

    tokenizer, ref = named.find(name)
    other = named.find(against)[0] if against else None
    lines = list(reading.lines(reading.files(map(Path, texts))))
    before = measure.measure(tokenizer, lines)
    found = before.shape() | _dead(tokenizer)
    if bits:
        found["bits_per_character"] = _bits_per_character(name, ref, tokenizer, lines)
    if other:
        after = measure.measure(other, lines)
        found |= {
            "after": after.shape() | _dead(other),
            "card": extension.weigh(before, after, tokenizer.n_vocab, other, ref, found.get("bits_per_character")),
        }
    return found


def train_tokenizer(texts: Sequence[str | Path], out: str | Path, *, kind: str, size: int) -> dict[str, Any]:
    """A new vocabulary of `size` tokens from texts, written to the folder `out`. Raises Conflict, Invalid, MissingExtra."""
    from mofang.tokenizer import folder, train
    from mofang.tokenizer import texts as reading

    target = folder.free(Path(out))
    files = reading.files(map(Path, texts))
    made = train.train(kind, lambda: reading.lines(files), size)
    with folder.aside(target) as place:
        made.save(place)
    return {"path": str(target), "kind": kind, "n_vocab": made.n_vocab, "sha256": made.sha256()}


def extend_tokenizer(
    name: str,
    texts: Sequence[str | Path],
    out: str | Path,
    *,
    size: int = 10_000,
    script: str = "han",
    unreachable: str = "drop",
    vocabulary: str | Path = "",
    tell: Callable[[str, int, int], None] | None = None,
) -> dict[str, Any]:
    """A model's tokenizer with tokens learned from texts, or taken from a SentencePiece `vocabulary`, in the folder
    `out`; and whether it pays, measured on every 20th line, which is held out of learning.

    Raises Conflict, Invalid, MissingExtra, NotFound, Unreadable; UnknownName for a kind that cannot be extended.
    """
    from mofang.tokenizer import extension

    made = extension.make(
        name, texts, Path(out), size=size, script=script, unreachable=unreachable, vocabulary=vocabulary, tell=tell
    )
    return made.found


def _dead(tokenizer: "Tokenizer") -> dict[str, Any]:
    from mofang.tokenizer import measure

    dead = measure.dead(tokenizer)
    return {"n_vocab": tokenizer.n_vocab, "dead": [{"id": each, "piece": tokenizer.token(each)} for each in dead]}


def _bits_per_character(
    name: str, ref: "ModelRef | None", tokenizer: "Tokenizer", lines: Sequence[str], n_tokens: int = 400
) -> float:
    """Of the model, on as many whole lines as about `n_tokens` hold, or on the beginning of the first.

    Raises Invalid for what is no installed model, or too little text.
    """
    import tempfile

    from mofang.models.store import ModelStore

    installed = ModelStore(_settings.load()).list()
    known = next((one.name for one in installed if ref and one.path.resolve() == ref.path.resolve()), "")
    if not known:
        raise Invalid("tokenizer.no_whole", param="bits", name=name)
    chosen: list[str] = []
    for line in lines:
        if chosen and len(tokenizer.encode("\n".join([*chosen, line]))) > n_tokens:
            break
        chosen.append(line)
    text = "\n".join(chosen)
    while (n := len(tokenizer.encode(text))) > n_tokens:
        text = text[: len(text) * n_tokens // n]
    if n < 2:
        raise Invalid("tokenizer.text_short", param="texts")
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "text.txt"
        file.write_text(text, encoding="utf-8")
        score = evaluate(known, [str(file)], n_tokens=n_tokens)[0]
    return score.value * len(text.encode()) / len(text)


# ---- measuring ----


class OverGateway:
    """measure.base.Asked over HTTP: a model behind the gateway."""

    def __init__(self, client: Client, model: str) -> None:
        self.client = client
        self.name = model

    async def tokenize(self, text: str) -> list[int]:
        return await asyncio.to_thread(self.client.tokenize, text, self.name)

    async def next_token(self, prompt: str | list[int], *, forced: int | None = None, n_top: int = 20) -> NextToken:
        from mofang.messages import Candidate

        found = await asyncio.to_thread(self.client.next_token, prompt, self.name, forced=forced, n_top=n_top)
        return NextToken(found["forced"], tuple(map(Candidate.read, found["top"])))

    async def answer(self, messages: Sequence[Message], *, max_tokens: int) -> str:
        talk = [message.to_openai() for message in messages]
        body = {"model": self.name, "messages": talk, "temperature": 0, "max_tokens": max_tokens}
        found = await asyncio.to_thread(self.client.request, "POST", "/v1/chat/completions", body)
        return str(found["choices"][0]["message"]["content"] or "")


def eval_sets() -> list[str]:
    """The sets of questions that come with Mofang."""
    from mofang.measure import NAMES

    return list(NAMES)


def evaluate(
    model: str = "auto",
    sets: Sequence[str] = ("common_zh",),
    *,
    n_shot: int = 0,
    n_tokens: int = 400,
    tell: Callable[[str, int, int], None] | None = None,
) -> "list[Score]":
    """Put sets of questions to a model: our own by name (mofang.measure.NAMES), or paths. One Score each.

    `tell(set, done, total)` hears of each question. Texts are read by the model's file where it lies here as a GGUF
    (engine/llama/reading.py), else token by token through the gateway. Raises NotFound, Unreadable before the model is
    asked anything.
    """
    from mofang.engine.llama import reading
    from mofang.measure import load_set
    from mofang.measure.evaluate import evaluate as put
    from mofang.measure.evaluate import text_score
    from mofang.models.store import ModelStore

    questions = [load_set(name) for name in sets]
    settings = _settings.load()
    ref = ModelStore(settings).resolve(model, "chat")
    is_file = reading.can_read(ref)

    async def score(client: Client, one: "EvalSet") -> "Score":
        def report(done: int, total: int) -> None:
            if tell:
                tell(one.name, done, total)

        if one.kind == "text" and is_file:
            read = await reading.read(ref, settings, one.text, n_tokens=n_tokens, tell=report)
            return text_score(one.name, read.forced, read.n_bytes)
        return await put(OverGateway(client, model), one, n_shot=n_shot, n_tokens=n_tokens, tell=report)

    with _shared.client() as client:
        return [asyncio.run(score(client, one)) for one in questions]
