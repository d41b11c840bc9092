"""Two models in their engines: ten questions answered side by side, how long each takes to load and how fast it is."""

import time
from collections.abc import Callable
from contextlib import aclosing
from typing import Any, cast

from mofang import settings
from mofang.engine import BY_FORMAT, ENGINES, engine_name
from mofang.engine.base import ChatEngine
from mofang.engine.bench import speed
from mofang.engine.texts import passages
from mofang.errors import MofangError
from mofang.export import folder
from mofang.measure import prompts
from mofang.messages import Message, Sampling
from mofang.models.base import ModelRef
from mofang.platform import busy
from mofang.recipes.export import Check
from mofang.runs import Reporter, Run
from mofang.strings import say
from mofang.tokenizer import load as load_tokenizer

ANSWER_TOKENS = 128
"""Of one answer; one that is cut there is said to have no end."""
PROMPT, TOKENS, ROUNDS = 512, 32, 3
"""What speed is measured at: tokens of the prompt, of the answer after it, and how often."""
BUSY = 0.4
"""Share of the processor that others may take before speeds are said to be too low."""
SLOW_S = 15.0
"""A first round that takes longer is the only one."""
TALK = [Message("user", "你好！ Hello, 123\n\n请介绍一下自己。")]
"""What both must render alike."""


async def add(
    found: dict[str, Any], ref: ModelRef, reference: ModelRef, recipe: Check, tell: Reporter, run: Run
) -> None:
    """Into `found`: answers; speed, reference_speed (tokens a second, seconds to load); busy; same_template."""
    ours, theirs = (_template(each) for each in (ref, reference))
    without = [each.name for each in (ref, reference) if not folder.store().facts(each).chat_template]
    asked = recipe.answers and not without
    if recipe.answers and without:
        run.note(say("export.check_no_template", name=without[0]))
    found["same_template"] = ours == theirs if ours and theirs else None
    if not (asked or recipe.speed):
        return
    if recipe.speed:
        found["busy"] = round(busy(), 2)
        if found["busy"] > BUSY:
            run.note(say("export.check_busy", taken=found["busy"]))
    total = len(prompts()) if asked else 0
    sides: list[dict[str, Any]] = []
    for name, each in (("model", ref), ("reference", reference)):
        if each.format not in BY_FORMAT:
            run.note(say("export.check_no_engine", name=each.name, format=each.format))
            sides.append({})
            continue

        def told(done: int, name: str = each.name) -> None:
            if asked and done < total:
                tell("answer", done, total, "answers", name)
            else:
                tell("measure", 0, 0, "", name)

        told(0)
        sides.append(await in_engine(each, asked=asked, timed=recipe.speed, tell=told))
        if name == "model" and theirs and sides[0]["rendered"]:
            found["same_template"] = sides[0]["rendered"] == theirs
    mine, other = sides
    found["speed"], found["reference_speed"] = mine.get("speed"), other.get("speed")
    if not asked:
        return
    found["answers"] = [
        {
            "id": task.id, "prompt": task.messages[-1].text,
            **_said(mine.get("answers"), place, ""), **_said(other.get("answers"), place, "reference_"),
        }
        for place, task in enumerate(prompts())
    ]  # fmt: skip
    ended = [one for one in found["answers"] if one["ended"] is False]
    if ended:
        run.note(say("export.check_endless", name=ref.name, n=len(ended), of=total, tokens=ANSWER_TOKENS))


def _said(answers: list[tuple[str, bool]] | None, place: int, prefix: str) -> dict[str, Any]:
    text, ended = answers[place] if answers else (None, None)
    return {f"{prefix}answer": text, f"{prefix}ended": ended}


def _template(ref: ModelRef) -> str:
    """A conversation as the model reads it; "" for one without a template, or whose tokenizer only llama.cpp knows."""
    try:
        tokenizer = load_tokenizer(ref.path)
    except MofangError:
        return ""
    return tokenizer.render(TALK, add_generation_prompt=True) if tokenizer.chat_template else ""


async def in_engine(ref: ModelRef, *, asked: bool, timed: bool, tell: Callable[[int], None]) -> dict[str, Any]:
    load = ENGINES.get(engine_name(ref))
    began = time.monotonic()
    engine = cast(
        ChatEngine, await load(ref, settings.load(n_slots=1, save_slots=False), progress=lambda progress: None)
    )
    try:
        load_s = time.monotonic() - began
        answers = []
        for done, task in enumerate(prompts() if asked else (), 1):
            answers.append(await _answer(engine, task.messages))
            tell(done)
        return {
            "answers": answers,
            "rendered": await engine.render(TALK) if asked else "",
            "speed": await _speed(engine, load_s) if timed else None,
        }
    finally:
        await engine.close()


async def _answer(engine: ChatEngine, messages: list[Message]) -> tuple[str, bool]:
    """(the text, whether the model ended it)."""
    text, reason = "", None
    # No penalty: a folder may state one of its own, which a GGUF does not know.
    sampling = Sampling(max_tokens=ANSWER_TOKENS, temperature=0.0, repeat_penalty=1.0)
    async with aclosing(cast(Any, engine.chat(messages, sampling))) as deltas:
        async for delta in deltas:
            text += delta.reasoning + delta.content
            reason = delta.finish_reason or reason
    return text, reason != "length"


async def _speed(engine: ChatEngine, load_s: float) -> dict[str, Any]:
    info = engine.info()
    ids: list[int] = []
    n_prompt = min(PROMPT, info.n_ctx - TOKENS - 8)
    while len(ids) < n_prompt:
        ids += await engine.tokenize("\n\n".join(passages()))
    began = time.monotonic()
    prompt, predicted = await speed(engine, ids[:n_prompt], TOKENS, 1)
    if time.monotonic() - began < SLOW_S:  # it has warmed up what is measured now
        prompt, predicted = await speed(engine, ids[:n_prompt], TOKENS, ROUNDS)
    return {
        "load_s": round(load_s, 2), "n_prompt": n_prompt, "prompt_per_second": round(prompt, 1),
        "predicted_per_second": round(predicted, 1), "provider": info.provider, "choices": info.choices,
    }  # fmt: skip
