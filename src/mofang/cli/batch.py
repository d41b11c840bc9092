"""`mofang batch`: the requests of a file, answered into another (mofang.batches)."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from mofang.strings import say


def batch(
    file: Annotated[Path, typer.Argument(help=say("cli.batch_file"), metavar="FILE")],
    out: Annotated[Path | None, typer.Option("--out", "-o", metavar="FILE", help=say("cli.batch_out"))] = None,
    model: Annotated[str | None, typer.Option("--model", "-m", metavar="NAME", help=say("cli.batch_model"))] = None,
    concurrency: Annotated[int, typer.Option("--concurrency", min=1, max=256, help=say("cli.batch_concurrency"))] = 4,
    again: Annotated[bool, typer.Option("--retry", help=say("cli.batch_retry"))] = False,
    as_json: Annotated[bool, typer.Option("--json", help=say("cli.option_json"))] = False,
) -> None:
    from mofang import api
    from mofang.cli import render
    from mofang.errors import MofangError

    with render.ProgressBar(file.name) as bar:
        found = api.batch(
            file,
            out,
            model=model,
            concurrency=concurrency,
            again=again,
            tell=lambda done, total, rate: bar.update({"done": done, "total": total, "unit": "", "rate": rate}),
        )
    if as_json:
        render.show_json(asdict(found))
    else:
        speed = found.tokens / found.seconds if found.seconds else 0.0
        said = {**asdict(found), "speed": f"{speed:.1f}", "seconds": f"{found.seconds:.0f}"}
        render.show(say("cli.batch_done", **said))
    if found.refused:
        raise MofangError("cli.batch_refused", n=found.refused, path=found.path, file=file)
