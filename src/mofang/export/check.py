"""`mofang export check A B`: how much of what B says A still says, with the evidence.

Both read the same texts (readers.py) and their expectations are compared over the whole vocabulary (measure/compare.py);
both answer ten questions and are timed in their engines (answers.py). What was found, with digests and versions, is kept
in A's manifest, beside the checks against other models; a report and a picture of all models that were checked against
the same one lie in the run's folder. Models that cut texts differently are compared by bits per byte alone.
"""

import asyncio
import hashlib
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import Any

import numpy as np

from mofang import __version__
from mofang.engine.texts import beginning
from mofang.errors import Invalid, MofangError, NotFound, Unreadable
from mofang.export import answers, folder, picture, report
from mofang.export.readers import READABLE, Reader, open_reader
from mofang.measure import EvalSet, load_text
from mofang.measure.compare import Agreement, Forced, last_rows, side_by_side, windows
from mofang.models.base import Format, ModelRef
from mofang.models.store import digest, now, read_manifest, write_manifest
from mofang.recipes.export import Check
from mofang.runs import Reporter, Run
from mofang.strings import say

SOURCES: tuple[Format, ...] = ("hf", "gptq")
"""Forms of which a manifest's parent is what a model was made from, and of which a type's bound speaks."""
TEXTS = ("text_zh", "text_en")
MIN_TOKENS = 8
BOUNDS: dict[str, tuple[float, float]] = {
    "f32": (1.005, 0.005),
    "f16": (1.005, 0.005),
    "bf16": (1.01, 0.01),
    "q8_0": (1.01, 0.02),
}
"""A GGUF's type → (largest ratio of bits per byte, largest mean KL divergence in nats), against the source. Smaller types
have no bound: what they cost is reported, and theirs to choose who asked for them."""


@dataclass(frozen=True, slots=True)
class Sample:
    """A text as both read it."""

    text: EvalSet
    beginning: str
    """What is read of it."""
    ids: list[int]
    reference_ids: list[int]

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.beginning.encode()).hexdigest()


def run(recipe: Check, run: Run) -> dict[str, Any]:
    """The worker of `mofang export check`."""
    ref = _find(recipe.model, "model", ("gguf", "gptq", "hf"))
    reference = _reference(recipe, ref, run)
    texts = [load_text(name) for name in recipe.text or TEXTS]
    tell = Reporter(run)
    found: dict[str, Any] = {
        "model": ref.name,
        "model_size_bytes": ref.size_bytes,
        "model_kind": _type(ref),
        "reference": {
            "name": reference.name, "format": reference.format, "kind": _type(reference), "sha256": digest(reference),
            "size_bytes": reference.size_bytes,
        },
        "at": now(), "run": run.id, "tools": {"mofang": __version__},
        **_read(recipe, ref, reference, texts, tell, run),
    }  # fmt: skip
    asyncio.run(answers.add(found, ref, reference, recipe, tell, run))
    tell("check", 0, 0, "")
    found |= _judged(recipe, ref, reference, found)
    stored = _store(ref, found)
    if not stored:
        run.note(say("export.check_not_stored", name=ref.name))
    notices = run.state().notes
    points = picture.points(folder.store().plain(), ref, found)
    picture.draw(points, run.folder / picture.FILE, found)
    (run.folder / report.FILE).write_text(report.markdown(found, points, notices), encoding="utf-8")
    for one in found["texts"]:
        run.note(report.line(found, one))
    run.note(say("export.check_report", path=run.folder / report.FILE))
    if found["passed"] is False:
        run.update(result=found)  # the figures of what failed are a result, too
        raise MofangError("export.check_failed", name=ref.name, reference=reference.name, why=report.why(found))
    return found


# ---- which two ----


def _find(name: str, param: str, forms: Sequence[Format]) -> ModelRef:
    """The model of that name or path, or what the run of that id led to, in the first of these forms that it has.

    Raises NotFound, Invalid for what cannot be compared.
    """
    training = folder.find_run(name)
    if training is None:
        ref = folder.find(name)
    else:
        models = folder.store()
        made = (models.made_by(known, form) for form in forms for known in (training.id, name))
        found = next((one for one in made if one), None)
        if found is None:
            raise NotFound("export.run_made_nothing", name=name)
        ref = found
    if ref.kind not in ("chat", "base"):
        raise Invalid("models.wrong_kind", param=param, name=ref.name, found=ref.kind, wanted="chat")
    if ref.format not in READABLE or ref.base or not ref.path.exists() or (ref.format == "gguf") is ref.path.is_dir():
        raise Invalid("export.not_comparable", param=param, name=ref.name, format=ref.format)
    return ref


def _reference(recipe: Check, ref: ModelRef, run: Run) -> ModelRef:
    parents = [parent for parent in ref.manifest.get("parents", ()) if parent.get("format") in SOURCES]
    if recipe.reference:
        found = _find(recipe.reference, "reference", ("hf", "gptq", "gguf"))
    elif parents:
        found = _find(str(parents[0].get("name")), "reference", SOURCES)
        if parents[0].get("sha256") not in (None, digest(found)):
            run.note(say("export.check_source_changed", name=found.name))
    else:
        raise Invalid("export.which_reference", param="reference", name=ref.name)
    if found.path == ref.path:
        raise Invalid("export.check_itself", param="reference", name=ref.name)
    return found


def _type(ref: ModelRef) -> str:
    """As people call it: "q4_k_m", "gptq", "float16"."""
    return str(ref.manifest.get("type") or folder.store().facts(ref).quantization or ref.format).lower()


# ---- reading ----


def _read(
    recipe: Check, ref: ModelRef, reference: ModelRef, texts: Sequence[EvalSet], tell: Reporter, run: Run
) -> dict[str, Any]:
    """Figures of each text, and of all together."""
    with ExitStack() as stack:
        tell("load", 0, 2, "models", ref.name)
        ours = stack.enter_context(closing(open_reader(ref)))
        tell("load", 1, 2, "models", reference.name)
        theirs = stack.enter_context(closing(open_reader(reference)))
        samples = [_sample(text, ours, theirs, recipe.n_tokens) for text in texts]
        same_ids = ours.begin() == theirs.begin() and all(one.ids == one.reference_ids for one in samples)
        same = ours.n_named == theirs.n_named and all(one.ids == one.reference_ids for one in samples)
        if not same:
            wanted = [name for name in ("max_kl", "min_top1") if getattr(recipe, name) is not None]
            if wanted:
                flag = "--" + wanted[0].replace("_", "-")
                raise Invalid(
                    "export.check_other_tokenizer", param=wanted[0], name=ref.name, reference=reference.name, flag=flag
                )
            run.note(say("export.check_bits_only", name=ref.name, reference=reference.name))
        total = sum(len(one.ids) + (0 if same else len(one.reference_ids)) for one in samples)
        done = 0

        def step(n: int, name: str) -> None:
            nonlocal done
            done += n
            tell("read", min(done, total), total, "tokens", name)

        def of(one: Sample) -> tuple[Forced, Forced, Agreement]:
            if same:
                return _together(ours, theirs, one, lambda n: step(n, one.text.name))
            alone = [
                _alone(reader, ids, one, lambda n: step(n, one.text.name))
                for reader, ids in ((ours, one.ids), (theirs, one.reference_ids))
            ]
            return alone[0], alone[1], Agreement()

        rows, sums = [], (Forced(), Forced(), Agreement())
        for one in samples:
            parts = of(one)
            sums = (sums[0] + parts[0], sums[1] + parts[1], sums[2] + parts[2])
            shares = {
                "text": one.text.name, "sha256": one.sha256, "bytes": len(one.beginning.encode()),
                "truncated": len(one.beginning) < len(one.text.text),
            }  # fmt: skip
            rows.append({**shares, **_figures(*parts)})
        return {
            **_figures(*sums), "texts": rows, "same_tokenizer": same, "same_ids": same_ids,
            "texts_sha256": hashlib.sha256("".join(one.sha256 for one in samples).encode()).hexdigest(),
            "readers": [ours.tools, theirs.tools],
        }  # fmt: skip


def _sample(text: EvalSet, ours: Reader, theirs: Reader, n_tokens: int) -> Sample:
    """The longest beginning of a text that is at most `n_tokens` of our tokens. Raises Unreadable for too few."""
    begins, ids = beginning(text.text, n_tokens, ours.encode)
    reference_ids = theirs.encode(begins)
    if min(len(ids), len(reference_ids)) < MIN_TOKENS:
        raise Unreadable("export.check_text_short", text=text.name, n=len(ids), least=MIN_TOKENS)
    return Sample(text, begins, ids, reference_ids)


def _together(ours: Reader, theirs: Reader, one: Sample, step: Any) -> tuple[Forced, Forced, Agreement]:
    """Both read the same ids, and are compared place by place; one block of rows of each is held at a time."""
    mine, other, agreement = Forced(), Forced(), Agreement()
    window = min(ours.window, theirs.window)
    unread = len(one.ids)
    for given, nexts in windows(one.ids, theirs.begin(), window):
        at = 0
        blocks = (last_rows(reader.read(given), len(given), len(nexts)) for reader in (ours, theirs))
        for rows, reference in side_by_side(*blocks):
            coming = nexts[at : at + len(rows)]
            for side, block in ((mine, rows), (other, reference)):
                side.logprobs += _expected(block, coming)
            agreement.add(rows, reference)
            at += len(rows)
            step(len(rows))
        unread -= len(nexts)
        mine.n_bytes += (n_bytes := sum(len(theirs.data(token_id)) for token_id in nexts))
        other.n_bytes += n_bytes
    step(unread)  # first tokens that nobody expects
    return mine, other, agreement


def _alone(reader: Reader, ids: list[int], one: Sample, step: Any) -> Forced:
    found = Forced()
    for given, nexts in windows(ids, reader.begin(), reader.window):
        at = 0
        for rows in last_rows(reader.read(given), len(given), len(nexts)):
            found.logprobs += _expected(rows, nexts[at : at + len(rows)])
            at += len(rows)
            step(len(rows))
        found.n_bytes += sum(len(reader.data(token_id)) for token_id in nexts)
    step(len(ids) - len(found.logprobs))
    return found


def _expected(rows: Any, coming: list[int]) -> list[float]:
    """Log-probability of each token that came. Raises MofangError for a model whose answers are no numbers."""
    values = rows[np.arange(len(coming)), coming]
    if np.isnan(values).any():
        raise MofangError("export.check_no_numbers")
    return [float(value) for value in values]


def _figures(mine: Forced, other: Forced, agreement: Agreement) -> dict[str, Any]:
    ours, theirs = mine.figures(), other.figures()
    return {
        "n_tokens": len(mine.logprobs), **ours, **{f"reference_{name}": value for name, value in theirs.items()},
        "ratio": round(ours["bits_per_byte"] / max(theirs["bits_per_byte"], 1e-9), 4),
        **(agreement.figures() if agreement.kl else {}),
    }  # fmt: skip


# ---- judging and keeping ----


def _judged(recipe: Check, ref: ModelRef, reference: ModelRef, found: dict[str, Any]) -> dict[str, Any]:
    """passed: None where nothing was to be held to. `failures`: what is beyond which limit, for each text."""
    limits: dict[str, float] = {}
    is_source = ref.format == "gguf" and reference.format in SOURCES
    bound = BOUNDS.get(found["model_kind"]) if is_source and found["same_tokenizer"] else None
    if bound:
        limits |= {"ratio": bound[0], "mean_kl": bound[1]}
    if recipe.max_kl is not None:
        limits["mean_kl"] = recipe.max_kl
    if recipe.min_top1 is not None:
        limits["same_top"] = recipe.min_top1
    failures = [
        {"text": one["text"], "figure": name, "found": one[name], "limit": limit}
        for one in found["texts"]
        for name, limit in limits.items()
        if (one[name] < limit if name == "same_top" else one[name] > limit)
    ]
    if bound:
        failures += [{"figure": name} for name in ("same_ids", "same_template") if found.get(name) is False]
    return {"limits": limits, "failures": failures, "passed": not failures if limits else None}


def _store(ref: ModelRef, found: dict[str, Any]) -> bool:
    """Keep the figures in the model's manifest, in the place of an earlier check of the same texts against the same
    model. False for a model that has no manifest."""
    place = folder.store().folder / ref.name
    if not ref.manifest or not place.is_dir():
        return False
    kept = {name: value for name, value in found.items() if name not in ("model", "answers")}
    manifest = read_manifest(place)  # as it is now: another check may have ended meanwhile
    checks = dict(manifest.get("checks") or {})
    others = [one for one in checks.get("against", ()) if _what(one) != _what(found)]
    write_manifest(place, {**manifest, "checks": {**checks, "against": [*others, kept]}})
    return True


def _what(found: dict[str, Any]) -> tuple[str, str]:
    return str(found["reference"]["sha256"]), str(found["texts_sha256"])
