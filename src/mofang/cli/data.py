"""`mofang data`: what a file of examples becomes before a model learns from it."""

from pathlib import Path
from typing import Annotated

import typer

from mofang.strings import say

app = typer.Typer(help=say("cli.data"), no_args_is_help=True)
SHOWN = 3
"""Files that cannot be read are named up to so many; --json lists them all."""


@app.command("preview", help=say("cli.data_preview"))
def preview(
    file: Annotated[Path, typer.Argument(help=say("cli.argument_data"), metavar="FILE")],
    base: Annotated[str, typer.Option("--base", metavar="MODEL", help=say("recipes.field_base"))] = "auto",
    n: Annotated[int, typer.Option("-n", min=1, help=say("cli.option_examples"))] = 1,
    max_length: Annotated[int, typer.Option("--max-length", min=16, help=say("recipes.field_max_length"))] = 1024,
    format: Annotated[str, typer.Option("--format", help=say("recipes.field_format"))] = "auto",
    columns: Annotated[
        list[str] | None, typer.Option("--columns", metavar="FIELD=COLUMN", help=say("recipes.field_columns"))
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help=say("cli.option_json"))] = False,
) -> None:
    from mofang import api
    from mofang.cli import render

    found = api.preview(file, base, n=n, max_length=max_length, format=format, columns=_mapping(columns))
    if as_json:
        render.show_json({key: value for key, value in found.items() if key != "text"})
        return
    from rich.text import Text

    for example in found["examples"]:
        render.show(
            say(
                "data.preview",
                path=Path(example["file"]).name,
                row=example["row"],
                n=example["n_tokens"],
                learned=example["n_supervised"],
            )
        )
        text = Text()
        for piece in example["segments"]:
            text.append(
                f"【{piece['text']}】" if piece["learned"] else piece["text"],
                style="bold green" if piece["learned"] else "dim",
            )
        render.show(text)
    render.note(
        say(
            "cli.data_counts",
            **{
                key: found[key]
                for key in ("n_rows", "n_examples", "n_tokens", "n_supervised", "n_cut", "n_dropped", "model")
            },
        )
    )
    render.show(say("cli.data_lengths", share=f"{found['share_supervised']:.1%}"))
    most = max(bar["n"] for bar in found["lengths"]) if found["lengths"] else 1
    columns_ = [(say("cli.heading_tokens"), "right"), (say("cli.heading_examples"), "right"), ("", "left")]
    bars = (
        (f"{bar['from']}–{bar['to']}", f"{bar['n']:,}", "█" * round(30 * bar["n"] / most)) for bar in found["lengths"]
    )
    render.show(render.table(columns_, bars))
    if found["skipped"]:
        render.note(say("train.skipped", n=len(found["skipped"]), path=found["skipped"][0]), style="yellow")


@app.command("text", help=say("cli.data_text"))
def text(
    sources: Annotated[list[Path], typer.Argument(help=say("cli.argument_documents"), metavar="SOURCE…")],
    out: Annotated[Path, typer.Option("-o", "--out", metavar="FILE.jsonl", help=say("cli.option_text_out"))],
    language: Annotated[str, typer.Option("--language", metavar="zh|en", help=say("cli.option_text_language"))] = "",
    as_json: Annotated[bool, typer.Option("--json", help=say("cli.option_json"))] = False,
) -> None:
    from mofang import api
    from mofang.cli import render

    with render.ProgressBar(out.name) as bar:
        found = api.gather_text(sources, out, language=language, tell=bar.update)
    if as_json:
        render.show_json({"file": str(out), **found})
        return
    n, characters = f"{found['n_documents']:,}", f"{found['n_characters']:,}"
    render.show(say("cli.text_written", n=n, characters=characters, path=out))
    left_out = [(name, found[f"n_{name}"]) for name in ("repeated", "other", "short") if found[f"n_{name}"]]
    if left_out:
        what = " · ".join(say(f"cli.text_{name}", n=f"{n:,}") for name, n in left_out)
        render.note(say("cli.text_left_out", what=what))
    if found["skipped"]:
        render.note(say("cli.text_skipped", n=len(found["skipped"]), path=found["skipped"][0]), style="yellow")
    for path, why in found["unreadable"][:SHOWN]:
        render.note(say("cli.text_unreadable", path=path, why=why), style="yellow")
    if len(found["unreadable"]) > SHOWN:
        render.note(say("cli.text_more_unreadable", n=len(found["unreadable"]) - SHOWN), style="yellow")


@app.command("draft", help=say("cli.data_draft"))
def draft(
    sources: Annotated[list[Path], typer.Argument(help=say("cli.argument_draft"), metavar="SOURCE…")],
    out: Annotated[Path, typer.Option("-o", "--out", metavar="FILE.jsonl", help=say("cli.option_questions_out"))],
    n: Annotated[int, typer.Option("-n", min=1, max=10_000, metavar="N", help=say("cli.option_draft_n"))] = 50,
    model: Annotated[str, typer.Option(help=say("cli.option_model"), metavar="MODEL")] = "auto",
    seed: Annotated[int, typer.Option(min=0, metavar="N", help=say("cli.option_draft_seed"))] = 0,
    as_json: Annotated[bool, typer.Option("--json", help=say("cli.option_json"))] = False,
) -> None:
    from mofang import api
    from mofang.cli import render

    with api.gateway() as client, render.ProgressBar(out.name) as bar:
        counts = api.draft_instructions(client, sources, out, n=n, model=model, seed=seed, tell=bar.update)
    if as_json:
        render.show_json({"file": str(out), **counts})
        return
    render.show(say("cli.draft_written", n=counts["kept"], path=out))
    if counts["dropped"]:
        what = " · ".join(f"{say(f'cli.dropped_{why}')} {count}" for why, count in counts["dropped"].items())
        render.note(say("cli.questions_dropped", what=what))
    if counts["skipped"]:
        render.note(say("cli.draft_skipped", n=len(counts["skipped"]), path=counts["skipped"][0]), style="yellow")
    if counts["kept"] < n:
        render.note(say("cli.draft_few", n=n, kept=counts["kept"]), style="yellow")


def _mapping(columns: list[str] | None) -> dict[str, str]:
    from mofang.errors import Invalid

    found = {}
    for each in columns or []:
        field, mark, column = each.partition("=")
        if not (field and mark and column):
            raise Invalid("cli.bad_column", text=each, param="columns")
        found[field] = column
    return found
