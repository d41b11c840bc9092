"""`mofang keys`: give out keys for this gateway, look at them, end them."""

import re
from typing import Annotated, Any

import typer

from mofang.errors import Invalid
from mofang.strings import say

app = typer.Typer(help=say("keys.about"), no_args_is_help=True)

Json = Annotated[bool, typer.Option("--json", help=say("cli.option_json"))]

SECONDS = {"m": 60, "h": 3600, "d": 86400}


def seconds(text: str | None) -> int | None:
    """90m, 12h or 30d in seconds. Raises Invalid."""
    if text is None:
        return None
    found = re.fullmatch(r"([1-9]\d*)([mhd])", text.strip())
    if not found:
        raise Invalid("keys.bad_duration", value=text)
    return int(found[1]) * SECONDS[found[2]]


@app.command("create", help=say("keys.create"))
def create(
    name: Annotated[str, typer.Argument(help=say("keys.argument_name"), metavar="NAME")],
    rpm: Annotated[int | None, typer.Option(min=1, help=say("keys.option_rpm"), metavar="N")] = None,
    tpm: Annotated[int | None, typer.Option(min=1, help=say("keys.option_tpm"), metavar="N")] = None,
    concurrent: Annotated[int | None, typer.Option(min=1, help=say("keys.option_concurrent"), metavar="N")] = None,
    model: Annotated[list[str] | None, typer.Option(help=say("keys.option_model"), metavar="MODEL")] = None,
    expires: Annotated[str | None, typer.Option(help=say("keys.option_expires"), metavar="TIME")] = None,
    as_json: Json = False,
) -> None:
    from mofang import api
    from mofang.cli import render

    fields = {
        "requests_per_minute": rpm,
        "tokens_per_minute": tpm,
        "concurrent": concurrent,
        "models": model or [],
        "expires_in_s": seconds(expires),
    }
    with api.gateway() as client:
        key = client.create_key(name, **fields)
    if as_json:
        render.show_json(key)
        return
    render.note(say("keys.created", name=key["name"], id=key["id"]), style="")
    typer.echo(key["key"])  # on standard output, alone: a script can take it


@app.command("list", help=say("keys.list"))
def list_(as_json: Json = False) -> None:
    from mofang import api
    from mofang.cli import render

    with api.gateway() as client:
        keys = client.keys()
    if as_json:
        render.show_json(keys)
        return
    if not keys:
        render.note(say("keys.none"), style="")
        return
    names = ("id", "name", "state", "limits", "models", "last_used")
    columns = [(say(f"keys.heading_{name}"), "left") for name in names]
    render.show(render.table(columns, map(_row, keys)))


def _row(key: dict[str, Any]) -> tuple[str, ...]:
    limits = (key["requests_per_minute"], key["tokens_per_minute"], key["concurrent"])
    shown = " · ".join(f"{limit:,}" if limit else "–" for limit in limits)
    used = str(key["last_used_at"] or "–")[:16].replace("T", " ")
    return (key["id"], key["name"], say(f"keys.state_{key['state']}"), shown, ", ".join(key["models"]) or "*", used)


@app.command("revoke", help=say("keys.revoke"))
def revoke(
    key_id: Annotated[str, typer.Argument(help=say("keys.argument_id"), metavar="ID")], as_json: Json = False
) -> None:
    from mofang import api
    from mofang.cli import render

    with api.gateway() as client:
        key = client.revoke_key(key_id)
    if as_json:
        render.show_json(key)
    else:
        render.show(say("keys.revoked", id=key["id"], name=key["name"]))
