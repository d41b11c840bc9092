"""`mofang kb eval`, `kb questions`, `kb share`: how good a base is, questions to measure it with, who may read it."""

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer

from mofang.cli.kb import Base, Json, ingest
from mofang.strings import say


def add_to(app: typer.Typer) -> None:
    app.command("eval", help=say("cli.kb_eval"))(evaluate)
    app.command("questions", help=say("cli.kb_questions"))(questions)
    app.command("share", help=say("cli.kb_share"))(share)


def evaluate(
    name: Base,
    path: Annotated[Path, typer.Argument(help=say("cli.argument_set"), metavar="SET")],
    split: Annotated[str | None, typer.Option(metavar="NAME", help=say("cli.option_split"))] = None,
    add: Annotated[bool, typer.Option("--add", help=say("cli.option_add_corpus"))] = False,
    answers: Annotated[bool, typer.Option("--answers", help=say("cli.option_answers"))] = False,
    model: Annotated[str, typer.Option(help=say("cli.option_model"), metavar="MODEL")] = "auto",
    picture: Annotated[Path | None, typer.Option(metavar="FILE.svg", help=say("cli.option_picture"))] = None,
    as_json: Json = False,
) -> None:
    from mofang import api
    from mofang.cli import jobs, render
    from mofang.cli.picture import evaluation_svg
    from mofang.errors import Invalid

    files = api.set_files(path)
    if picture is not None and not picture.absolute().parent.is_dir():
        raise Invalid("cli.no_such_path", path=picture.parent, param="picture")
    with api.gateway() as client:
        if add:
            with TemporaryDirectory() as folder:
                _add(client, name, api.corpus_files(path, Path(folder)))
        job = client.evaluate_knowledge(name, files, split=split, answers=answers, model=model)
        try:
            result = jobs.finish(client, job, title=name)
        except jobs.JobStopped as stopped:
            raise typer.Exit(130) from stopped
    if picture is not None:
        picture.write_text(evaluation_svg(result), encoding="utf-8")
        render.note(say("cli.picture_written", path=picture))
    if as_json:
        render.show_json(result)
    else:
        _show(result)


def _add(client: Any, name: str, files: list[tuple[str, Path]]) -> None:
    from mofang.cli import files as chosen
    from mofang.cli import render
    from mofang.errors import Invalid

    for batch in chosen.batches(files):
        reports, stopped = ingest(client, name, batch)
        failed = [report for report in reports if report["status"] == "failed"]
        if failed:
            raise Invalid("cli.corpus_failed", name=failed[0]["name"], why=failed[0].get("error") or "-")
        if stopped:
            raise typer.Exit(130)
    render.note(say("cli.corpus_added", n=len(files), name=name))


def _show(result: Mapping[str, Any]) -> None:
    from mofang.cli import render
    from mofang.cli.picture import answer_figures

    legs = result["measures"]
    if legs:
        measures = list(next(iter(legs.values())))
        columns = [(say("cli.heading_metric"), "left"), *((say(f"cli.leg_{leg}"), "right") for leg in legs)]
        render.show(render.table(columns, ((one, *(f"{legs[leg][one]:.3f}" for leg in legs)) for one in measures)))
    latency = result["latency_ms"]
    lines = [say("cli.eval_counts", n=result["n_questions"], judged=result["n_judged"], none=result["n_unanswerable"])]
    if latency.get("n"):
        lines.append(say("cli.eval_latency", p50=latency["p50"], p99=latency["p99"], n=latency["n"]))
    if result.get("answers"):
        lines += [f"{what} {value}" for what, value in answer_figures(result["answers"])]
    for line in lines:
        render.note(line, style="")
    for notice in result["notices"]:
        render.note(notice, style="yellow")


def questions(
    name: Base,
    out: Annotated[Path, typer.Option("-o", "--out", metavar="FILE.jsonl", help=say("cli.option_questions_out"))],
    n: Annotated[int, typer.Option("-n", min=1, max=3000, metavar="N", help=say("cli.option_questions_n"))] = 50,
    model: Annotated[str, typer.Option(help=say("cli.option_model"), metavar="MODEL")] = "auto",
    seed: Annotated[int, typer.Option(min=0, metavar="N", help=say("cli.option_questions_seed"))] = 0,
    as_json: Json = False,
) -> None:
    from mofang import api
    from mofang.cli import render

    with api.gateway() as client, render.ProgressBar(name) as bar:
        counts = api.draft_questions(client, name, out, n=n, model=model, seed=seed, tell=bar.update)
    if as_json:
        render.show_json({"knowledge": name, "file": str(out), **counts})
        return
    dropped = " · ".join(f"{say(f'cli.dropped_{why}')} {count}" for why, count in counts["dropped"].items() if count)
    render.show(say("cli.questions_written", n=counts["kept"], path=out))
    if dropped:
        render.note(say("cli.questions_dropped", what=dropped))
    if counts["kept"] < n:
        render.note(say("cli.questions_few", n=n, kept=counts["kept"]), style="yellow")


def share(
    name: Base,
    key: Annotated[str | None, typer.Argument(help=say("cli.argument_share_key"), metavar="KEY")] = None,
    revoke: Annotated[bool, typer.Option("--revoke", help=say("cli.option_unshare"))] = False,
    as_json: Json = False,
) -> None:
    from mofang import api
    from mofang.cli import render

    with api.gateway() as client:
        if key is not None:
            key_id = api.key_id(client, key)
            (client.unshare_knowledge if revoke else client.share_knowledge)(name, key_id)
        readers = client.readers(name)
    if as_json:
        render.show_json(readers)
        return
    shown = ", ".join(f"{reader['name']} ({reader['key']})" for reader in readers)
    render.show(say("cli.readers", name=name, keys=shown) if readers else say("cli.no_readers", name=name))
