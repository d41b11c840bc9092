"""`mofang train`, `mofang export` and `mofang models import`: a command for each recipe, made from its fields."""

from typing import Any

import typer

from mofang.cli.recipe import RecipeCommand, command
from mofang.recipes import EXPORTERS, METHODS, recipe_class
from mofang.strings import say

train = typer.Typer(help=say("cli.train"), no_args_is_help=True)
export = typer.Typer(help=say("cli.export"), no_args_is_help=True)
SECONDS = {"check": "reference"}
"""Exporter → its field that may be a second argument."""


def _act(kind: str) -> Any:
    def act(
        fields: dict[str, Any],
        overrides: list[str],
        as_json: bool,
        detach: bool,
        launcher: dict[str, Any] | None = None,
    ) -> None:
        from mofang import api
        from mofang.cli import runs

        run = api.start(api.recipe(kind, fields, overrides), launcher)
        runs.watch(run, detach=detach, as_json=as_json)

    return act


def add_import(models: typer.Typer) -> None:
    """`mofang models import`: it brings a model into this home, so people look for it there."""
    models.command("import", cls=RecipeCommand, help=say("cli.export_import"))(
        command(recipe_class("import"), _act("import"), positional="model")
    )


for _kind in METHODS:
    train.command(_kind, cls=RecipeCommand, help=say(f"cli.train_{_kind}"))(
        command(recipe_class(_kind), _act(_kind), launched=True)
    )
for _kind in EXPORTERS:
    if _kind != "import":
        export.command(_kind, cls=RecipeCommand, help=say(f"cli.export_{_kind}"))(
            command(recipe_class(_kind), _act(_kind), positional="model", second=SECONDS.get(_kind))
        )
