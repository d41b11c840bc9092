"""Every recipe has a command, and the command begins a run of what it was told."""

from typing import Any

import pytest
from typer.testing import CliRunner

from mofang import api
from mofang.cli.main import build
from mofang.errors import Invalid
from mofang.recipes import EXPORTERS, LAUNCHERS, METHODS, TOOLS, Recipe, parse, recipe_class

COMMANDS = {
    **{kind: ("train", kind) for kind in METHODS},
    **{kind: ("export", kind) for kind in EXPORTERS},
    **{kind: ("engine", kind) for kind in TOOLS},
    "import": ("models", "import"),
}


class Begun(Exception):
    """Instead of a run."""


@pytest.mark.parametrize("kind", COMMANDS)
def test_a_command_begins_its_recipe(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[tuple[Recipe, dict[str, Any] | None]] = []

    def start(recipe: Recipe, launcher: dict[str, Any] | None = None) -> None:
        begun.append((recipe, launcher))
        raise Begun

    monkeypatch.setattr(api, "start", start)
    needed = [name for name, field in recipe_class(kind).model_fields.items() if field.is_required()]
    arguments = [*COMMANDS[kind]]
    for name in needed:
        arguments += ["某个"] if name == "model" else [f"--{name.replace('_', '-')}", "某个"]
    if kind == "pretrain":
        arguments += ["--base", "某个"]
    launched = ["--launcher", "torchrun", "--processes", "2"] if kind in METHODS else []
    with pytest.raises(Begun):
        CliRunner().invoke(build(), [*arguments, *launched], catch_exceptions=False)
    ((recipe, launcher),) = begun
    assert type(recipe) is recipe_class(kind)
    assert all("某个" in str(getattr(recipe, name)) for name in needed)
    assert launcher == ({"launcher": "torchrun", "processes": 2} if launched else None)


@pytest.mark.parametrize("kind", COMMANDS)
def test_faults_name_the_command_that_tells_its_fields(kind: str) -> None:
    with pytest.raises(Invalid) as raised:
        parse(recipe_class(kind), {"no_such_field": 1})
    asked = [*COMMANDS[kind], "--help"]
    assert f"mofang {' '.join(asked)}" in raised.value.hint()
    assert CliRunner().invoke(build(), asked).exit_code == 0


@pytest.mark.parametrize("name", LAUNCHERS.names())
def test_faults_of_a_launcher_name_a_command_that_tells_its_fields(name: str) -> None:
    with pytest.raises(Invalid) as raised:
        parse(LAUNCHERS.get(name), {"no_such_field": 1})
    assert "mofang train sft --help" in raised.value.hint()
