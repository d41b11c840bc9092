"""`mofang engine`: which llama.cpp runs here, building one for this machine, tuning and measuring a model."""

from typing import Annotated, Any

import typer

from mofang.cli.recipe import RecipeCommand, command
from mofang.recipes import TOOLS, recipe_class
from mofang.strings import say

app = typer.Typer(help=say("cli.engine"), no_args_is_help=True)

Json = Annotated[bool, typer.Option("--json", help=say("cli.option_json"))]


@app.command("info", help=say("cli.engine_info"))
def info(as_json: Json = False) -> None:
    from mofang import api
    from mofang.cli import render

    with api.gateway() as client:
        found = client.request("GET", "/v1/engine")
    if as_json:
        render.show_json(found)
        return
    machine = found["machine"]
    pairs = [
        ("cpu", f"{machine['cpu']} · {machine['cores']} / {machine['threads']} · {' '.join(machine['abilities'])}"),
        ("provider", found["provider"] or "–"),
        ("why", found["why"]),
    ]
    render.show(render.facts((say(f"cli.engine_{name}"), value) for name, value in pairs if value))
    for one in found["builds"]:
        _show_build(one)
    for one in found["profiles"]:
        _show_profile(one)
    if not found["profiles"]:
        render.note(say("cli.engine_not_tuned"), style="")


def _show_build(one: dict[str, Any]) -> None:
    from mofang.cli import render

    proof = one["proof"]
    state = "proven" if one["proven"] else "unproven"
    words = say(f"cli.engine_{state}", mean_kl=proof.get("mean_kl", "–"), same_top=proof.get("same_top", "–"))
    place = "" if one["fits"] else say("cli.engine_elsewhere", cpu=one["cpu"])
    render.show(say("cli.engine_build_line", **{k: one[k] for k in ("key", "backend", "compiler", "seconds")}) + place)
    render.show(f"  {words}")
    for note in [*one["notes"], proof.get("why", ""), proof.get("no_wheel", "")]:
        if note:
            render.note(f"  · {note}")


def _show_profile(one: dict[str, Any]) -> None:
    from mofang.cli import render

    chosen = {name: value for name, value in one["choices"].items() if value not in ("", 0, "auto", "f16")}
    words = ", ".join(f"{name}={value}" for name, value in chosen.items()) or say("cli.engine_defaults")
    speeds = " · ".join(say(f"cli.engine_speed_{kind}", speed=f"{speed:.4g}") for kind, speed in one["speeds"].items())
    how = say("cli.engine_brief" if one["brief"] else "cli.engine_asked", seconds=f"{one['seconds']:.0f}")
    render.show(f"{one['model']}: {words}", f"  {speeds}", f"  {how}")
    for step in one["steps"]:
        mark = "✓" if step["taken"] else "·"
        change = ", ".join(f"{name}={value}" for name, value in step["change"].items())
        render.note(f"  {mark} {change}: {100 * (step['gain'] - 1):+.1f}% ± {100 * step['noise']:.1f}%")
    for note in one["notes"]:
        render.note(f"  · {note}")


def _act(kind: str) -> Any:
    def act(fields: dict[str, Any], overrides: list[str], as_json: bool, detach: bool) -> None:
        from mofang import api
        from mofang.cli import render, runs

        run = api.start(api.recipe(kind, fields, overrides))
        runs.watch(run, detach=detach, as_json=as_json)
        rows = run.state().result.get("rows")
        if rows and not (as_json or detach):
            columns = [(say(f"cli.bench_{name}"), "right") for name in rows[0]]
            render.show(render.table(columns, [[f"{value:,.4g}" for value in row.values()] for row in rows]))

    return act


for _kind in TOOLS:
    _positional = None if _kind == "build" else "model"
    app.command(_kind, cls=RecipeCommand, help=say(f"cli.engine_{_kind}"))(
        command(recipe_class(_kind), _act(_kind), positional=_positional)
    )
