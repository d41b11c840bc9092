"""`mofang kb`: knowledge bases: create, fill, look at, search, ask."""

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mofang.strings import say

if TYPE_CHECKING:
    from mofang.cli.files import Skipped
    from mofang.client import Client

app = typer.Typer(help=say("cli.kb"), no_args_is_help=True)

Json = Annotated[bool, typer.Option("--json", help=say("cli.option_json"))]
Yes = Annotated[bool, typer.Option("--yes", "-y", help=say("cli.option_yes"))]
Base = Annotated[str, typer.Argument(help=say("cli.argument_kb"), metavar="NAME")]


@app.command("create", help=say("cli.kb_create"))
def create(
    name: Base,
    title: Annotated[str, typer.Option(help=say("cli.option_title"), metavar="TEXT")] = "",
    store: Annotated[str, typer.Option(help=say("cli.option_store"), metavar="NAME")] = "builtin",
    as_json: Json = False,
) -> None:
    from mofang import api
    from mofang.cli import render

    with api.gateway() as client:
        base = client.create_knowledge(name, store=store, **({"title": title} if title else {}))
    if as_json:
        render.show_json(base)
    else:
        render.show(say("cli.kb_created", name=name, model=base.get("embedding_model") or "auto"))


@app.command("list", help=say("cli.kb_list"))
def list_(as_json: Json = False) -> None:
    from mofang import api
    from mofang.cli import render

    with api.gateway() as client:
        bases = client.knowledge()
    if as_json:
        render.show_json(bases)
        return
    if not bases:
        render.note(say("cli.no_kb"), style="")
        return
    rows = [
        (
            base["name"] + (f"\n{base['title']}" if base.get("title") not in (None, "", base["name"]) else ""),
            f"{base.get('n_documents') or 0:,}",
            f"{base.get('n_chunks') or 0:,}",
            render.size(base.get("size_bytes") or 0),
            base.get("embedding_model") or "–",
        )
        for base in bases
    ]
    render.show(render.table(_headings("name", "documents", "chunks", "size", "embedder"), rows))


# ---- add ----


@app.command("add", help=say("cli.kb_add"))
def add(
    name: Base,
    paths: Annotated[list[Path], typer.Argument(help=say("cli.argument_paths"), metavar="PATH...")],
    launcher: Annotated[str, typer.Option(help=say("cli.option_ingest_launcher"), metavar="local|ray")] = "local",
    cluster: Annotated[str, typer.Option(help=say("main.option_cluster"), metavar="HOST:PORT")] = "",
    workers: Annotated[int, typer.Option(min=0, help=say("cli.option_ingest_workers"), metavar="N")] = 0,
    as_json: Json = False,
) -> None:
    from mofang import api
    from mofang import settings as _settings
    from mofang.cli import files, render
    from mofang.errors import Invalid
    from mofang.launch import INGESTING

    where: dict[str, Any] = {"cluster": cluster, "workers": workers}
    far = INGESTING.get(launcher)(_settings.load(), **where)  # what is wrong is said before anything is sent
    chosen = files.select(paths, api.document_suffixes())
    if not chosen.files:
        raise Invalid("cli.no_documents", paths=", ".join(map(str, paths)), skipped=_skipped_words(chosen.skipped))
    with api.gateway() as client:
        created = _create_when_missing(client, name)
        reports: list[dict[str, Any]] = []
        stopped = False
        for batch in files.batches(chosen.files, times=files.FAR if far else 1):
            done, stopped = ingest(client, name, batch, launcher=launcher, **where)
            if not as_json:
                for report in done:
                    _show_file(report)
            reports += done
            if stopped:
                break
    failed = sum(report["status"] == "failed" for report in reports)
    if as_json:
        skipped = [{"path": skip.path, "reason": skip.reason} for skip in chosen.skipped]
        render.show_json({"knowledge": name, "created": created, "files": reports, "skipped": skipped})
    if chosen.skipped:
        render.note(say("cli.kb_skipped", what=_skipped_words(chosen.skipped)))
    if stopped:
        render.note(say("cli.kb_stopped", done=len(reports), total=len(chosen.files)), style="yellow")
        raise typer.Exit(130)
    if not as_json:
        render.note(_total(reports))
    if failed:
        raise typer.Exit(1)


def _create_when_missing(client: "Client", name: str) -> bool:
    from mofang.cli import render

    known = [base["name"] for base in client.knowledge()]
    if name in known:
        return False
    client.create_knowledge(name)
    near = render.nearest(name, known)
    # A base made by a slip of the finger should be noticed at once.
    render.note(say("cli.kb_new_near", name=name, near=near) if near else say("cli.kb_new", name=name), style="")
    return True


def ingest(
    client: "Client", name: str, batch: Sequence[tuple[str, Path]], **where: Any
) -> tuple[list[dict[str, Any]], bool]:
    """Upload and read one batch: the files' reports, and whether Ctrl-C ended it. where: see Client.add_documents.

    When a batch of several is refused as a whole, its files are tried one by one, so that one bad file costs only
    itself; a refused single file is reported as failed.
    """
    from mofang.cli import jobs, render
    from mofang.client import ApiError

    title = batch[0][0] if len(batch) == 1 else say("cli.kb_batch", n=len(batch))
    try:
        with ExitStack() as stack:
            opened = [(relative, stack.enter_context(path.open("rb"))) for relative, path in batch]
            with render.working(say("cli.uploading", what=title)):
                job = client.add_documents(name, opened, **where)
        return list(jobs.finish(client, job, title=title)["files"]), False
    except jobs.JobStopped:
        return [], True
    except ApiError as error:
        if error.status not in (400, 413, 415, 422):
            raise
        if len(batch) == 1:
            fault = {"error": error.message(), "hint": error.hint(), "code": error.code}
            return [{"name": batch[0][0], "status": "failed", **fault}], False
    except OSError as error:
        if len(batch) == 1:
            why = say("cli.unreadable_file", why=error.strerror or error)
            return [{"name": batch[0][0], "status": "failed", "error": why, "hint": "", "code": "unreadable"}], False
    reports: list[dict[str, Any]] = []
    for file in batch:
        done, stopped = ingest(client, name, [file], **where)
        reports += done
        if stopped:
            return reports, True
    return reports, False


_MARKS = {"added": "+", "replaced": "↻", "unchanged": "=", "failed": "✗", "unpacked": "▤", "removed": "-", "kept": "?"}


def _show_file(report: Mapping[str, Any]) -> None:
    from rich.text import Text

    from mofang.cli import render

    status = str(report["status"])
    failed = status == "failed"
    line = Text(f"{_MARKS.get(status, '?')} {report['name']}  ", style="red" if failed else "")
    if failed:  # the message names the file too
        line.append(str(report.get("error") or "").removeprefix(str(report["name"])).lstrip(" ：:"))
    else:
        line.append(_file_words(report), style="dim")
    render.show(line)
    for remark in (report.get("hint") if failed else "", *(report.get("notes") or ())):
        if remark:
            render.show(Text(f"  {remark}", style="yellow"))


def _file_words(report: Mapping[str, Any]) -> str:
    from mofang.cli import render

    status, n_chunks = render.word("status", str(report["status"])), report.get("n_chunks") or 0
    return say("cli.file_done", status=status, n=n_chunks) if n_chunks else status


def _total(reports: Sequence[Mapping[str, Any]]) -> str:
    from mofang.cli import render

    counts = Counter(str(report["status"]) for report in reports)
    return " · ".join(f"{render.word('status', status)} {counts[status]}" for status in _MARKS if counts[status])


def _skipped_words(skipped: Sequence["Skipped"]) -> str:
    """ "隐藏文件 3 · 不认识的后缀 2（.png .xyz）", or "–"."""
    from mofang.cli import render

    counts = Counter(skip.reason for skip in skipped)
    suffixes = {Path(skip.path).suffix.lower() for skip in skipped if skip.reason == "suffix"}
    unknown = sorted(suffix or say("cli.no_suffix") for suffix in suffixes)
    words = [
        f"{render.word('skip', reason)} {n}" + (f" ({' '.join(unknown[:8])})" if reason == "suffix" else "")
        for reason, n in counts.items()
    ]
    return " · ".join(words) or "–"


# ---- watch ----


@app.command("watch", help=say("cli.kb_watch"))
def watch(
    name: Base,
    folder: Annotated[Path, typer.Argument(help=say("cli.argument_folder"), metavar="DIR")],
    prefix: Annotated[str, typer.Option(help=say("cli.option_prefix"), metavar="NAME")] = "",
    yes: Annotated[bool, typer.Option("--yes", "-y", help=say("cli.option_may_empty"))] = False,
    as_json: Json = False,
) -> None:
    import json

    from mofang import api
    from mofang.cli import render
    from mofang.cli import watch as watching
    from mofang.errors import Invalid, MofangError

    real = folder.expanduser().absolute()
    if not real.is_dir():
        raise Invalid("cli.not_a_folder", path=folder, param="folder")

    def tell(report: Mapping[str, Any]) -> None:
        if as_json:
            print(json.dumps(report, ensure_ascii=False), flush=True)
        else:
            _show_file(report)

    def on_error(error: MofangError) -> None:
        render.note(say("cli.watch_retries", why=error.message(), seconds=int(watching.RETRY_S)), style="yellow")

    with api.gateway() as client:
        _create_when_missing(client, name)
        mirror = watching.Mirror(
            client=client,
            base=name,
            folder=real,
            prefix=api.document_name(prefix or real.resolve().name),
            suffixes=api.document_suffixes() - {".zip"},
            document_name=api.document_name,
            ingest=lambda batch: ingest(client, name, batch),
            tell=tell,
            may_empty=yes,
        )
        render.note(say("cli.watching", path=folder, name=name, prefix=mirror.prefix))
        watching.watch(mirror, on_error)
        render.note(say("cli.watch_ended"))


# ---- look, search, ask ----


@app.command("documents", help=say("cli.kb_documents"))
def documents(name: Base, as_json: Json = False) -> None:
    from mofang import api
    from mofang.cli import render

    with api.gateway() as client:
        found = client.documents(name)
    if as_json:
        render.show_json(found)
        return
    if not found:
        render.note(say("cli.kb_empty", name=name), style="")
        return
    rows = [
        (
            "\n".join([document["name"], *(f"! {remark}" for remark in document.get("notes") or ())]),
            render.size(document.get("size_bytes") or 0),
            f"{document.get('n_chars') or 0:,}",
            f"{document['n_pages']:,}" if document.get("n_pages") else "–",
            f"{document.get('n_chunks') or 0:,}",
            str(document["id"]),
        )
        for document in found
    ]
    render.show(render.table(_headings("name", "size", "chars", "pages", "chunks", "id"), rows))


@app.command("search", help=say("cli.kb_search"))
def search(
    name: Base,
    query: Annotated[str, typer.Argument(help=say("cli.argument_query"), metavar="QUERY")],
    k: Annotated[int, typer.Option("-k", min=1, max=100, metavar="K", help=say("cli.option_k"))] = 8,
    names: Annotated[list[str], typer.Option("--in", metavar="NAME", help=say("cli.option_in"))] = [],  # noqa: B006
    types: Annotated[list[str], typer.Option("--type", metavar="SUFFIX", help=say("cli.option_type"))] = [],  # noqa: B006
    rerank: Annotated[str | None, typer.Option("--rerank", metavar="MODEL", help=say("cli.option_rerank"))] = None,
    as_json: Json = False,
) -> None:
    from mofang import api
    from mofang.cli import answers, render

    limits: dict[str, Any] = {"filter": {"names": names, "types": types}} if names or types else {}
    if rerank is not None:
        limits["rerank"] = rerank
    notices: list[str] = []
    with api.gateway() as client, render.working(say("cli.searching")):
        hits = client.search([name], query, k, notices=notices, **limits)
    for notice in notices:
        render.note(notice)
    if as_json:
        render.show_json(hits)
        return
    if not hits:
        render.note(say("cli.no_hits", name=name), style="")
        return
    from rich.padding import Padding
    from rich.text import Text

    from mofang.cli.wrap import ChineseText, shorten

    for number, hit in enumerate(hits, 1):
        title = Text(f"{number}. {answers.place(hit)}", style="bold")
        title.append(f"  {_why(hit)}", style="dim not bold")
        render.show(title)
        render.show(Padding(ChineseText(shorten(hit["text"], 240)), (0, 0, 1, 3)))


def _why(hit: Mapping[str, Any]) -> str:
    """The legs' own ranks: why this hit stands here."""
    parts = [f"{hit.get('score') or 0:.4f}"]
    if hit.get("bm25_rank") is not None:
        parts.append(say("cli.rank_words", n=hit["bm25_rank"]))
    if hit.get("dense_rank") is not None:
        parts.append(say("cli.rank_meaning", n=hit["dense_rank"]))
    if hit.get("rerank_score") is not None:
        parts.append(say("cli.rerank_score", score=f"{hit['rerank_score']:.2f}"))
    return " · ".join(parts)


@app.command("ask", help=say("cli.kb_ask"))
def ask(
    name: Base,
    question: Annotated[str, typer.Argument(help=say("cli.argument_question"), metavar="QUESTION")],
    model: Annotated[str, typer.Option(help=say("cli.option_model"), metavar="MODEL")] = "auto",
    max_tokens: Annotated[int | None, typer.Option(min=1, metavar="N", help=say("cli.option_max_tokens"))] = None,
    as_json: Json = False,
) -> None:
    from mofang import api
    from mofang.cli import answers, render

    body: dict[str, Any] = {
        "model": model,
        "messages": [{"role": "user", "content": question}],
        "knowledge": [name],
    }
    if max_tokens is not None:
        body["max_tokens"] = max_tokens
    answer = answers.Answer()
    with api.gateway() as client:
        answers.ask(client, body, answers.Screen() if as_json else answers.screen(), answer)
    if as_json:
        render.show_json(answer.to_json())
    else:
        answers.show_end(answer)
        answers.show_sources(answer)
    if answer.status == "stopped":
        raise typer.Exit(130)


# ---- rebuild ----


@app.command("rebuild", help=say("cli.kb_rebuild"))
def rebuild(name: Base, as_json: Json = False) -> None:
    from mofang import api
    from mofang.cli import jobs, render

    with api.gateway() as client:
        done = jobs.finish(client, client.rebuild_knowledge(name), title=name)
    if as_json:
        render.show_json({"knowledge": name, **done})
    else:
        render.show(say("cli.kb_rebuilt", name=name, n=f"{done['n_chunks']:,}"))


# ---- remove ----


@app.command("rm", help=say("cli.kb_rm"))
def rm(name: Base, yes: Yes = False) -> None:
    from mofang import api
    from mofang.cli import render
    from mofang.errors import NotFound

    with api.gateway() as client:
        bases = {base["name"]: base for base in client.knowledge()}
        if name not in bases:
            raise NotFound("cli.no_such_kb", name=name, near=render.nearest(name, bases) or "–")
        n = bases[name].get("n_documents") or 0
        if not yes and not render.confirm(say("cli.rm_kb", name=name, n=n)):
            render.note(say("cli.left_alone"))
            raise typer.Exit(1)
        client.remove_knowledge(name)
    render.show(say("cli.removed", name=name))


@app.command("rm-doc", help=say("cli.kb_rm_doc"))
def rm_doc(
    name: Base, document: Annotated[str, typer.Argument(help=say("cli.argument_document"), metavar="DOC")]
) -> None:
    from mofang import api
    from mofang.cli import render
    from mofang.errors import NotFound

    with api.gateway() as client:
        ids = {found["name"]: str(found["id"]) for found in client.documents(name)}
        chosen = ids.get(document) or (document if document in ids.values() else None)
        if chosen is None:
            near = render.nearest(document, [*ids, *ids.values()]) or "–"
            raise NotFound("cli.no_such_document", document=document, name=name, near=near)
        client.remove_document(name, chosen)
    render.show(say("cli.removed", name=document))


def _headings(*names: str) -> list[tuple[str, str]]:
    right = {"documents", "chunks", "size", "chars", "pages"}
    return [(say(f"cli.heading_{name}"), "right" if name in right else "left") for name in names]
