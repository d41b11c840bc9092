"""Whether a GGUF file, as the engine runs it, still says what the folder says that it was made from.

Both read the same text, each position with all before it: bits per byte, share of positions with the same likeliest
token, KL divergence; and the same conversation must become the same ids, and an answer must end. The verdict is
stored in the GGUF's manifest.
"""

import asyncio
from typing import Any, cast

import numpy as np
import torch

from mofang import settings
from mofang.engine import ENGINES, engine_name
from mofang.engine.base import ChatEngine
from mofang.errors import Invalid, MofangError
from mofang.export import folder
from mofang.export.load import causal_model
from mofang.measure import load_set, text
from mofang.measure.engine import OverEngine
from mofang.messages import Message
from mofang.models.base import ModelRef
from mofang.models.store import write_manifest
from mofang.recipes.export import Check
from mofang.runs import Reporter, Run
from mofang.strings import say
from mofang.tokenizer import load as load_tokenizer

N_TOP = 200
COMPARED = ("hf", "gptq")
"""Formats that a GGUF is compared with."""
BOUNDS: dict[str, tuple[float, float]] = {
    "f32": (1.005, 0.005),
    "f16": (1.005, 0.005),
    "bf16": (1.01, 0.01),
    "q8_0": (1.01, 0.02),
}
"""Type → (largest ratio of bits per byte, largest mean KL divergence in nats). Smaller types have no bound: what they
cost is reported, and theirs to choose who asked for them."""


def run(recipe: Check, run: Run) -> dict[str, Any]:
    """The worker of `mofang export check`."""
    ref = folder.store().resolve(recipe.model, "chat")
    if ref.format != "gguf":
        raise Invalid("export.not_gguf", path=ref.path, format=ref.format)
    reference = _reference(recipe, ref)
    report = Reporter(run)
    sample = load_set(recipe.text or "text_zh")
    found = asyncio.run(_compare(ref, reference, sample.text, recipe.n_tokens, report))
    bound = BOUNDS.get(str(ref.manifest.get("type", "")).lower())
    if bound:
        found["passed"] = (
            found["ratio"] <= bound[0] and found["mean_kl"] <= bound[1] and found["same_ids"] and found["same_template"]
        )
    if ref.managed and ref.manifest:
        write_manifest(
            ref.path.parent, {**ref.manifest, "checks": {**ref.manifest.get("checks", {}), "against_source": found}}
        )
    figures = ("bits_per_byte", "reference_bits_per_byte", "n_tokens", "same_top", "mean_kl")
    shown = {key: found[key] for key in figures}
    run.note(say("export.checked", name=ref.name, reference=reference.name, **shown))
    if bound and not found["passed"]:
        raise MofangError(
            "export.check_failed",
            name=ref.name,
            **{key: found[key] for key in ("ratio", "mean_kl", "same_ids", "same_template")},
        )
    return {"model": ref.name, "reference": reference.name, **found}


def _reference(recipe: Check, ref: ModelRef) -> ModelRef:
    name = recipe.reference or next(
        (str(parent.get("name")) for parent in ref.manifest.get("parents", ()) if parent.get("format") in COMPARED), ""
    )
    if not name:
        raise Invalid("export.which_reference", param="reference", name=ref.name)
    reference = folder.find(name)
    if reference.format not in COMPARED:
        raise Invalid("export.not_convertible", param="reference", name=name, format=reference.format)
    return reference


async def _compare(ref: ModelRef, reference: ModelRef, sample: str, n_tokens: int, report: Reporter) -> dict[str, Any]:
    report("load", 0, 0, "")
    load = ENGINES.get(engine_name(ref))
    engine = cast(ChatEngine, await load(ref, settings.load(n_slots=1), progress=lambda progress: None))
    try:
        asked = OverEngine(engine)
        reading = await text.read(
            asked,
            sample,
            n_tokens=n_tokens,
            n_top=N_TOP,
            tell=lambda done, total: report("read", done, total, "tokens"),
        )
        tokenizer = load_tokenizer(reference.path)
        talk = [Message("user", "你好！ Hello, 123\n\n请介绍一下自己。")]
        rendered = await engine.render(talk) if tokenizer.chat_template else ""
        same_template = not tokenizer.chat_template or rendered == tokenizer.render(talk, add_generation_prompt=True)
        answer = await asked.answer(talk, max_tokens=64) if tokenizer.chat_template else ""
    finally:
        await engine.close()
    ids = tokenizer.encode(tokenizer.decode(reading.ids))
    logprobs = await asyncio.to_thread(_logprobs, reference, reading.ids)
    forced = logprobs[np.arange(len(reading.ids) - 1), reading.ids[1:]]
    theirs = text.bits_per_byte(forced, reading.n_bytes)
    return {
        "n_tokens": len(reading.nexts),
        "bits_per_byte": round(reading.bits_per_byte, 4),
        "reference_bits_per_byte": round(theirs, 4),
        "ratio": round(reading.bits_per_byte / theirs, 4),
        "same_top": round(text.top_agreement(logprobs.argmax(-1), [step.top[0].token_id for step in reading.nexts]), 4),
        "mean_kl": round(
            float(np.mean([text.divergence(row, step) for row, step in zip(logprobs, reading.nexts, strict=True)])), 5
        ),
        "same_ids": ids == reading.ids,
        "same_template": same_template,
        "answer": answer,
    }


def _logprobs(reference: ModelRef, ids: list[int]) -> Any:
    """(len(ids) - 1, n_vocab) float32: what the folder expects before each of ids[1:]."""
    model = causal_model(reference)
    with torch.no_grad():
        logits = model(torch.tensor(ids)[None]).logits[0, :-1]
        return torch.log_softmax(logits.float(), -1).numpy()
