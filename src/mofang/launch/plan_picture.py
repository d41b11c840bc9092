"""A serving plan as a picture: how long nineteen of twenty wait for the first token, by the number of replicas."""

from pathlib import Path

from mofang.export.paper import PALE, Axis, Paper
from mofang.launch.plan_serve import ServingPlan

WIDTH, HEIGHT = 760, 480
"""As all lengths here in points (paper.SCALE)."""
BOX = (76, 108, 724, 404)
COLOURS, CHOSEN = {"p50": "#6b7c93", "p95": "#2f5fd0"}, "#b4652a"
LEAST_S = 0.001
"""What the axis begins with."""


def draw(found: ServingPlan, path: Path) -> None:
    """Write the PNG, so that it is never seen half."""
    paper = Paper(WIDTH, HEIGHT, room="plan", names=[found.model])
    asked = found.asked
    paper.text(BOX[0], 20, paper.say("picture_title", model=found.model, users=asked.users), 20)
    lengths = {"prompt": f"{found.prompt_tokens:.0f}", "answer": f"{found.answer_tokens:.0f}"}
    paper.text(BOX[0], 52, paper.say("picture_about", think=f"{asked.think_s:g}", **lengths), 13, PALE)
    left, top, right, bottom = BOX
    across = Axis.counts([row.replicas for row in found.rows])
    curves = {
        "p50": [(row.replicas, max(row.ttft_p50_s, LEAST_S)) for row in found.rows],
        "p95": [(row.replicas, max(row.ttft_p95_s, LEAST_S)) for row in found.rows],
    }
    up = Axis.powers([asked.ttft_s, *(seconds for curve in curves.values() for _, seconds in curve)])

    def spot(replicas: float, seconds: float) -> tuple[float, float]:
        return left + across.place(replicas) * (right - left), bottom - up.place(seconds) * (bottom - top)

    paper.frame(BOX, across, up, paper.say("picture_up"), paper.say("picture_across"))
    _, wanted = spot(found.replicas, asked.ttft_s)
    paper.line((left, wanted, right, wanted), CHOSEN)
    paper.text(right, wanted - 4, paper.say("picture_wanted", seconds=f"{asked.ttft_s:g}"), 12, CHOSEN, "rd")
    for word, curve in curves.items():
        colour, spots = COLOURS[word], [spot(*point) for point in curve]
        paper.line([length for each in spots for length in each], colour, 2)
        for (x, y), (replicas, seconds) in zip(spots, curve, strict=True):
            chosen = replicas == found.replicas
            paper.dot(x, y, CHOSEN if chosen else colour, hollow=not chosen)
            if chosen:
                paper.text(x + 4, y + 10, f"{word} {seconds:.2g} s", 13, colour)
    paper.save(path)
