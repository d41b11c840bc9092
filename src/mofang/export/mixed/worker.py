"""From a converted file to one of a given size: `mofang export gguf --bits`, `--size` and `--types`.

What was measured is kept in the run's folder until the model has its name: a run that is resumed does not measure again.
"""

import json
import re
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mofang import settings
from mofang.engine.llama import library
from mofang.errors import Invalid, NotFound, Unreadable
from mofang.export import calibration, layers
from mofang.export.mixed import budget, imatrix, names, sensitivity, writer
from mofang.export.mixed.blocks import TYPES, Blocks, fits, n_bytes
from mofang.export.mixed.sensitivity import Matrix
from mofang.models.base import ModelRef
from mofang.models.formats import gguf
from mofang.models.store import digest
from mofang.recipes.export import Gguf
from mofang.runs import Reporter, Run
from mofang.strings import say

CHOICE, IMPORTANCE = "tensor_types.txt", "importance.imatrix"
"""What lies beside the model: llama-quantize's --tensor-type-file and --imatrix."""
ROWS = "rows"
Importance = dict[str, NDArray[np.float32]]
UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
_SIZE = re.compile(r"\s*([\d.]+)\s*([kmg]?i?b?)\s*", re.IGNORECASE)


def make(recipe: Gguf, run: Run, source: ModelRef, whole: Path, file: Path, report: Reporter) -> dict[str, Any]:
    """Write `file` from the converted `whole`; returns what its manifest says of it."""
    blocks = Blocks(library.load(library.find(settings.load())[0]))
    stated = read_choice(Path(recipe.types).expanduser(), writer.matrices(whole)) if recipe.types else {}
    beside = Path(recipe.types).expanduser().parent / IMPORTANCE
    predicted = ""
    told: dict[str, Any] = {}
    if stated and beside.is_file():
        types, importance = stated, imatrix.read(beside)
        shutil.copy(beside, file.parent / IMPORTANCE)
        told["calibration"] = {"imatrix": beside.name}
    else:
        matrices, texts = measured(recipe, run, source, whole, None if stated else blocks, report)
        importance = write_importance(file.parent, matrices, texts)
        types, told["calibration"] = stated, texts.manifest()
        if not stated:
            chosen = _choose(recipe, matrices, whole)
            types = {name: option.type for name, option in chosen.items()}
            told["predicted_kl"] = round(budget.loss(chosen), 5)
            predicted = f"{told['predicted_kl']:.4f}"
    writer.write(whole, file, types, importance, blocks, lambda done, total: report("quantize", done, total))
    return told | finish(run, file, types, predicted)


def finish(run: Run, file: Path, types: Mapping[str, str], predicted: str) -> dict[str, Any]:
    """Keep the choice beside the file and say it; returns what the manifest says of it."""
    (file.parent / CHOICE).write_text(_choice(types), encoding="utf-8")
    counts, bits = Counter(types.values()), bits_of(file)
    shown = ", ".join(f"{type} × {n}" for type, n in counts.most_common())
    run.note(say("export.mixed_made", bits=f"{bits:.2f}", types=shown, predicted=predicted or "-"))
    return {"type": f"mixed {bits:.2f} bpw", "types": dict(counts), "bits_per_weight": round(bits, 3)}


def measured(
    recipe: Gguf, run: Run, source: ModelRef, whole: Path, blocks: Blocks | None, report: Reporter
) -> tuple[dict[str, Matrix], calibration.Calibration]:
    """The converted file's matrices by name, with what each type would cost (importances alone without `blocks`)."""
    texts = calibration.of(recipe, source, run)
    return names.tensors(_weighed(recipe, run, source, texts, blocks, report), whole), texts


def watch(recipe: Gguf, run: Run, source: ModelRef, whole: Path, report: Reporter) -> dict[str, Any]:
    """Write the importance matrix beside `whole`, for llama-quantize; returns what the manifest says of it, which is
    nothing for a family whose layers cannot be read."""
    try:
        found, texts = measured(recipe, run, source, whole, None, report)
    except Unreadable as error:
        run.note(say("export.no_importance", why=error.message()))
        return {}
    write_importance(whole.parent, found, texts)
    return {"calibration": texts.manifest()}


def write_importance(folder: Path, matrices: Mapping[str, Matrix], texts: calibration.Calibration) -> Importance:
    known = {name: each.importance for name, each in matrices.items() if each.importance is not None}
    n_tokens, length = texts.ids.size, texts.ids.shape[1]
    imatrix.write(folder / IMPORTANCE, known, n_tokens=n_tokens, length=length, texts=texts.sources)
    return known


def check(recipe: Gguf) -> None:
    """Faults of the recipe that can be said before the work. Raises Invalid, NotFound."""
    if recipe.size:
        size_of(recipe.size)
    if recipe.types and not Path(recipe.types).expanduser().is_file():
        raise NotFound("export.no_types_file", path=recipe.types)


def _weighed(
    recipe: Gguf, run: Run, source: ModelRef, texts: calibration.Calibration, blocks: Blocks | None,
    report: Reporter,
) -> list[Matrix]:  # fmt: skip
    """What was measured for this model and these texts, now or before a stop; importances alone without `blocks`."""
    kept, stamp = run.measured / "weighed.npz", f"{digest(source)} {texts.digest} {recipe.seed} {blocks is not None}"
    if kept.is_file() and (found := _kept(kept, stamp)):
        return found
    on = layers.device()
    decoder = layers.Decoder(source.path, on, layers.dtype(on))
    place = run.measured / "states"

    def tell(stage: str, done: int, total: int) -> None:
        report(stage, done, total, "layers")

    if blocks:
        matrices = sensitivity.weigh(decoder, texts.ids, TYPES, blocks, place, recipe.seed, tell)
    else:
        matrices = sensitivity.importances(decoder, texts.ids, place, tell)
    _keep(kept, stamp, matrices)
    return matrices


def _keep(path: Path, stamp: str, matrices: Sequence[Matrix]) -> None:
    rows = [[each.name, each.shape, each.losses] for each in matrices]
    importance = {each.name: each.importance for each in matrices if each.importance is not None}
    aside = path.with_suffix(".part")
    with aside.open("wb") as file:
        np.savez(file, allow_pickle=False, **{ROWS: np.array(json.dumps([stamp, rows]))}, **importance)
    aside.rename(path)


def _kept(path: Path, stamp: str) -> list[Matrix]:
    with np.load(path, allow_pickle=False) as kept:
        found_stamp, rows = json.loads(str(kept[ROWS]))
        if found_stamp != stamp:
            return []
        return [Matrix(name, (shape[0], shape[1]), kept.get(name), losses) for name, shape, losses in rows]


def table_of(matrices: Mapping[str, Matrix]) -> budget.Table:
    return {
        name: [budget.Option(type, n_bytes(type, each.shape), loss) for type, loss in each.losses.items()]
        for name, each in matrices.items()
    }


def apart_of(matrices: Mapping[str, Matrix], whole: Path) -> int:
    """Bytes of a file that are not these matrices': its header, and what keeps its type."""
    every = writer.file_bytes(whole, dict.fromkeys(matrices, "F16"))
    return every - sum(n_bytes("F16", each.shape) for each in matrices.values())


def _choose(recipe: Gguf, matrices: Mapping[str, Matrix], whole: Path) -> dict[str, budget.Option]:
    table, apart = table_of(matrices), apart_of(matrices, whole)
    low, high = budget.bounds(table)
    wanted = size_of(recipe.size) if recipe.size else writer.average_bytes(whole, recipe.bits)
    if wanted < low + apart:
        parameters = sum(tensor.n_elements for tensor in gguf.read(whole).tensors)
        narrow = sorted({each.shape[1] for each in matrices.values() if not fits("Q4_K", each.shape[1])})
        raise Invalid(
            "export.size_impossible",
            param="size" if recipe.size else "bits",
            wanted=f"{wanted / 1e6:.0f}",
            least=f"{(low + apart) / 1e6:.0f}",
            bits=f"{8 * (low + apart) / parameters:.2f}",
            why=say("export.size_why_narrow", widths=", ".join(map(str, narrow))) if narrow else "",
        )
    return budget.choose(table, min(wanted - apart, high))


def size_of(text: str) -> int:
    """ "300MB" → bytes. Raises Invalid."""
    match = _SIZE.fullmatch(text)
    try:
        if match:
            return int(float(match[1]) * UNITS[match[2].lower()])
    except (ValueError, KeyError):
        pass
    raise Invalid("export.bad_size", param="size", value=text)


def bits_of(file: Path) -> float:
    """Average bits of a weight."""
    tensors = gguf.read(file).tensors
    return 8 * sum(tensor.n_bytes for tensor in tensors) / sum(tensor.n_elements for tensor in tensors)


def read_choice(path: Path, tensors: Mapping[str, gguf.Tensor]) -> dict[str, str]:
    """Tensor → type, as `_choice` writes it. Raises Unreadable with the line."""
    found = {}
    for row, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        name, _, type = line.replace("\\.", ".").partition("=")
        name, type = name.strip().removeprefix("^").removesuffix("$"), type.strip().upper()
        if name not in tensors:
            raise Unreadable("export.types_unknown_tensor", path=path, row=row, tensor=name)
        if type not in TYPES:
            raise Unreadable("export.types_unknown_type", path=path, row=row, type=type, known=", ".join(TYPES))
        if not fits(type, tensors[name].shape[0]):
            raise Unreadable(
                "export.types_misfit", path=path, row=row, tensor=name, type=type, n=tensors[name].shape[0]
            )
        found[name] = type
    return found


def _choice(types: Mapping[str, str]) -> str:
    """Lines that llama-quantize reads too: it takes names as patterns, and the first that is found somewhere."""
    escaped = {name.replace(".", "\\."): type.lower() for name, type in types.items()}
    return "".join(f"^{name}$={type}\n" for name, type in escaped.items())
