"""`mofang eval`: sets of questions put to one model, or to several side by side."""

from typing import Annotated, Any

import typer

from mofang.strings import say


def evaluate(
    models: Annotated[list[str], typer.Argument(help=say("cli.eval_models"), metavar="MODEL...")],
    sets: Annotated[list[str] | None, typer.Option("--set", metavar="SET", help=say("cli.eval_sets"))] = None,
    n_shot: Annotated[int, typer.Option("--n-shot", min=0, max=20, help=say("cli.eval_n_shot"))] = 0,
    n_tokens: Annotated[int, typer.Option("--n-tokens", min=8, help=say("cli.eval_n_tokens"))] = 400,
    details: Annotated[bool, typer.Option("--details", help=say("cli.eval_details"))] = False,
    as_json: Annotated[bool, typer.Option("--json", help=say("cli.option_json"))] = False,
) -> None:
    from mofang import api
    from mofang.cli import render

    chosen = sets or api.eval_sets()
    results: dict[str, list[Any]] = {}
    with api.gateway():  # one for all of them
        for model in models:
            with render.ProgressBar(model) as bar:

                def tell(name: str, done: int, total: int, bar: Any = bar) -> None:
                    bar.update({"stage": name, "done": done, "total": total, "unit": ""})

                results[model] = api.evaluate(model, chosen, n_shot=n_shot, n_tokens=n_tokens, tell=tell)
    if as_json:
        render.show_json({model: [score.shape() for score in scores] for model, scores in results.items()})
        return
    if details:
        for model, scores in results.items():
            for score in scores:
                _details(model, score)
    headings = [
        (say("cli.heading_set"), "left"),
        (say("cli.heading_metric"), "left"),
        *((model, "right") for model in models),
    ]
    rows = []
    for number, first in enumerate(results[models[0]]):
        values = [_value(results[model][number]) for model in models]
        rows.append((f"{first.set} ({first.n})", say(f"measure.metric_{first.metric}"), *values))
        rows += [
            (f"  {part}", "", *(f"{results[model][number].parts[part]:.1%}" for model in models))
            for part in first.parts
        ]
    render.show(render.table(headings, rows))


def _value(score: Any) -> str:
    return f"{score.value:.3f}" if score.metric == "bits_per_byte" else f"{score.value:.1%}"


def _details(model: str, score: Any) -> None:
    from mofang.cli import render

    for answer in score.answers:
        mark = "✓" if answer["right"] else "✗"
        said = " ".join(str(answer["answer"]).split())
        render.show(f"{mark} {model} · {score.set} · {answer['question'].splitlines()[0]} → {said}")
