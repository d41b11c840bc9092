"""`mofang models`: the catalogue, what is here, and bringing, adding, looking at and removing a model."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mofang.strings import say

if TYPE_CHECKING:
    from mofang.client import Client

app = typer.Typer(help=say("cli.models"), no_args_is_help=True)
ROLES = ("base", "adapter", "source", "quantized", "tokenizer", "pickled")
"""What models are to those that were made from them."""

Json = Annotated[bool, typer.Option("--json", help=say("cli.option_json"))]
Yes = Annotated[bool, typer.Option("--yes", "-y", help=say("cli.option_yes"))]
Installed = Annotated[str, typer.Argument(help=say("cli.argument_model"), metavar="NAME")]


@app.command("catalog", help=say("cli.models_catalog"))
def catalog(as_json: Json = False) -> None:
    from mofang import api
    from mofang.cli import render

    with api.gateway() as client:
        entries = client.catalogue()
    if as_json:
        render.show_json(entries)
        return
    columns = [("", "left"), *_headings("name", "kind", "size", "memory", "context")]
    render.show(render.table(columns, map(_catalogue_row, entries)))
    render.note(say("cli.catalog_legend"))


def _catalogue_row(entry: dict[str, Any]) -> tuple[Any, ...]:
    from mofang.cli import render
    from mofang.cli.wrap import ChineseText
    from mofang.strings import language

    summary = entry.get("summary") or {}
    about = " · ".join(part for part in (str(summary.get(language()) or ""), str(entry.get("licence") or "")) if part)
    mark = "✓" if entry.get("installed") else ""
    name = ChineseText.assemble((entry["name"], "bold"), "\n", (about, "dim"))
    memory = render.size(entry["memory_bytes"]) if entry.get("memory_bytes") else "–"
    if entry.get("fits") is False:
        memory = f"✗ {memory}"
    context = f"{entry['n_ctx_train']:,}" if entry.get("n_ctx_train") else "–"
    return (
        mark,
        name,
        _kind(entry),
        render.size(entry["size_bytes"]) if entry.get("size_bytes") else "–",
        memory,
        context,
    )


@app.command("list", help=say("cli.models_list"))
def list_(as_json: Json = False) -> None:
    from mofang import api
    from mofang.cli import render

    with api.gateway() as client:
        listing = client.request("GET", "/v1/models")
    models = listing["data"]
    for problem in listing.get("problems") or ():  # what lies there and cannot be used
        render.warn(problem["message"], problem.get("hint") or "")
    if as_json:
        render.show_json(models)
        return
    if not models:
        render.note(say("cli.no_models"), style="")
        return
    columns = _headings("name", "kind", "size", "quantization", "source", "loaded")
    render.show(
        render.table(
            columns,
            (
                (
                    model["id"],
                    _kind(model),
                    render.size(model.get("size_bytes") or 0),
                    model.get("quantization") or "–",
                    model.get("source") or "–",
                    "●" if model.get("loaded") else "",
                )
                for model in models
            ),
        )
    )


@app.command("pull", help=say("cli.models_pull"))
def pull(
    name: Annotated[str, typer.Argument(help=say("cli.argument_pull"), metavar="NAME")],
    source: Annotated[str | None, typer.Option(help=say("cli.option_source"), metavar="SOURCE")] = None,
    as_json: Json = False,
) -> None:
    from mofang import api
    from mofang.cli import render

    with api.gateway() as client:
        model = bring(client, name, source=source)
    if as_json:
        render.show_json(model)
    else:
        render.show(say("cli.pulled", name=model.get("id") or model.get("name") or name))


def bring(client: "Client", name: str, *, source: str | None = None, kind: str = "chat") -> dict[str, Any]:
    """Pull a model with its progress on standard error. On Ctrl-C the gateway stops, and keeps what it has.

    Raises ApiError as the job did; typer.Exit(130) after Ctrl-C.
    """
    from mofang.cli import jobs, render

    job = client.pull(name, source, kind=kind)
    try:
        result: dict[str, Any] = jobs.finish(client, job, title=name)
    except jobs.JobStopped as stopped:
        done = render.size(float(stopped.progress.get("done") or 0))
        render.note(say("cli.pull_stopped", name=name, done=done), style="yellow")
        raise typer.Exit(130) from stopped
    return result


@app.command("add", help=say("cli.models_add"))
def add(
    path: Annotated[Path, typer.Argument(help=say("cli.argument_add"), metavar="PATH")],
    name: Annotated[str | None, typer.Option(help=say("cli.option_name"), metavar="NAME")] = None,
    base: Annotated[str | None, typer.Option(help=say("cli.option_base_of_adapter"), metavar="NAME")] = None,
    as_json: Json = False,
) -> None:
    from mofang import api
    from mofang.cli import render

    # The gateway may stand in another folder.
    place = path.expanduser().absolute()
    with api.gateway() as client, render.working(say("cli.adding", path=place)):
        model = client.add_model(place, name, base)
    if as_json:
        render.show_json(model)
    else:
        render.show(say("cli.added", name=model["id"], path=place, size=render.size(model.get("size_bytes") or 0)))


@app.command("add-remote", help=say("cli.models_add_remote"))
def add_remote(
    name: Annotated[str, typer.Argument(help=say("cli.option_name"), metavar="NAME")],
    base_url: Annotated[str, typer.Option("--base-url", help=say("cli.option_base_url"), metavar="URL")],
    model: Annotated[str, typer.Option("--model", help=say("cli.option_remote_model"), metavar="ID")],
    api_key_env: Annotated[str, typer.Option("--api-key-env", help=say("cli.option_key_env"), metavar="VAR")] = "",
    kind: Annotated[str, typer.Option("--kind", help=say("cli.option_remote_kind"), metavar="KIND")] = "chat",
    n_ctx: Annotated[
        int | None, typer.Option("--n-ctx", min=1, metavar="N", help=say("cli.option_remote_n_ctx"))
    ] = None,
    as_json: Json = False,
) -> None:
    from mofang import api
    from mofang.cli import render

    with api.gateway() as client:
        added = client.add_remote_model(
            name, base_url=base_url, model=model, api_key_env=api_key_env, kind=kind, n_ctx=n_ctx
        )
    if as_json:
        render.show_json(added)
    else:
        render.show(say("cli.added_remote", name=added["id"], url=base_url))


@app.command("info", help=say("cli.models_info"))
def info(
    name: Installed,
    n_ctx: Annotated[int | None, typer.Option("--n-ctx", min=1, metavar="N", help=say("cli.option_n_ctx"))] = None,
    as_json: Json = False,
) -> None:
    from mofang import api
    from mofang.cli import render

    with api.gateway() as client:
        model = client.model(name, n_ctx)
    if as_json:
        render.show_json(model)
        return
    render.show(render.facts((say(f"cli.fact_{key}"), value) for key, value in _facts(model) if value))
    if (model.get("lineage") or {}).get("parents"):
        render.show("", say("cli.lineage"), *_lineage(model["lineage"]))


def _facts(model: dict[str, Any]) -> list[tuple[str, str]]:
    """(key of the label, value) in the order that people look for them; empty values are left out by the caller."""
    from mofang.cli import render

    def number(key: str) -> str:
        return f"{model[key]:,}" if model.get(key) else ""

    memory, template = model.get("memory") or {}, model.get("chat_template")
    manifest = model.get("manifest") or {}
    return [
        ("name", str(model["id"])),
        ("kind", _kind(model)),
        ("architecture", str(model.get("architecture") or "")),
        ("parameters", render.count(model["parameters"]) if model.get("parameters") else ""),
        ("layers", number("n_layers")),
        ("embedding", number("n_embd")),
        ("context", number("n_ctx_train")),
        ("vocabulary", number("n_vocab")),
        ("tokenizer", str(model.get("tokenizer") or "")),
        ("quantization", str(model.get("quantization") or "")),
        ("template", say("cli.template_yes", n=len(template)) if template else say("cli.template_no")),
        ("size", render.size(model.get("size_bytes") or 0)),
        ("memory", _memory(memory)),
        ("source", str(model.get("source") or "")),
        ("path", str(model.get("path") or "")),
        ("sha256", str(model.get("sha256") or "")),
        ("parents", ", ".join(str(parent.get("name")) for parent in manifest.get("parents") or ())),
        *(("check", _check(one)) for one in (manifest.get("checks") or {}).get("against") or ()),
        ("loaded", say("cli.yes") if model.get("loaded") else say("cli.no")),
    ]


def _check(one: dict[str, Any]) -> str:
    """A check against another model (`mofang export check`), in a line."""
    parts = [
        say("cli.check_kl", kl=one["mean_kl"], top=one["same_top"]) if "mean_kl" in one else "",
        say("cli.check_ratio", ratio=one["ratio"]),
        "" if one.get("passed") is None else say("cli.check_passed" if one["passed"] else "cli.check_failed"),
        ", ".join(text["text"] for text in one["texts"]),
        one["at"][:10],
    ]
    return say("cli.check_against", name=one["reference"]["name"], found=" · ".join(part for part in parts if part))


def _lineage(ancestor: dict[str, Any], before: str = "", branch: str = "", inner: str = "") -> list[str]:
    """A model and what it was made from, as the lines of a tree."""
    role = say(f"cli.role_{ancestor['role']}") if ancestor["role"] in ROLES else ancestor["role"]
    one = say("cli.lineage_one", name=ancestor["name"], origin=_origin(ancestor))
    line = before + branch + (say("cli.lineage_role", role=role) if role else "") + one
    line += f"  {say('cli.lineage_told')}" if ancestor["told"] else ""
    lines = [line if ancestor["here"] else f"{line}  {say('cli.lineage_gone')}"]
    last = len(ancestor["parents"]) - 1
    for number, parent in enumerate(ancestor["parents"]):
        ends = number == last
        lines += _lineage(parent, before + inner, "└─ " if ends else "├─ ", "   " if ends else "│  ")
    return lines


def _origin(ancestor: dict[str, Any]) -> str:
    """How it came to be, in its format, by its digest's beginning."""
    step, source = ancestor["step"], ancestor["source"]
    made = say("cli.lineage_made", step=step, run=ancestor["run"] or "?") if step else ""
    brought = say("cli.lineage_brought", source=source) if source and not step else ""
    return " · ".join(part for part in (made or brought, ancestor["format"], ancestor["sha256"][:12]) if part)


def _memory(memory: dict[str, Any]) -> str:
    from mofang.cli import render

    if not memory:
        return ""
    parts = {key: render.size(memory[key]) for key in ("total", "weights", "kv_cache", "compute")}
    return say("cli.memory", n_ctx=f"{memory.get('n_ctx') or 0:,}", **parts)


@app.command("ps", help=say("cli.models_ps"))
def ps(as_json: Json = False) -> None:
    from mofang import api
    from mofang.cli import render

    with api.gateway() as client:
        loaded = client.system()["engines"]
    if as_json:
        render.show_json(loaded)
        return
    if not loaded:
        render.note(say("cli.none_loaded"), style="")
        return
    columns = _headings("name", "kind", "memory", "slots", "waiting", "idle", "unloads")
    render.show(render.table(columns, map(_loaded_row, loaded)))
    for engine in loaded:
        for notice in engine["notices"]:
            render.note(f"{engine['model']}: {notice}")


def _loaded_row(engine: dict[str, Any]) -> tuple[str, ...]:
    from mofang.cli import render

    leaves = "–" if engine["unloads_in_s"] is None else render.clock(engine["unloads_in_s"])
    return (
        engine["model"],
        _kind(engine),
        render.size(engine["memory_bytes"] or engine["estimated_bytes"]),
        f"{engine['running']}/{engine['n_slots']}",
        str(engine["waiting"]),
        render.clock(engine["idle_s"]),
        say("cli.pinned") if engine["pinned"] else leaves,
    )


@app.command("load", help=say("cli.models_load"))
def load(
    name: Installed,
    pin: Annotated[bool, typer.Option("--pin", help=say("cli.option_pin"))] = False,
    keep_alive: Annotated[str | None, typer.Option(help=say("cli.option_keep_alive"), metavar="TIME")] = None,
    reload: Annotated[bool, typer.Option("--reload", help=say("cli.option_reload"))] = False,
    replicas: Annotated[int | None, typer.Option(min=1, help=say("cli.option_replicas"))] = None,
    max_replicas: Annotated[int, typer.Option(min=0, help=say("cli.option_max_replicas"))] = 0,
    as_json: Json = False,
) -> None:
    from mofang import api
    from mofang.cli import render

    wishes: dict[str, Any] = {"pin": True if pin else None, "keep_alive": keep_alive, "reload": reload}
    if replicas or max_replicas:
        wishes |= {"replicas": replicas, "max_replicas": max_replicas}
    with api.gateway() as client, render.working(say("cli.loading", model=name, percent="")):
        engine = client.load_model(name, **wishes)
    if as_json:
        render.show_json(engine)
    else:
        size = render.size(engine["memory_bytes"] or engine["estimated_bytes"])
        render.show(say("cli.loaded_model", name=engine["model"], size=size))


@app.command("unload", help=say("cli.models_unload"))
def unload(name: Installed) -> None:
    from mofang import api
    from mofang.cli import render

    with api.gateway() as client:
        client.unload_model(name)
    render.show(say("cli.unloaded", name=name))


@app.command("rm", help=say("cli.models_rm"))
def rm(name: Installed, yes: Yes = False) -> None:
    from mofang import api
    from mofang.cli import render

    with api.gateway() as client:
        model = client.model(name)
        managed = model.get("managed", True)
        ask = "cli.rm_model" if managed else "cli.rm_model_entry"
        size = render.size(model.get("size_bytes") or 0)
        if not yes and not render.confirm(say(ask, name=name, size=size, path=model.get("path") or "")):
            render.note(say("cli.left_alone"))
            raise typer.Exit(1)
        client.remove_model(name)
    render.show(say("cli.removed", name=name))


def _headings(*names: str) -> list[tuple[str, str]]:
    right = {"size", "memory", "context", "slots", "waiting", "idle", "unloads"}
    return [(say(f"cli.heading_{name}"), "right" if name in right else "left") for name in names]


def _kind(model: dict[str, Any]) -> str:
    from mofang.cli import render

    return render.word("kind", str(model.get("kind") or "chat"))
