"""The worker of `mofang engine build`: build, then show that what was built computes rightly, then let it be used.

The proof: a real answer is generated; over 200 tokens of a text the distribution is the wheel's, with weights of 16 bits,
where nothing hides a fault; flash attention is the same as attention in full; and with the quantized weights the two
builds differ no more than twice what rounding the cache to 16 bits does. A compiler that miscompiles (GCC 12 and AMX) is
found here and not by a user; a build that fails with AMX is made again without.
"""

import asyncio
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

from mofang import settings
from mofang.engine import build
from mofang.engine.agreement import MAX_MEAN_KL, agreement
from mofang.engine.base import ChatEngine
from mofang.engine.llama.engine import start
from mofang.engine.llama.native import Native
from mofang.engine.llama.provider import Provider
from mofang.engine.llama.wheel import Wheel
from mofang.engine.profile import Choices
from mofang.engine.texts import passages
from mofang.errors import EngineFailed, MissingSystem, MofangError
from mofang.messages import Progress, Sampling
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
PLAIN, FULL, EXACT = Choices(), Choices(flash_attn="off"), Choices(flash_attn="off", cache_type="f32")
TIMES_ROUNDING = 2
LARGE_BYTES = 1_000_000_000
"""A model beyond this is not taken for the proof where a smaller one can be brought: its copy takes four times that."""


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
    here = [ref for ref in store.plain() if ref.kind == "chat" and ref.format == "gguf"]
    best: ModelRef | None = min(here, key=lambda ref: ref.size_bytes, default=None)
    if best is not None and best.size_bytes <= LARGE_BYTES:
        return best
    known = [one for one in catalogue.load().entries if one.kind == "chat" and one.size_bytes]
    smallest = min(known, key=lambda one: one.size_bytes or 0)

    def tell(progress: Progress) -> None:
        report(progress.stage, progress.done, progress.total, progress.unit, smallest.name)

    try:
        return await pull(store, smallest.name, progress=tell)
    except MofangError:
        if best is None:
            raise
        return best


async def prove(made: build.Build, model: ModelRef, config: Settings, report: Reporter) -> dict[str, Any]:
    """The proof as it is stored: `passed`, the figures, or why it failed. A crash of what was built is a failure."""
    proof: dict[str, Any] = {
        "model": model.name,
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "passed": False,
    }
    small = config.model_copy(update={"n_ctx": N_CTX, "n_slots": 1, "save_slots": False})
    report("prove", 0, FORCED, "tokens")
    with TemporaryDirectory(dir=build.folder(config.home)) as aside:
        try:
            proof["why"] = await _proved(made, model, small, Path(aside), report, proof)
        except EngineFailed as error:
            return {**proof, "why": error.message()}
    return {**proof, "passed": not proof["why"]}


async def _proved(
    made: build.Build, model: ModelRef, config: Settings, aside: Path, report: Reporter, proof: dict[str, Any]
) -> str:
    """Why it failed, or "". Writes the figures into `proof`. Both that are compared must be fresh: what a cache holds
    was rounded by the batch that it was computed in."""
    native = Native(made)
    async with _loaded(model, config, native) as ours:
        proof["answer"] = await _say(ours)
        ids = (await ours.tokenize(passages()[0]))[: FORCED + 8]
    if not proof["answer"]:
        return say("engine.why_silent")
    copy = await _unrounded(made, model, aside)
    async with _loaded(copy, config, native, FULL) as full, _loaded(copy, config, native) as flash:
        proof["flash_mean_kl"] = round((await agreement(full, flash, ids[: FORCED // 4])).mean_kl, 7)
    if proof["flash_mean_kl"] > MAX_MEAN_KL:
        return say("engine.why_flash", mean_kl=proof["flash_mean_kl"])
    wheel = Wheel()
    try:
        wheel.check()
    except MissingSystem as error:
        proof["no_wheel"] = error.message()
        return ""

    def tell(done: int, total: int) -> None:
        report("prove", done, total, "tokens")

    async with _loaded(copy, config, wheel, FULL) as theirs, _loaded(copy, config, native, FULL) as ours:
        found = await agreement(theirs, ours, ids, tell=tell)
    proof.update(found.as_dict())
    if not found.passed:
        return say("engine.why_differs", **found.as_dict())
    some = ids[: FORCED // 2]
    async with _loaded(model, config, wheel, FULL) as theirs:
        async with _loaded(model, config, native, FULL) as ours:
            quantized = (await agreement(theirs, ours, some)).mean_kl
        async with _loaded(model, config, wheel, EXACT) as exact, _loaded(model, config, wheel, FULL) as fresh:
            rounding = (await agreement(exact, fresh, some)).mean_kl
    bound = max(MAX_MEAN_KL, TIMES_ROUNDING * rounding)
    proof |= {"quantized_mean_kl": round(quantized, 7), "quantized_bound": round(bound, 7)}
    return "" if quantized <= bound else say("engine.why_quantized", mean_kl=f"{quantized:.2g}", bound=f"{bound:.2g}")


async def _unrounded(made: build.Build, model: ModelRef, aside: Path) -> ModelRef:
    """The model with weights of 16 bits, by the llama-quantize that was built. Raises EngineFailed.

    With quantized weights llama.cpp rounds the activations to 8 bits before each product, and a change in the last bit
    of a sum then moves a small model by 0.001 to 0.006 nats: as much as a cache of 16 bits instead of 32 does (both
    measured, docs/log.md). Without, two builds that compute rightly agree to 0.00001, and whatever does not is a fault.
    """
    target = aside / "unrounded.gguf"
    command = [str(made.tool("llama-quantize")), "--allow-requantize", str(model.path), str(target), "F16"]
    ended = await asyncio.to_thread(
        subprocess.run, command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    )
    if ended.returncode or not target.is_file():
        raise EngineFailed("engine.failed", model="llama-quantize", why=ended.stdout[-300:])
    return replace(model, path=target, sha256=None, size_bytes=target.stat().st_size)


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
