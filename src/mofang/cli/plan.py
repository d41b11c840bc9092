"""`mofang plan`: what so many people, or so many tokens to learn, need: replicas, memory, hours."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mofang.cli.recipe import RecipeCommand
from mofang.strings import say

if TYPE_CHECKING:
    from mofang.launch.plan_serve import ServingPlan
    from mofang.launch.plan_train import TrainingPlan

app = typer.Typer(help=say("plan.about"), no_args_is_help=True)

AMOUNTS = {"": 1, "k": 1e3, "m": 1e6, "b": 1e9, "万": 1e4, "亿": 1e8}
Json = Annotated[bool, typer.Option("--json", help=say("cli.option_json"))]


@app.command("serve", cls=RecipeCommand, help=say("plan.serve"))
def serve(
    users: Annotated[int, typer.Option("--users", min=1, max=10_000, help=say("plan.option_users"))],
    think_time: Annotated[str, typer.Option("--think-time", metavar="TIME", help=say("plan.option_think"))] = "30s",
    p95_ttft: Annotated[str, typer.Option("--p95-ttft", metavar="TIME", help=say("plan.option_ttft"))] = "2s",
    prompt: Annotated[int | None, typer.Option("--prompt-tokens", min=1, help=say("plan.option_prompt"))] = None,
    answer: Annotated[int | None, typer.Option("--answer-tokens", min=1, help=say("plan.option_answer"))] = None,
    model: Annotated[str, typer.Option("--model", "-m", metavar="NAME", help=say("plan.option_model"))] = "auto",
    picture: Annotated[
        Path | None, typer.Option("--picture", metavar="FILE.png", help=say("plan.option_picture"))
    ] = None,
    as_json: Json = False,
) -> None:
    from dataclasses import asdict

    from mofang import settings as _settings
    from mofang.cli import render
    from mofang.launch import plan_serve

    asked = plan_serve.Asked(
        users, _seconds("--think-time", think_time), _seconds("--p95-ttft", p95_ttft), prompt, answer, model
    )
    if picture:
        _check_picture(picture)
    with render.ProgressBar(say("plan.simulating")) as bar:

        def tell(replicas: int) -> None:
            bar.update({"stage": "", "done": 0, "total": 0, "unit": "", "detail": f"{replicas}"})

        found = plan_serve.plan(asked, _settings.load(), tell=tell)
    if picture:
        from mofang.launch import plan_picture

        plan_picture.draw(found, picture)
    if as_json:
        render.show_json(asdict(found))
    else:
        _show_serving(found, picture)


@app.command("train", cls=RecipeCommand, help=say("plan.train"))
def train(
    tokens: Annotated[str, typer.Option("--tokens", metavar="50M", help=say("plan.option_tokens"))],
    base: Annotated[str, typer.Option("--base", metavar="NAME", help=say("plan.option_base"))] = "",
    method: Annotated[str, typer.Option("--method", metavar="METHOD", help=say("plan.option_method"))] = "sft",
    workers: Annotated[int, typer.Option("--workers", min=1, max=1024, help=say("plan.option_workers"))] = 1,
    as_json: Json = False,
) -> None:
    from dataclasses import asdict

    from mofang import settings as _settings
    from mofang.cli import render
    from mofang.launch import plan_train

    found = plan_train.plan(_amount(tokens), _settings.load().home, method=method, base=base, workers=workers)
    if as_json:
        render.show_json(asdict(found))
    else:
        _show_training(found)


def _show_serving(found: "ServingPlan", picture: Path | None) -> None:
    from mofang.cli import render

    asked = found.asked
    wish = {"users": str(asked.users), "think": f"{asked.think_s:g}", "ttft": f"{asked.ttft_s:g}"}
    lengths = {"prompt": f"{found.prompt_tokens:.0f}", "answer": f"{found.answer_tokens:.0f}"}
    render.show(say("plan.needs", model=found.model, replicas=found.replicas, slots=found.slots, **wish, **lengths))
    columns = [(say(f"plan.column_{name}"), "right") for name in ("replicas", "p50", "p95", "each", "all", "busy")]
    near = [row for row in found.rows if abs(row.replicas - found.replicas) <= 1]
    cells = [
        (
            f"{'→ ' if row.replicas == found.replicas else ''}{row.replicas}", f"{row.ttft_p50_s:.2f} s",
            f"{row.ttft_p95_s:.2f} s", f"{row.tokens_per_s_each:.1f}", f"{row.tokens_per_s:.1f}", f"{row.busy:.0%}",
        )
        for row in near
    ]  # fmt: skip
    render.show(render.table(columns, cells))
    fits = "plan.memory_fits" if found.memory_bytes <= found.machine_bytes else "plan.memory_beyond"
    render.show(say(fits, needed=render.size(found.memory_bytes), has=render.size(found.machine_bytes)))
    for sentence in [*found.sources, *found.notes, say("plan.how")]:
        render.note(f"· {sentence}")
    if picture:
        render.show(say("plan.picture_written", path=picture))


def _show_training(found: "TrainingPlan") -> None:
    from mofang.cli import render

    told = {"method": found.method, "base": found.base, "tune": found.tune, "tokens": f"{found.tokens:,}"}
    render.show(say("plan.takes", hours=_hours(found.hours), workers=found.workers, **told))
    if found.least_hours != found.most_hours:
        render.show(say("plan.between", least=_hours(found.least_hours), most=_hours(found.most_hours)))
    memory = render.size(found.memory_bytes) if found.memory_bytes else "–"
    render.show(say("plan.per_worker", memory=memory, speed=f"{found.tokens_per_s:,.0f}"))
    for sentence in [say("plan.from_runs", runs=", ".join(found.runs), beside=f"{found.beside:.0%}"), *found.notes]:
        render.note(f"· {sentence}")


def _hours(hours: float) -> str:
    return say("plan.minutes", n=f"{hours * 60:.0f}") if hours < 2 else say("plan.hours", n=f"{hours:,.1f}")


def _seconds(option: str, text: str) -> float:
    """A time as "2s", "500ms", "1m30s" or a number of seconds. Raises Invalid."""
    from math import isfinite

    from mofang.durations import seconds
    from mofang.errors import Invalid

    try:
        found = seconds(text)
    except ValueError:
        found = 0.0
    if not found > 0 or not isfinite(found):
        raise Invalid("plan.not_a_time", param=option, option=option, value=text)
    return found


def _amount(text: str) -> int:
    """A number of tokens as "50M", "1.5b", "5000万" or in digits. Raises Invalid."""
    import re

    from mofang.errors import Invalid

    found = re.fullmatch(r"(\d+(?:\.\d+)?)([kmb万亿]?)", text.strip().lower().replace(",", "").replace("_", ""))
    amount = float(found[1]) * AMOUNTS[found[2]] if found else 0
    if amount < 1:
        raise Invalid("plan.not_an_amount", param="--tokens", value=text)
    return round(amount)


def _check_picture(path: Path) -> None:
    """Raises Invalid for what could not be written, before anything is computed."""
    from mofang.errors import Invalid

    if path.suffix.lower() != ".png" or not path.absolute().parent.is_dir():
        raise Invalid("plan.not_a_picture", param="--picture", path=path)
