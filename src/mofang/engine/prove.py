"""The worker of `mofang engine build`: build, then show that what was built computes rightly, then let it be used.

The proof: a real answer is generated; over 200 tokens of a text the distribution is the wheel's, both with attention in
full precision; and flash attention, whose rounding differs from version to version, is within its rounding of that. A
compiler that miscompiles (GCC 12 and AMX) is found here and not by a user; a build that fails with AMX is made again
without.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any, cast

from mofang import settings
from mofang.engine import build
from mofang.engine.agreement import FLASH_KL, Agreement, agreement
from mofang.engine.base import ChatEngine
from mofang.engine.llama.engine import start
from mofang.engine.llama.native import Native
from mofang.engine.llama.provider import Provider
from mofang.engine.llama.wheel import Wheel
from mofang.engine.profile import Choices
from mofang.engine.texts import passages
from mofang.errors import EngineFailed, MissingSystem, MofangError
from mofang.messages import Sampling
from mofang.models import catalogue
from mofang.models.base import ModelRef
from mofang.models.pull import pull
from mofang.models.store import ModelStore
from mofang.platform import cpu_flags
from mofang.recipes.engine import Build
from mofang.runs import Reporter, Run
from mofang.settings import Settings
from mofang.strings import say

FORCED = 200
ANSWER = 32
"""Tokens that a real generation takes; a matrix product that fails does so at the first."""
N_CTX = 1024
PLAIN, FULL = Choices(), Choices(flash_attn="off")


def run(recipe: Build, run: Run) -> dict[str, Any]:
    """The worker of `mofang engine build`."""
    config = settings.load()
    report = Reporter(run)

    def tell(stage: str, done: int, total: int, unit: str) -> None:
        report(stage, done, total, unit)

    model = asyncio.run(_model(recipe, config, report))
    for amx in (True, False) if build.AMX in cpu_flags() else (True,):
        plan = build.plan(config.home, backend=recipe.backend, compiler=recipe.compiler, amx=amx, tell=tell)
        made = build.make(config.home, plan, log=run.log, tell=tell)
        for note in made.notes:
            run.note(say(note))
        proof = asyncio.run(prove(made, model, config, report))
        made = made.with_proof(proof)
        if made.proven:
            run.note(say("engine.build_proven", **_shown(proof), seconds=made.seconds, compiler=made.compiler))
            return {"key": made.key, "path": str(made.folder), "backend": made.backend, "proof": proof}
        run.note(say("engine.build_not_proven", why=proof["why"]))
    raise MofangError("engine.build_wrong", why=proof["why"], log=run.log)


def _shown(proof: dict[str, Any]) -> dict[str, Any]:
    return {name: proof.get(name, "-") for name in ("mean_kl", "same_top", "model")}


async def _model(recipe: Build, config: Settings, report: Reporter) -> ModelRef:
    """The model to prove with: named, or the smallest that is here, or the smallest that can be brought."""
    store = ModelStore(config)
    if recipe.proof_model:
        return store.resolve(recipe.proof_model, "chat")
    here = [ref for ref in store.list() if ref.kind == "chat" and ref.format == "gguf"]
    if here:
        return min(here, key=lambda ref: ref.size_bytes)
    smallest = min((one for one in catalogue.load().entries if one.kind == "chat"), key=lambda one: one.size_bytes or 0)
    return await pull(
        store,
        smallest.name,
        progress=lambda progress: report(progress.stage, progress.done, progress.total, progress.unit, smallest.name),
    )


async def prove(made: build.Build, model: ModelRef, config: Settings, report: Reporter) -> dict[str, Any]:
    """The proof as it is stored: `passed`, the figures, or why it failed. A crash of what was built is a failure."""
    proof: dict[str, Any] = {"model": model.name, "at": datetime.now(UTC).isoformat(timespec="seconds")}
    native, small = Native(made), config.model_copy(update={"n_ctx": N_CTX, "n_slots": 1, "save_slots": False})
    report("prove", 0, FORCED, "tokens")
    try:
        async with _loaded(model, small, native, FULL) as ours:
            ids = (await ours.tokenize(passages()[0]))[: FORCED + 8]
            found = await _against_wheel(model, small, ours, ids, report)
            async with _loaded(model, small, native) as flash:
                proof["flash_mean_kl"] = round((await agreement(ours, flash, ids[: FORCED // 4])).mean_kl, 7)
                proof["answer"] = await _say(flash)
    except EngineFailed as error:
        return {**proof, "passed": False, "why": error.message()}
    if proof["flash_mean_kl"] > FLASH_KL:
        return {**proof, "passed": False, "why": say("engine.why_flash", mean_kl=proof["flash_mean_kl"])}
    if isinstance(found, str):
        return {**proof, "passed": bool(proof["answer"]), "why": found}
    why = "" if found.passed else say("engine.why_differs", **found.as_dict())
    return {**proof, "passed": found.passed and bool(proof["answer"]), **found.as_dict(), "why": why}


async def _against_wheel(
    model: ModelRef, config: Settings, ours: ChatEngine, ids: list[int], report: Reporter
) -> Agreement | str:
    """How what was built agrees with the wheel, or why it cannot be compared. Both must be fresh: what a cache holds
    was rounded by the batch that it was computed in, which moves a small model by 0.002 nats."""
    wheel = Wheel()
    try:
        wheel.check()
    except MissingSystem as error:
        return error.message()
    async with _loaded(model, config, wheel, FULL) as theirs:
        return await agreement(theirs, ours, ids, tell=lambda done, total: report("prove", done, total, "tokens"))


@asynccontextmanager
async def _loaded(
    model: ModelRef, config: Settings, provider: Provider, choices: Choices = PLAIN
) -> AsyncIterator[ChatEngine]:
    engine = await start(model, config, provider, choices, progress=lambda progress: None, log_name="prove")
    try:
        yield cast(ChatEngine, engine)
    finally:
        await engine.close()


async def _say(engine: ChatEngine) -> str:
    sampling = Sampling(max_tokens=ANSWER, temperature=0.0)
    return "".join([delta.content async for delta in engine.complete("中国的首都是", sampling)])
