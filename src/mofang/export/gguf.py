"""A Hugging Face folder as a GGUF file, by llama.cpp's own converter; K-quants by its llama-quantize.

Our own writer would have to follow every change of llama.cpp; its converter, pinned, does. It runs as a child without
network. A run's adapter is merged first. A GPTQ model's weights are kept to the bit (gptq/converter.py). What comes out
must have our tokenizer's end and our template, or it is not given its name. Source: llama.cpp convert_hf_to_gguf.py,
tools/quantize.
"""

import os
import shutil
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

import mofang
from mofang import settings
from mofang.engine import toolchain
from mofang.engine.llama import library
from mofang.errors import Invalid, MissingSystem, MofangError, NoSpace, Unreadable
from mofang.export import folder, lossless, shards
from mofang.export import source as sources
from mofang.export.gptq import format as gptq
from mofang.export.verify import verify
from mofang.messages import Message
from mofang.models.base import ModelRef
from mofang.models.formats import gguf
from mofang.models.progress import size
from mofang.models.sources.base import need_disk
from mofang.models.store import lineage
from mofang.platform import end_child, free_disk, start_program
from mofang.recipes.export import Gguf
from mofang.runs import Reporter, Run
from mofang.strings import say
from mofang.tokenizer import Tokenizer
from mofang.tokenizer import load as load_tokenizer

CONVERTED = ("f32", "f16", "bf16", "q8_0")
"""Types that the converter writes itself."""
BITS = {"f32": 32, "f16": 16, "bf16": 16, "q8_0": 8.5}
QUANTIZED = frozenset(name.lower() for name in gguf.FILE_TYPES.values()) - frozenset(CONVERTED)
DEFAULT, AUTO = "q8_0", "auto"
POLL_S = 0.1
CONVERTER = Path(__file__).parent / "converter.py"
"""Runs llama.cpp's converter where we know how the tokenizer cuts text, and it may not."""
KEEPER = Path(__file__).parent / "gptq" / "converter.py"
_ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "PYTHONIOENCODING": "utf-8"}
TALK, TRIED, TRIED_TOKENS = "你好！请用一句话介绍你自己。", 8, 256
"""What a finished file is asked, the tokens it may say, and the longest window for both."""


def run(recipe: Gguf, run: Run) -> dict[str, Any]:
    """The worker of `mofang export gguf`."""
    kind = recipe.type.lower()
    if kind and kind not in CONVERTED and kind not in QUANTIZED and kind != AUTO:
        raise Invalid(
            "export.unknown_gguf_type",
            param="type",
            type=recipe.type,
            known=", ".join([AUTO, *CONVERTED, *sorted(QUANTIZED)]),
        )
    given = folder.find(recipe.model) if folder.find_run(recipe.model) is None else None
    keeps = given is not None and given.format == "gptq"
    mixes = bool(kind == AUTO or recipe.bits or recipe.size or recipe.types)
    if keeps and mixes:
        raise Invalid("export.gptq_no_mix", param="model", name=recipe.model)
    way = _keep if keeps else _mixed if mixes else _plain
    return way(recipe, run, kind, Reporter(run))


def _plain(recipe: Gguf, run: Run, kind: str, report: Reporter) -> dict[str, Any]:
    """All matrices as one type, or as llama-quantize mixes them."""
    kind = kind or DEFAULT
    quantize = None if kind in CONVERTED else toolchain.tool(settings.load().home, "llama-quantize")
    source = sources.find(recipe.model, run)
    stem = source.name.removesuffix("-hf")
    name = folder.free_name(recipe.name or f"{stem}-{kind}", overwrite=recipe.overwrite, run=run)
    tools = toolchain.converter(settings.load().home)
    with folder.aside(run) as target:
        file = target / f"{name}.gguf"
        if quantize is None:
            _convert(tools, source, file, kind, name, report)
        else:
            whole = target / "whole.gguf"
            _convert(tools, source, whole, "f16", name, report)
            told, weighed = _weighed(recipe, run, source, whole, report) if recipe.imatrix else ({}, [])
            command = [str(quantize), *weighed, str(whole), str(file), kind.upper()]
            _child(command, {}, file, int(folder.store().facts(source).parameters * 0.6), "quantize", report)
            whole.unlink()
            return _publish(recipe, run, source, file, kind, **told)
        return _publish(recipe, run, source, file, kind)


def _weighed(
    recipe: Gguf, run: Run, source: ModelRef, whole: Path, report: Reporter
) -> tuple[dict[str, Any], list[str]]:
    """What a manifest says of an importance matrix that was made beside `whole`, and the options that name it."""
    from mofang.export.mixed import worker as mixed  # brings torch, which takes seconds

    told = mixed.watch(recipe, run, source, whole, report)
    return told, ["--imatrix", str(whole.parent / mixed.IMPORTANCE)] if told else []


def _mixed(recipe: Gguf, run: Run, kind: str, report: Reporter) -> dict[str, Any]:
    """Each matrix as a type of its own."""
    from mofang.export.mixed import auto
    from mofang.export.mixed import worker as mixed

    source = sources.find(recipe.model, run)
    mixed.check(recipe)
    suffix = f"{recipe.bits:g}bit" if recipe.bits else recipe.size.lower().replace(" ", "") or kind or "mixed"
    wanted = recipe.name or f"{source.name.removesuffix('-hf')}-{suffix}"
    name = folder.free_name(wanted, overwrite=recipe.overwrite, run=run)
    tools = toolchain.converter(settings.load().home)
    with folder.aside(run) as target:
        whole, file = target / "whole.gguf", target / f"{name}.gguf"
        _convert(tools, source, whole, "f16", name, report)
        told = (auto if kind == AUTO else mixed).make(recipe, run, source, whole, file, report)
        whole.unlink()
        made = _publish(recipe, run, source, file, told.pop("type"), **told)
    return {**made, "bits_per_weight": told["bits_per_weight"], "predicted_kl": told.get("predicted_kl")}


def _keep(recipe: Gguf, run: Run, kind: str, report: Reporter) -> dict[str, Any]:
    """A GPTQ model: its quantized matrices as blocks of the same values, the others as `kind` says, or kept too."""
    source = folder.find(recipe.model)
    if kind and kind not in CONVERTED:
        raise Invalid(
            "export.gptq_no_requantize", param="type", name=source.name, type=kind, known=", ".join(CONVERTED)
        )
    types, n_matrices, n_weights = blocks(source)
    most = types.most_common(1)[0][0].lower()
    name = folder.free_name(recipe.name or f"{source.name}-{most}", overwrite=recipe.overwrite, run=run)
    tools = toolchain.converter(settings.load().home)
    with folder.aside(run) as target:
        file = target / f"{name}.gguf"
        need_disk(target, source.size_bytes * 3)  # the converter's temporary file beside the one it writes
        pre = load_tokenizer(source.path).cut_name()
        command = [
            sys.executable, str(KEEPER), str(tools), pre or "-", str(source.path), "--outtype", kind or "f16",
            "--outfile", str(file), "--model-name", name, "--use-temp-file", *(() if kind else ("--kept",)),
        ]  # fmt: skip
        environment = _ENVIRONMENT | {
            "PYTHONPATH": os.pathsep.join([str(tools / "gguf-py"), str(Path(mofang.__file__).parents[1])])
        }
        _child(command, environment, file, source.size_bytes, "convert", report, reads=source)
        shown = ", ".join(f"{each} × {n}" for each, n in types.most_common())
        run.note(say("export.gptq_kept", n=n_matrices, types=shown, rest=kind or say("export.gptq_rest_kept")))
        return _publish(recipe, run, source, file, most, kept={"weights": n_weights, "types": dict(types)})


def blocks(source: ModelRef) -> tuple[Counter[str], int, int]:
    """(how many matrices become which type of blocks, matrices, their weights). Raises Unreadable when one cannot."""
    types: Counter[str] = Counter()
    odd: list[tuple[str, str]] = []
    n_weights = 0
    config = gptq.config(source.path)
    for name, layer in gptq.layers(source.path):
        whole = layer.whole(config)
        n_weights += whole.size
        if len(whole) % lossless.BLOCK:
            odd.append((name, say("export.gptq_why_width", n=len(whole))))
            continue
        groups = layer.g_idx.reshape(-1, lossless.BLOCK)
        kind = lossless.fitting(int(whole.min()), int(whole.max()))
        if (groups != groups[:, :1]).any():
            odd.append((name, say("export.gptq_why_scattered")))
        elif kind is None:
            odd.append((name, say("export.gptq_why_range", low=int(whole.min()), high=int(whole.max()))))
        else:
            types[kind.name] += 1
    if odd:
        raise Unreadable("export.gptq_not_lossless", name=source.name, n=len(odd), tensor=odd[0][0], why=odd[0][1])
    return types, sum(types.values()), n_weights


def _publish(recipe: Gguf, run: Run, source: ModelRef, file: Path, kind: str, **more: Any) -> dict[str, Any]:
    tokenizer = load_tokenizer(source.path)
    checks = verify(file, tokenizer) | tried(file, tokenizer, run)
    made = folder.publish(
        file.parent, file.stem, format="gguf", kind=source.kind, run=run, parents=[folder.parent(source, "source")],
        runs=lineage(source), overwrite=recipe.overwrite, file=file.name, type=kind,
        recipe=source.manifest.get("recipe"), data=source.manifest.get("data"), checks=checks, tools=_tools(kind),
        **more,
    )  # fmt: skip
    shutil.rmtree(run.measured, ignore_errors=True)
    run.note(say("export.gguf_made", name=made.name, type=kind, size=f"{made.size_bytes / 1e6:.0f}"))
    return {"model": made.name, "path": str(made.path), "size_bytes": made.size_bytes, "type": kind}


def _tools(kind: str) -> dict[str, str]:
    """What made a file of that type: llama.cpp's converter, in torch, and its llama-quantize where that was run."""
    made = {**folder.tools("torch", "transformers"), "converter": f"{toolchain.PACKAGE} {toolchain.VERSION}"}
    if kind.lower() in QUANTIZED:
        made["llama-quantize"] = toolchain.named(settings.load().home)
    return made


def tried(file: Path, ours: Tokenizer, run: Run) -> dict[str, Any]:
    """Load the file as the engine will, and let it begin an answer. Raises Unreadable when it cannot."""
    try:
        found = library.load(library.find(settings.load())[0])
    except MissingSystem as error:
        run.note(say("export.not_tried", why=error.message()))
        return {}
    talk = ours.render([Message("user", TALK)], add_generation_prompt=True) if ours.chat_template else TALK
    with library.Model(found, file, n_ctx=TRIED_TOKENS) as model:
        said = list[int]()
        *_, rows = model.read(model.tokenize(talk)[: TRIED_TOKENS - TRIED])
        while len(said) < TRIED:
            if not np.isfinite(rows).all():
                raise Unreadable("export.check_no_numbers")
            likeliest = int(rows[-1].argmax())
            if likeliest in ours.end_ids:
                break
            said.append(likeliest)
            *_, rows = model.read([likeliest], go_on=True)
    return {"said": ours.decode(said)}


def _convert(tools: Path, source: ModelRef, file: Path, kind: str, name: str, report: Reporter) -> None:
    pre = load_tokenizer(source.path).cut_name()
    program = [str(CONVERTER), str(tools), pre] if pre else [str(tools / "convert_hf_to_gguf.py")]
    command = [
        sys.executable, *program, str(source.path), "--outtype", kind, "--outfile", str(file), "--model-name", name,
    ]  # fmt: skip
    environment = _ENVIRONMENT | {"PYTHONPATH": str(tools / "gguf-py")}
    expected = int(folder.store().facts(source).parameters * BITS[kind] / 8)
    need_disk(file.parent, expected)
    _child(command, environment, file, expected, "convert", report, reads=source)


def _child(
    command: list[str],
    environment: dict[str, str],
    file: Path,
    expected: int,
    stage: str,
    report: Reporter,
    *,
    reads: ModelRef | None = None,
) -> None:
    """Run one of llama.cpp's tools, its words into the run's log; progress is the growth of what it writes. It ends
    with us, also when we are killed.

    reads: its source, which is looked at meanwhile: it leaves a core free, and would write NaN as it is. Raises
    Unreadable where that is damaged."""
    child, ended = start_program(command, log=report.run.log, env=environment), threading.Event()
    with ThreadPoolExecutor(1) as one:
        looking = one.submit(_look, reads, ended)
        try:
            while child.poll() is None:
                if looking.done():
                    looking.result()
                written = file.stat().st_size if file.exists() else 0
                report(stage, min(written, expected), expected)
                time.sleep(POLL_S)
            looking.result()
        finally:
            ended.set()
            end_child(child)
    if child.returncode or not file.is_file():
        raise _failure(Path(command[1] if command[0] == sys.executable else command[0]).name, file, report.run)


def _look(source: ModelRef | None, ended: threading.Event) -> None:
    """Read every weight once, unless all has `ended`. Raises Unreadable."""
    for _ in shards.check(source.path) if source else ():
        if ended.is_set():
            return


def _failure(tool: str, file: Path, run: Run) -> MofangError:
    """What a tool's end means; it says itself why, in the log."""
    if "No space left on device" in run.tail(5):
        return NoSpace("export.disk_full", path=file.parent.parent, free=size(free_disk(file.parent)))
    return MofangError("export.tool_failed", tool=tool, log=run.log)
