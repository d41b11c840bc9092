"""Commands made from recipes: a flag for each field, its help from the same sentence that the workbench's form shows.

A field that is added to a recipe is here at once; there is no second list.
"""

import inspect
from collections.abc import Callable
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from pydantic_core import PydanticUndefined
from typer.core import TyperCommand

from mofang.errors import Invalid
from mofang.recipes import LAUNCHERS, Recipe
from mofang.strings import say

SECOND = "second_argument"
Act = Callable[..., None]
"""(fields, overrides, as_json, detach); and launcher, where one can be chosen: as recipes.launcher_of reads it, {} where
nothing was said."""


def command(
    recipe: type[Recipe],
    act: Act,
    *,
    positional: str | None = None,
    second: str | None = None,
    launched: bool = False,
) -> Callable[..., None]:
    """A function that Typer reads as a command. `positional`: the field that is an argument; a recipe file when None.
    `second`: a field that may be given as a second argument, as well as by its option. `launched`: whether a launcher can
    be chosen."""

    def run(**given: Any) -> None:
        from mofang.recipes import read_yaml

        file = given.pop("recipe_file", None)
        overrides = given.pop("overrides") or []
        detach, as_json = given.pop("detach"), given.pop("as_json")
        more = {"launcher": chosen(given)} if launched else {}
        fields = read_yaml(file) if file else {}
        if argument := given.pop(SECOND, None):
            assert second
            if given[second]:
                raise Invalid("cli.given_twice", param=second, flag=f"--{second}", value=argument)
            given[second] = argument
        fields |= {name: value for name, value in given.items() if value not in (None, [], ())}
        act(fields, overrides, as_json, detach, **more)

    parameters = [] if positional else [_parameter("recipe_file", Annotated[Path | None, typer.Argument(
        metavar="[RECIPE.yaml]", help=say("cli.argument_recipe"))], None)]  # fmt: skip
    names = sorted(recipe.model_fields, key=lambda name: name != positional)
    parameters += [_field(recipe, name, positional=name == positional) for name in names]
    if second:
        parameters.insert(1, _parameter(SECOND, Annotated[str | None, typer.Argument(
            metavar=f"[{second.upper()}]", help=say(recipe.words(second)), show_default=False)], None))  # fmt: skip
    parameters += launcher_options() if launched else []
    parameters += [
        _parameter("overrides", Annotated[list[str] | None, typer.Option(
            "--set", metavar="KEY=VALUE", help=say("cli.option_set"))], None),
        _parameter("detach", Annotated[bool, typer.Option("--detach", "-d", help=say("cli.option_detach"))], False),
        _parameter("as_json", Annotated[bool, typer.Option("--json", help=say("cli.option_json"))], False),
    ]  # fmt: skip
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def launcher_options() -> list[inspect.Parameter]:
    """--launcher, and every field of any launcher."""
    classes = [LAUNCHERS.get(name) for name in LAUNCHERS]
    owners = {field: launcher for launcher in classes for field in launcher.model_fields}
    words = say("recipes.field_launcher") + say("cli.choices", choices=" | ".join(LAUNCHERS))
    named = _parameter("launcher", Annotated[str | None, typer.Option("--launcher", help=words, metavar="TEXT")], None)
    return [named, *(_field(launcher, field, positional=False) for field, launcher in owners.items())]


def chosen(given: dict[str, Any]) -> dict[str, Any]:
    """What was given of these options, taken out of `given`; {} for nothing."""
    names = [parameter.name for parameter in launcher_options()]
    found = {name: given.pop(name) for name in names}
    return {name: value for name, value in found.items() if value is not None}


def launched(act: Callable[..., None]) -> Callable[..., None]:
    """A command whose `launcher` is what these options say."""

    def run(**given: Any) -> None:
        launcher = chosen(given)
        act(launcher=launcher, **given)

    own = [each for name, each in inspect.signature(act).parameters.items() if name != "launcher"]
    own = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in own]
    run.__signature__ = inspect.Signature([*own, *launcher_options()])  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in (*own, *launcher_options())}
    return run


class RecipeCommand(TyperCommand):
    """A command with many options: its help in one table whose Chinese sentences are wrapped, where Typer cuts them."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        from mofang.cli import render

        render.show(f"{ctx.command_path} {' '.join(self.collect_usage_pieces(ctx))}", "", self.help or "", "")
        rows = [record for record in (_row(parameter, ctx) for parameter in self.get_params(ctx)) if record]
        render.show(render.facts(rows))


def _row(parameter: Any, ctx: Any) -> tuple[str, str]:
    if parameter.param_type_name == "argument":
        return str(parameter.metavar or parameter.name), parameter.help or ""
    flags, words = parameter.get_help_record(ctx) or ("", "")
    return str(flags), str(words)


def _parameter(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _field(recipe: type[Recipe], name: str, *, positional: bool) -> inspect.Parameter:
    """Every option's default is None: what was not given is the recipe's to decide."""
    field = recipe.model_fields[name]
    kind, choices = _type(field.annotation)
    words = say(recipe.words(name))
    if choices:
        words += say("cli.choices", choices=" | ".join(choices))
    default = field.default if field.default_factory is None else field.default_factory()  # type: ignore[call-arg]
    if default not in (None, "", PydanticUndefined, []):
        shown = ", ".join(map(str, default)) if isinstance(default, list) else default
        words += say("cli.default", value=shown)
    if positional:
        return inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            annotation=Annotated[str, typer.Argument(help=words, metavar=name.upper())],
        )
    flag = "--" + name.replace("_", "-")
    spelled = f"{flag}/--no-{flag[2:]}" if kind is bool else flag
    option = typer.Option(spelled, help=words, show_default=False, metavar=None if kind is bool else _metavar(kind))
    return _parameter(name, Annotated[kind | None, option], None)


def _metavar(kind: Any) -> str:
    return {int: "N", float: "X"}.get(kind, "TEXT")


def _type(annotation: Any) -> tuple[Any, tuple[str, ...]]:
    """What the command line reads for a field's type, and its choices when there are some."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type(inner[0])
    if origin is Literal:
        return str, tuple(map(str, inner))
    if origin in (Union, UnionType):
        return _type(next(part for part in inner if part is not NoneType))
    if origin is list:
        kind, choices = _type(inner[0])
        return list[kind], choices  # type: ignore[valid-type]
    return annotation, ()
