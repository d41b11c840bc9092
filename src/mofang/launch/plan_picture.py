"""A serving plan as a picture: how long nineteen of twenty wait for the first token, by the number of replicas."""

from pathlib import Path

from mofang.export.paper import INK, PALE, Axis, Paper
from mofang.launch.plan_serve import ServingPlan

WIDTH, HEIGHT = 760, 480
"""As all lengths here in points (paper.SCALE)."""
BOX = (76, 108, 724, 404)
LINE, HALF, CHOSEN = "#2f5fd0", "#8a9bb0", "#b4652a"


def draw(found: ServingPlan, path: Path) -> None:
    """Write the PNG, so that it is never seen half."""
    paper = Paper(WIDTH, HEIGHT, room="plan", names=[found.model])
    asked = found.asked
    paper.text(BOX[0], 20, paper.say("picture_title", model=found.model, users=asked.users), 20)
    lengths = {"prompt": f"{found.prompt_tokens:.0f}", "answer": f"{found.answer_tokens:.0f}"}
    paper.text(BOX[0], 52, paper.say("picture_about", think=f"{asked.think_s:g}", **lengths), 13, PALE)
    left, top, right, bottom = BOX
    across = Axis.counts([row.replicas for row in found.rows])
    up = Axis.powers([asked.ttft_s, *(max(row.ttft_p50_s, 0.001) for row in found.rows),
                      *(row.ttft_p95_s for row in found.rows)])  # fmt: skip

    def spot(replicas: float, seconds: float) -> tuple[float, float]:
        height = min(1.0, max(0.0, up.place(max(seconds, 0.001))))
        return left + across.place(replicas) * (right - left), bottom - height * (bottom - top)

    paper.frame(BOX, across, up, paper.say("picture_up"), paper.say("picture_across"))
    _, wanted = spot(found.replicas, asked.ttft_s)
    paper.line((left, wanted, right, wanted), CHOSEN)
    paper.text(right, wanted - 4, paper.say("picture_wanted", seconds=f"{asked.ttft_s:g}"), 12, CHOSEN, "rd")
    for colour, word, values in (
        (HALF, "p50", [(row.replicas, row.ttft_p50_s) for row in found.rows]),
        (LINE, "p95", [(row.replicas, row.ttft_p95_s) for row in found.rows]),
    ):
        spots = [spot(*value) for value in values]
        paper.line([length for each in spots for length in each], colour, 2)
        for (x, y), (replicas, seconds) in zip(spots, values, strict=True):
            chosen = replicas == found.replicas
            paper.dot(x, y, CHOSEN if chosen else colour, hollow=not chosen)
            if chosen:
                paper.text(x + 10, y - 4, f"{word} {seconds:.2g} s", 13, INK, "ld")
        paper.text(spots[0][0] - 10, spots[0][1], word, 12, colour, "rm")
    paper.save(path)
