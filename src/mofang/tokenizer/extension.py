"""A model's tokenizer extended from texts, from the first line read to the report card: what `mofang tokenizer extend`
does, and the worker of the same as a run."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mofang import settings
from mofang.models.base import ModelRef
from mofang.models.store import ModelStore
from mofang.recipes.tokenizer import Extend
from mofang.runs import Reporter, Run
from mofang.tokenizer import folder, inspect, measure, named, texts
from mofang.tokenizer.base import Tokenizer
from mofang.tokenizer.card import card
from mofang.tokenizer.extend import Extension, Tell, extend, plan, save
from mofang.tokenizer.load import load
from mofang.tokenizer.measure import Report
from mofang.tokenizer.scripts import SCRIPTS

TELL_EVERY = 1_000
"""Lines that are read between two words of how far it is."""
UNITS = {"cut": "lines"}
"""What a stage's progress counts; of the others tokens."""
SHOWN = 24
"""New tokens, and dropped pieces, that a run's result names."""
SENTENCE = 80
"""Characters of the sentence that is cut before and after."""


@dataclass(frozen=True, slots=True)
class Made:
    """`found` is what people and programs are told; `held` the lines that were not learned from."""

    base: Tokenizer
    extension: Extension
    held: Sequence[str]
    found: dict[str, Any]


def make(
    name: str,
    paths: Sequence[str | Path],
    out: Path,
    *,
    size: int,
    script: str,
    unreachable: str,
    vocabulary: str | Path = "",
    tell: Tell | None = None,
) -> Made:
    """Extend, write the folder `out`, and weigh it on the lines that were held out.

    Raises Conflict, Invalid, MissingExtra, NotFound, Unreadable; UnknownName for a kind that cannot be extended.
    """
    target = folder.free(out)
    base, ref = named.find(name, source=True)
    other = load(Path(vocabulary).expanduser()) if vocabulary else None
    wish = plan(base, size=size, script=script, unreachable=unreachable, vocabulary=other, path=str(vocabulary))
    files = texts.files(map(Path, paths)) if paths or not other else []
    held = list(texts.held_out(files))

    def learned() -> Iterator[str]:
        for number, line in enumerate(texts.learned(files)):
            if tell and not number % TELL_EVERY:
                tell("cut", number, 0)
            yield line

    made = extend(base, learned, wish, tell or (lambda stage, done, total: None))
    with folder.aside(target) as place:
        save(made, place, base=name, base_sha256=base.sha256(), script=script, texts=[str(file) for file in files])
    found: dict[str, Any] = {
        "path": str(target),
        "method": made.method,
        "n_old": made.n_old,
        "n_added": made.n_added,
        "n_vocab": made.tokenizer.n_vocab,
        "n_completed": made.n_completed,
        "dropped": made.dropped,
        "n_short": made.n_short,
    }
    if held:
        before, after = measure.measure(base, held), measure.measure(made.tokenizer, held)
        found |= {"n_held_out": len(held), "card": weigh(before, after, made.n_old, made.tokenizer, ref)}
    return Made(base, made, held, found)


def weigh(
    before: Report, after: Report, n_old: int, new: Tokenizer, ref: ModelRef | None, bits: float | None = None
) -> dict[str, Any]:
    """The report card of `new`, on texts measured with both."""
    n_dead = sum(1 for token_id in measure.dead(new) if token_id >= n_old)
    facts = ModelStore(settings.load()).facts(ref) if ref else None
    made = card(before, after, n_old=n_old, n_vocab=new.n_vocab, n_dead=n_dead, facts=facts)
    return replace(made, bits_before=bits).shape()


# ---- as a run ----


def run(recipe: Extend, run: Run) -> dict[str, Any]:
    """The worker of the recipe `extend`: the tokenizer lies in the run's folder, under the run's id."""
    report = Reporter(run)

    def tell(stage: str, done: int, total: int) -> None:
        report(stage, done, total, UNITS.get(stage, "tokens"))

    made = make(
        recipe.model, recipe.texts, run.out / run.id,
        size=recipe.new_tokens, script=recipe.script, unreachable=recipe.unreachable, tell=tell,
    )  # fmt: skip
    dropped = made.found["dropped"]
    shown = {"dropped": dropped[:SHOWN], "n_dropped": len(dropped), "examples": examples(made.extension)}
    return {**made.found, **shown, "base": recipe.model, "cuts": cuts(made)}


def examples(extension: Extension, n: int = SHOWN) -> list[str]:
    """New tokens that people can read, the first that were learned; those of several characters before others."""
    new = range(extension.n_old, extension.tokenizer.n_vocab)
    found = [text for text in (inspect.piece(extension.tokenizer, token_id).text.strip() for token_id in new) if text]
    return sorted(found, key=lambda text: len(text) == 1)[:n]


def cuts(made: Made) -> dict[str, Any] | None:
    """How a sentence that was not learned from is cut before and after; None where nothing was held out."""
    chinese = (line for line in made.held if SCRIPTS["han"].search(line))
    text = next(chinese, next(iter(made.held), "")).strip()[:SENTENCE]
    if not text:
        return None
    sides = {"before": made.base, "after": made.extension.tokenizer}
    return {"text": text, **{side: _pieces(tokenizer, text) for side, tokenizer in sides.items()}}


def _pieces(tokenizer: Tokenizer, text: str) -> list[dict[str, Any]]:
    """As /v1/tokenize tells them."""
    ids = tokenizer.encode(text)
    return [{"id": token_id, "bytes": list(tokenizer.backend.data(token_id))} for token_id in ids]
