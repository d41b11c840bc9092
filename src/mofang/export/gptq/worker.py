"""`mofang export gptq`: a model's linear layers quantized one decoder layer after another.

Memory holds one layer's weights, one matrix of its inputs' products, and what the system keeps of the states between
layers, which lie in a file. Each finished layer lies in the run's folder beside the states behind it, so a run that is
stopped or killed goes on with the next layer, and ends with the same bits.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from mofang import __version__
from mofang.errors import Invalid, Unreadable
from mofang.export import calibration, folder, layers, source
from mofang.export import shards as files_of
from mofang.export.gptq import format, solve
from mofang.models.base import ModelRef
from mofang.models.formats import hf
from mofang.models.sources.base import need_disk
from mofang.models.store import digest, lineage
from mofang.platform import peak_memory
from mofang.recipes.export import Gptq
from mofang.runs import Reporter, Run
from mofang.strings import say

SHARD_BYTES = 1 << 30


def run(recipe: Gptq, run: Run) -> dict[str, Any]:
    """The worker of `mofang export gptq`."""
    base = source.find(recipe.model, run)
    if hf.read_json(base.path / "config.json").get("quantization_config"):
        raise Invalid("export.base_quantized", param="model", name=base.name)
    stem = base.name.removesuffix("-hf")
    name = folder.free_name(recipe.name or f"{stem}-gptq-{recipe.bits}bit", overwrite=recipe.overwrite, run=run)
    report = Reporter(run)
    report("read", 0, 0, "")
    texts = calibration.of(recipe, base, run)
    with folder.space(run.checkpoints):
        errors = quantize(base, recipe, texts, run, report)
    with folder.aside(run) as target:
        report("write", 0, 0, "")
        _assemble(base, recipe, run.checkpoints, target)
        made = folder.publish(
            target, name, format="gptq", kind=base.kind, run=run, parents=[folder.parent(base, "source")],
            runs=lineage(base), overwrite=recipe.overwrite, recipe=base.manifest.get("recipe"),
            data=base.manifest.get("data"), type=f"gptq {recipe.bits}-bit",
            calibration=texts.manifest(),
            relative_errors=errors,
            tools=folder.tools("torch", "transformers", "safetensors"),
        )  # fmt: skip
    shutil.rmtree(run.checkpoints, ignore_errors=True)
    mean = sum(errors.values()) / len(errors)
    run.note(
        say(
            "export.gptq_made",
            name=made.name,
            bits=recipe.bits,
            size=f"{made.size_bytes / 1e6:.0f}",
            error=f"{mean:.2%}",
        )
    )
    return {
        "model": made.name,
        "path": str(made.path),
        "size_bytes": made.size_bytes,
        "mean_relative_error": mean,
        "peak_memory_bytes": peak_memory(),
    }


def _tell_ragged(layer: torch.nn.Module, recipe: Gptq, run: Run) -> None:
    """Whose inputs are not whole groups; said once, as all layers are alike."""
    sizes = {name.rpartition(".")[2]: module.in_features for name, module in layers.linears(layer)}
    ragged = [name for name, n_in in sizes.items() if recipe.group_size > 0 and n_in % recipe.group_size]
    if ragged:
        fits = [size for size in solve.SIZES if all(n_in % size == 0 for n_in in sizes.values())]
        run.note(
            say(
                "export.gptq_ragged",
                names=", ".join(ragged),
                group_size=recipe.group_size,
                fits=", ".join(map(str, fits)),
            )
        )


def quantize(
    base: ModelRef, recipe: Gptq, texts: calibration.Calibration, run: Run, report: Reporter
) -> dict[str, float]:
    """Quantize every layer into run.checkpoints; returns each module's relative squared error of its answers."""
    place = run.checkpoints
    _begin(place, {"source": digest(base), "calibration": texts.digest})
    on = layers.device()
    decoder = layers.Decoder(base.path, on, layers.dtype(on))
    scheme = solve.Scheme(recipe.bits, recipe.group_size, recipe.sym, recipe.order, recipe.mse, recipe.refine)
    ids = torch.from_numpy(texts.ids)
    done = _done(place)
    shape = (*ids.shape, decoder.prepare(ids))
    kept = (3 * shape[2] + decoder.widest) * shape[0] * shape[1] * decoder.dtype.itemsize
    need_disk(place, kept + base.size_bytes)
    before = _states(place, done)
    hidden = layers.Hidden(before, shape, decoder.dtype) if done else decoder.begin(ids, before)
    for index in range(done, len(decoder)):
        layer = decoder.load(index)
        stages = decoder.stages(index, hidden)
        _tell_ragged(layer, recipe, run)
        made: dict[str, solve.Quantized] = {}
        errors: dict[str, float] = {}
        passes = [[stage] for stage in stages] if recipe.true_sequential else [stages]
        n_passes = len(passes) + 1

        def tell(part: str, number: int, index: int = index, n: int = n_passes) -> Callable[[int], None]:
            begun, total = (index * n + number) * ids.numel(), len(decoder) * n * ids.numel()
            detail = f"{index + 1}/{len(decoder)} {part}"
            return lambda row: report("quantize", begun + row * ids.shape[1], total, "tokens", detail)

        for number, groups in enumerate(passes):
            names = [group[0] for group in groups]
            told = tell(", ".join(name.rpartition(".")[2] for group in groups for name in group), number)
            sums = decoder.hessians(index, names, hidden, told, only=recipe.true_sequential)
            for group in groups:
                for name, part, error in _solved(decoder, index, group, sums.pop(group[0]), scheme):
                    layers.replace(layer, name, part.weight())
                    made[name], errors[name] = part, error
            if recipe.true_sequential:
                decoder.keep_outputs(index, made)
        after = decoder.advance(index, hidden, _states(place, index + 1), tell("", len(passes)))
        _keep(decoder, index, made, errors, recipe, place)
        hidden.path.unlink()
        hidden = after
        decoder.unload(index)
    return _errors(place)


def _solved(
    decoder: layers.Decoder, index: int, group: list[str], hessian: Tensor, scheme: solve.Scheme
) -> Iterator[tuple[str, solve.Quantized, float]]:
    """(module, its weights, their error) for modules that read the same input: one factor serves them all."""
    weights = [
        decoder.tensor(f"{decoder.prefix}.{index}.{name}.weight").to(hessian.device, torch.float32) for name in group
    ]
    whole = solve.quantize(torch.cat(weights), hessian, scheme)
    begin = 0
    for name, weight in zip(group, weights, strict=True):
        part = whole.rows(begin, begin + len(weight))
        begin += len(weight)
        yield name, part, _energy(weight - part.weight(), hessian) / max(_energy(weight, hessian), 1e-30)


def _energy(weight: Tensor, hessian: Tensor) -> float:
    """tr(W H Wᵀ): the squared length of the answers of W (n_out, n_in)."""
    return float(((weight @ hessian) * weight).sum())


# ---- what a run keeps until it is done ----


def _begin(place: Path, stamp: dict[str, str]) -> None:
    """An empty folder, unless what lies there was made from the same model and texts."""
    said = place / "made_from.json"
    if not said.is_file() or json.loads(said.read_text()) != stamp:
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        said.write_text(json.dumps(stamp))


def _layer(place: Path, index: int) -> Path:
    return place / f"layer-{index:05d}.safetensors"


def _states(place: Path, index: int) -> Path:
    """What the layer of that index is given."""
    return place / f"states-{index:05d}.bin"


def _done(place: Path) -> int:
    """Layers that are finished, with the states behind them."""
    n = 0
    while _layer(place, n).is_file():
        n += 1
    return n if n and _states(place, n).is_file() else 0


def _keep(
    decoder: layers.Decoder, index: int, made: dict[str, solve.Quantized], errors: dict[str, float], recipe: Gptq,
    place: Path,
) -> None:  # fmt: skip
    """Write a finished layer. Its name is given last: the states behind it are whole by then."""
    stem = f"{decoder.prefix}.{index}."
    tensors = {
        name: decoder.tensor(name)
        for name in decoder.places
        if name.startswith(stem) and name.removeprefix(stem).removesuffix(".weight") not in made
    }
    for name, part in made.items():
        codes, zeros = part.codes.cpu().numpy(), part.zeros.cpu().numpy()
        tensors |= {
            f"{stem}{name}.qweight": torch.from_numpy(format.pack(codes, recipe.bits)),
            f"{stem}{name}.qzeros": torch.from_numpy(format.pack(zeros.T, recipe.bits, less=True).T.copy()),
            f"{stem}{name}.scales": part.scales.cpu().contiguous(),
            f"{stem}{name}.g_idx": part.g_idx.cpu().clone(),  # which a group's modules share
        }
    aside = place / "layer.part"
    stated = {f"{index}.{name}": error for name, error in errors.items()}
    save_file(tensors, str(aside), metadata={"format": "pt", "errors": json.dumps(stated)})
    aside.rename(_layer(place, index))


def _errors(place: Path) -> dict[str, float]:
    found: dict[str, float] = {}
    for index in range(_done(place)):
        with safe_open(str(_layer(place, index)), framework="pt") as file:
            found |= json.loads(file.metadata()["errors"])
    return found


# ---- the folder that comes of it ----


def _assemble(base: ModelRef, recipe: Gptq, place: Path, target: Path) -> None:
    """The folder: layers as they were kept, all other tensors as the source has them."""
    files = [_layer(place, index) for index in range(_done(place))]
    kept = {name for file in files for name in hf.layout(file)}
    quantized = {name.removesuffix(".qweight") + ".weight" for name in kept if name.endswith(".qweight")}
    shards: list[list[str]] = []
    held: dict[str, Tensor] = {}
    size = 0

    def flush() -> None:
        nonlocal held, size
        save_file(held, str(target / f"shard-{len(shards)}"), metadata={"format": "pt"})
        shards.append(list(held))
        held, size = {}, 0

    for file in [*hf.weights(base.path), *files]:
        kept_here = file.parent == place
        with safe_open(str(file), framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118
                if kept_here or name not in kept | quantized:
                    tensor = opened.get_tensor(name)
                    if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
                        raise Unreadable("export.not_finite", path=file, tensor=name)
                    bytes_ = tensor.numel() * tensor.element_size()
                    if held and size + bytes_ > SHARD_BYTES:
                        flush()
                    held[name] = tensor
                    size += bytes_
    flush()
    total = sum(part.end - part.begin for file in target.iterdir() for part in hf.layout(file).values())
    names = files_of.names(len(shards))
    for number, name in enumerate(names):
        (target / f"shard-{number}").rename(target / name)
    places = {tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
    files_of.write_index(target, places, total)
    for path in files_of.beside(base.path):
        shutil.copy(path, target / path.name)
    stated = format.statement(
        recipe.bits,
        recipe.group_size,
        sym=recipe.sym,
        desc_act=recipe.order == "activation",
        meta={
            "quantizer": f"mofang:{__version__}",
            "damp_percent": solve.DAMP,
            "damp_auto_increment": solve.DAMP_STEP,
            "true_sequential": recipe.true_sequential,
            "static_groups": False,
            "act_group_aware": recipe.order == "group_aware",
            "mse": solve.NORM if recipe.mse else 0.0,
            "refine": recipe.refine,
        },
    )
    _write(target / format.CONFIG, stated)
    config = json.loads((base.path / "config.json").read_text(encoding="utf-8"))
    _write(target / "config.json", {**config, "quantization_config": stated})


def _write(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
