"""The command `mofang`: one thin file a room, each imported when the program starts, its work when the command runs."""

import os
import sys
import tomllib
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperGroup

from mofang import __version__
from mofang.errors import MofangError


class Commands(TyperGroup):
    """Turns MofangError into a message, a hint and an exit code: the command line's one edge."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except MofangError as error:
            typer.secho(error.message(), fg="red", err=True)
            if error.hint():
                typer.secho(error.hint(), err=True)
            raise typer.Exit(error.exit_code) from error
        except KeyboardInterrupt as error:
            raise typer.Exit(130) from error


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"mofang {__version__}")
        raise typer.Exit


def build() -> typer.Typer:
    """The whole command tree, its help in the language of this process."""
    from mofang.cli import (
        batch,
        chat,
        data,
        doctor,
        engine,
        evaluate,
        kb,
        kb_quality,
        keys,
        mcp,
        models,
        plan,
        runs,
        tokenizer,
        train,
        up,
    )
    from mofang.strings import say

    app = typer.Typer(
        cls=Commands,
        name="mofang",
        help=say("main.about"),
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )

    @app.callback()
    def root(
        version: bool = typer.Option(
            False, "--version", help=say("main.version"), callback=_show_version, is_eager=True
        ),
    ) -> None: ...

    app.command("up", help=say("main.up"))(up.up)
    app.command("serve", help=say("main.serve"))(up.serve)
    app.command("chat", help=say("main.chat"))(chat.chat)
    app.command("batch", help=say("main.batch"))(batch.batch)
    app.add_typer(models.app, name="models", help=say("main.models"))
    app.add_typer(engine.app, name="engine", help=say("main.engine"))
    kb_quality.add_to(kb.app)
    app.add_typer(kb.app, name="kb", help=say("main.kb"))
    train.add_import(models.app)
    app.add_typer(train.train, name="train", help=say("main.train"))
    app.add_typer(runs.app, name="runs", help=say("main.runs"))
    app.add_typer(train.export, name="export", help=say("main.export"))
    app.command("eval", help=say("main.eval"))(evaluate.evaluate)
    app.add_typer(data.app, name="data", help=say("main.data"))
    app.add_typer(tokenizer.app, name="tokenizer", help=say("main.tokenizer"))
    app.add_typer(keys.app, name="keys", help=say("main.keys"))
    app.add_typer(plan.app, name="plan", help=say("plan.about"))
    app.command("mcp", help=say("mcp.about"))(mcp.mcp)
    app.command("doctor", help=say("main.doctor"))(doctor.doctor)
    return app


def main() -> None:
    """Entry point of the console script."""
    _adopt_language()
    for stream in (sys.stdout, sys.stderr):  # Chinese must not fail in a C locale
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors="replace")
    build()()


def _adopt_language() -> None:
    """Let `lang` of settings.toml hold for the help texts too; a broken file is reported later, by settings.load."""
    if "MOFANG_LANG" in os.environ:
        return
    file = Path(os.environ.get("MOFANG_HOME") or Path.home() / ".mofang").expanduser() / "settings.toml"
    try:
        lang = tomllib.loads(file.read_text(encoding="utf-8")).get("lang")
    except (OSError, ValueError):
        return
    if lang in ("zh", "en"):
        os.environ["MOFANG_LANG"] = lang
