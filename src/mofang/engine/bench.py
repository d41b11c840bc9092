"""How fast a model is here, at several lengths of context, and how much of the memory's bandwidth that takes."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from time import perf_counter
from typing import Any, cast

import numpy as np

from mofang import settings
from mofang.engine.base import ChatEngine
from mofang.engine.llama.engine import start
from mofang.engine.llama.provider import describe, tuned
from mofang.engine.profile import Choices
from mofang.engine.texts import passages
from mofang.errors import Invalid, MofangError
from mofang.messages import Sampling, Timings
from mofang.models.base import ModelFacts, ModelRef
from mofang.models.formats import FORMATS, gguf
from mofang.models.store import ModelStore
from mofang.platform import n_cores
from mofang.recipes.engine import Bench
from mofang.runs import Reporter, Run

EMBEDDING, HEAD = "token_embd.weight", "output.weight"
READ_BYTES, READS = 256 << 20, 5


def run(recipe: Bench, run: Run) -> dict[str, Any]:
    """The worker of `mofang engine bench`."""
    config = settings.load()
    ref = ModelStore(config).resolve(recipe.model, "chat")
    if ref.format != "gguf":
        raise Invalid("engine.cannot_tune", param="model", name=ref.name, kind=ref.kind, format=ref.format)
    return asyncio.run(_measure(recipe, ref, config, Reporter(run)))


async def _measure(recipe: Bench, ref: ModelRef, config: settings.Settings, report: Reporter) -> dict[str, Any]:
    facts: ModelFacts = FORMATS.get(ref.format).facts(ref.path)
    longest = min(facts.n_ctx_train or 1 << 30, max(recipe.contexts) + recipe.n_answer + 8)
    contexts = [n for n in sorted(set(recipe.contexts)) if n + recipe.n_answer <= longest]
    provider, known = tuned(config, ref)
    choices = known.choices if known and not recipe.defaults else Choices()
    report("bandwidth", 0, 0, "")
    bandwidth = await asyncio.to_thread(read_bandwidth)
    weights = await asyncio.to_thread(bytes_per_token, ref)
    one = config.model_copy(update={"n_ctx": longest, "n_slots": 1, "save_slots": False})
    engine = cast(
        ChatEngine, await start(ref, one, provider, choices, progress=lambda progress: None, log_name="bench")
    )
    rows = []
    try:
        ids: list[int] = []
        while len(ids) < longest:
            ids += await engine.tokenize("\n\n".join(passages()))
        for number, n_ctx in enumerate(contexts):
            report("measure", number, len(contexts), "")
            prompt, answer = await speed(engine, ids[number : number + n_ctx], recipe.n_answer, recipe.rounds)
            read = weights + (facts.kv_bytes_per_token or 0) * (n_ctx + recipe.n_answer / 2)
            rows.append(
                {
                    "n_ctx": n_ctx,
                    "prompt_per_second": round(prompt, 1),
                    "predicted_per_second": round(answer, 1),
                    "bandwidth_share": round(answer * read / bandwidth, 3),
                }
            )
    finally:
        await engine.close()
    return {
        "model": ref.name, "provider": describe(provider), "choices": choices.words(), "n_threads": n_cores(),
        "bandwidth_bytes_per_second": round(bandwidth), "bytes_per_token": weights, "rows": rows,
    }  # fmt: skip


async def speed(engine: ChatEngine, prompt: list[int], n_answer: int, rounds: int) -> tuple[float, float]:
    """Tokens a second of the prompt, and of an answer of `n_answer` tokens after it: medians."""
    found = [await _once(engine, prompt, n_answer) for _ in range(rounds)]
    return (
        float(np.median([timings.prompt_per_second for timings in found])),
        float(np.median([timings.predicted_per_second for timings in found])),
    )


async def _once(engine: ChatEngine, prompt: list[int], n: int) -> Timings:
    sampling = Sampling(max_tokens=n, temperature=0.0, options={"cache_prompt": False, "ignore_eos": True})
    deltas = [delta async for delta in engine.complete(prompt, sampling)]
    timings = deltas[-1].timings
    if timings is None:
        raise MofangError("engine.no_timings")
    return timings


def bytes_per_token(ref: ModelRef) -> int:
    """Bytes of weights that one token of an answer reads: all, but of the embedding's rows one, unless it is the head."""
    tensors = {tensor.name: tensor for path in gguf.parts(ref.path) for tensor in gguf.read(path).tensors}
    skipped = tensors[EMBEDDING].n_bytes if HEAD in tensors and EMBEDDING in tensors else 0
    return sum(tensor.n_bytes for tensor in tensors.values()) - skipped


def read_bandwidth() -> float:
    """Bytes a second that all cores together read from memory: each its own array, larger than any cache."""
    arrays = [np.ones(READ_BYTES // 4, np.float32) for _ in range(n_cores())]
    with ThreadPoolExecutor(len(arrays)) as pool:
        best = 0.0
        for _ in range(READS):
            began = perf_counter()
            list(pool.map(lambda array: float(np.dot(array, array)), arrays))
            best = max(best, len(arrays) * READ_BYTES / (perf_counter() - began))
    return best
