"""`mofang runs`: trainings and exports: what there is, how far it is, stop, resume, remove. And how others show one."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from mofang.cli.recipe import launched
from mofang.strings import say

if TYPE_CHECKING:
    from mofang.runs import Run, State

app = typer.Typer(help=say("cli.runs"), no_args_is_help=True)

Json = Annotated[bool, typer.Option("--json", help=say("cli.option_json"))]
Yes = Annotated[bool, typer.Option("--yes", "-y", help=say("cli.option_yes"))]
Id = Annotated[str, typer.Argument(help=say("cli.argument_run"), metavar="ID")]


@app.command("list", help=say("cli.runs_list"))
def list_(as_json: Json = False) -> None:
    from mofang import api
    from mofang.cli import render

    states = [run.state() for run in api.list_runs()]
    if as_json:
        render.show_json([shape(state) for state in states])
        return
    if not states:
        render.note(say("cli.no_runs"), style="")
        return
    headings = [(say(f"cli.heading_{name}"), "left") for name in ("run", "kind", "status", "progress", "result")]
    rows = [
        (state.id, state.kind, word(state), _progress(state), str(state.result.get("model") or "–")) for state in states
    ]
    render.show(render.table(headings, rows))


@app.command("show", help=say("cli.runs_show"))
def show(run_id: Id, as_json: Json = False) -> None:
    from mofang.cli import render

    run = _get(run_id)
    state = run.state()
    if as_json:
        told = {"metrics": run.metrics(), "samples": run.samples()}
        render.show_json({**shape(state), "recipe": run.recipe().model_dump(mode="json"), **told})
        return
    rows = [row for row in run.metrics() if "loss" in row]
    evals = [row for row in run.metrics() if "eval_loss" in row]
    pairs = [
        ("run", state.id),
        ("kind", state.kind),
        ("status", word(state)),
        ("progress", _progress(state)),
        (
            "loss",
            f"{rows[0]['loss']:.3f} → {rows[-1]['loss']:.3f}  {spark([row['loss'] for row in rows])}" if rows else "",
        ),
        ("eval_loss", " → ".join(f"{row['eval_loss']:.3f}" for row in evals)),
        ("bits_per_byte", " → ".join(f"{r['eval_bits_per_byte']:.3f}" for r in evals if "eval_bits_per_byte" in r)),
        ("result", str(state.result.get("model") or state.result.get("adapter") or "")),
        ("path", str(run.folder)),
    ]
    render.show(render.facts((say(f"cli.heading_{name}"), value) for name, value in pairs if value))
    said = run.samples()
    for sample in said:
        if sample["step"] == said[-1]["step"]:
            render.show(
                say("cli.sample", step=sample["step"], prompt=sample["prompt"].strip(), text=sample["text"].strip())
            )
    for note in state.notes:
        render.note(f"· {note}")
    if state.error:
        render.warn(state.error["message"], state.error.get("hint") or "")
    if state.status in ("stopped", "interrupted", "failed"):
        render.note(say("cli.resume_hint", id=state.id), style="")


@app.command("stop", help=say("cli.runs_stop"))
def stop(run_id: Id, as_json: Json = False) -> None:
    from mofang.cli import render

    run = _get(run_id)
    with render.working(say("cli.stopping", id=run.id)):
        state = run.stop()
    ended(run, state, as_json=as_json)


@app.command("resume", help=say("cli.runs_resume"))
@launched
def resume(
    run_id: Id,
    launcher: dict[str, Any],
    detach: Annotated[bool, typer.Option("--detach", "-d", help=say("cli.option_detach"))] = False,
    as_json: Json = False,
) -> None:
    from mofang import api

    watch(api.resume(_get(run_id), launcher), detach=detach, as_json=as_json)


@app.command("rm", help=say("cli.runs_rm"))
def rm(run_id: Id, yes: Yes = False) -> None:
    from mofang import settings
    from mofang.cli import render
    from mofang.runs import Runs

    run = _get(run_id)
    if not yes and not render.confirm(say("cli.rm_run", id=run.id, path=run.folder)):
        render.note(say("cli.left_alone"))
        raise typer.Exit(1)
    Runs(settings.load().home).remove(run.id)
    render.show(say("cli.removed", name=run.id))


def watch(run: "Run", *, detach: bool, as_json: bool) -> None:
    """Show a run's progress to its end. Ctrl-C stops the run, in order. Exits with 1 when it failed, 130 when stopped."""
    from mofang import api
    from mofang.cli import render

    if detach:
        if as_json:
            render.show_json(shape(run.state()))
        else:
            render.show(say("cli.detached", id=run.id))
        return
    said = 0
    with render.ProgressBar(run.id) as bar:

        def tell(state: "State", rows: list[dict[str, Any]]) -> None:
            nonlocal said
            for note in state.notes[said:]:
                bar.say(note)
            said = len(state.notes)
            for row in rows:
                if "eval_loss" in row:
                    bar.say(say("cli.eval_loss", step=row["step"], loss=f"{row['eval_loss']:.4f}"))
            if state.progress:
                bar.update(state.progress)

        try:
            state = api.finish(run, tell)
        except KeyboardInterrupt:
            state = run.state()
    ended(run, state, as_json=as_json)


def ended(run: "Run", state: "State", *, as_json: bool) -> None:
    """Say how a run ended, and what to type next; the exit code follows."""
    from mofang import api
    from mofang.cli import render

    if state.status == "failed":
        if as_json and state.result:  # a check that failed has figures, too
            render.show_json(shape(state))
        raise api.failure(state)
    if as_json:
        render.show_json(shape(state))
    elif state.status == "done":
        made = str(state.result.get("model") or "")
        chat = made if state.result.get("type") or str(state.result.get("path", "")).endswith(".gguf") else ""
        next_step = say("cli.run_chat", name=chat) if chat else (
            say("cli.run_export", id=run.id) if state.kind in _trainings() else ""
        )  # fmt: skip
        render.show(say("cli.run_done", id=run.id, result=made or str(state.result.get("adapter") or "")))
        if next_step:
            render.note(next_step, style="")
    else:
        render.show(say("cli.run_ended", id=run.id, status=word(state)))
        if state.kind in _trainings():
            render.note(say("cli.resume_hint", id=run.id), style="")
    if state.status in ("stopped", "interrupted"):
        raise typer.Exit(130)


def shape(state: "State") -> dict[str, Any]:
    """A run for programs."""
    from dataclasses import asdict

    return asdict(state)


def word(state: "State") -> str:
    """The status in the reader's language."""
    return say(f"runs.status_{state.status}")


_BARS = "▁▂▃▄▅▆▇█"


def spark(values: list[float], width: int = 24) -> str:
    """A curve of block characters, at most `width` wide."""
    count = min(width, len(values))
    picked = [values[round(at * (len(values) - 1) / max(1, count - 1))] for at in range(count)]
    low, span = min(picked), (max(picked) - min(picked)) or 1.0
    return "".join(_BARS[min(7, int(8 * (value - low) / span))] for value in picked)


def _progress(state: "State") -> str:
    from mofang.cli import render

    if state.status == "done" or not state.progress:
        return ""
    stage, numbers = render.progress_words(state.progress)
    return f"{stage} {numbers}".strip()


def _trainings() -> list[str]:
    from mofang.recipes import METHODS

    return METHODS.names()


def _get(run_id: str) -> "Run":
    from mofang import settings
    from mofang.runs import Runs

    return Runs(settings.load().home).get(run_id)
