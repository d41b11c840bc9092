"""A Hugging Face folder as a GGUF file, by llama.cpp's own converter; K-quants by its llama-quantize.

Our own writer would have to follow every change of llama.cpp; its converter, pinned, does. It runs as a child without
network. A run's adapter is merged first. What comes out must have our tokenizer's end and our template, or it is not
given its name. Source: llama.cpp convert_hf_to_gguf.py, tools/quantize.
"""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from mofang import settings
from mofang.engine import toolchain
from mofang.errors import Invalid, MofangError, Unreadable
from mofang.export import folder, merge
from mofang.models.base import ModelRef
from mofang.models.formats import gguf
from mofang.models.sources.base import need_disk
from mofang.models.store import lineage
from mofang.recipes.export import Gguf, Merge
from mofang.runs import Reporter, Run
from mofang.strings import say
from mofang.tokenizer import load as load_tokenizer

CONVERTED = ("f32", "f16", "bf16", "q8_0")
"""Types that the converter writes itself."""
BITS = {"f32": 32, "f16": 16, "bf16": 16, "q8_0": 8.5}
QUANTIZED = frozenset(name.lower() for name in gguf.FILE_TYPES.values()) - frozenset(CONVERTED)
POLL_S = 0.1
CONVERTER = Path(__file__).parent / "converter.py"
"""Runs llama.cpp's converter where we know how the tokenizer cuts text, and it may not."""
PROBE = "模坊 is a workshop（坊）for models，共 42 个。\n\n  don't 安装"
"""A text whose ids must be the same before and after."""


def run(recipe: Gguf, run: Run) -> dict[str, Any]:
    """The worker of `mofang export gguf`."""
    kind = recipe.type.lower()
    if kind not in CONVERTED and kind not in QUANTIZED:
        raise Invalid(
            "export.unknown_gguf_type",
            param="type",
            type=recipe.type,
            known=", ".join([*CONVERTED, *sorted(QUANTIZED)]),
        )
    quantize = None if kind in CONVERTED else toolchain.tool(settings.load().home, "llama-quantize")
    report = Reporter(run)
    source = _source(recipe, run)
    stem = source.name.removesuffix("-hf")
    name = folder.free_name(recipe.name or f"{stem}-{kind}", overwrite=recipe.overwrite)
    report("source", 0, 0, "")
    tools = toolchain.converter(settings.load().home)
    with folder.aside(run) as target:
        file = target / f"{name}.gguf"
        parameters = folder.store().facts(source).parameters
        if quantize is None:
            _convert(tools, source, file, kind, name, parameters, report)
        else:
            whole = target / "whole.gguf"
            _convert(tools, source, whole, "f16", name, parameters, report)
            _child(
                [str(quantize), str(whole), str(file), kind.upper()],
                {},
                file,
                int(parameters * 0.6),
                "quantize",
                report,
            )
            whole.unlink()
        checks = verify(file, source)
        made = folder.publish(
            target, name, format="gguf", kind=source.kind, run=run, parents=[folder.parent(source, "source")],
            runs=lineage(source), overwrite=recipe.overwrite, file=file.name, type=kind,
            recipe=source.manifest.get("recipe"), data=source.manifest.get("data"), checks=checks,
            tools={"converter": f"{toolchain.PACKAGE} {toolchain.VERSION}"},
        )  # fmt: skip
    run.note(say("export.gguf_made", name=made.name, type=kind, size=f"{made.size_bytes / 1e6:.0f}"))
    return {"model": made.name, "path": str(made.path), "size_bytes": made.size_bytes, "type": kind}


def verify(file: Path, source: ModelRef) -> dict[str, Any]:
    """Read the file back: its template, its end of an answer and a text's ids must be the source's. Raises Unreadable."""
    ours, theirs = load_tokenizer(source.path), load_tokenizer(file)
    if ours.chat_template != theirs.chat_template:
        raise Unreadable("export.template_lost", path=file)
    if ours.eos_id != theirs.eos_id:
        raise Unreadable("export.eos_differs", path=file, found=theirs.eos_id, wanted=ours.eos_id)
    if ours.encode(PROBE) != theirs.encode(PROBE):
        raise Unreadable("export.ids_differ", path=file, text=PROBE)
    return {"chat_template": "same", "eos_token_id": theirs.eos_id, "ids": "same"}


def _source(recipe: Gguf, run: Run) -> ModelRef:
    """The folder to convert: a model, the one that a run made, or what its adapter gives when it is merged (once)."""
    training = folder.find_run(recipe.model)
    if training is None:
        ref = folder.find(recipe.model)
        if ref.format != "hf":
            raise Invalid("export.not_convertible", param="model", name=ref.name, format=ref.format)
        return ref
    own = [ref for ref in folder.store().plain() if ref.format == "hf" and _came_of(ref, training)]
    if own:
        return own[0]
    made = folder.store().made_by(training.id, "hf")
    if made and any(parent.get("role") == "adapter" for parent in made.manifest.get("parents", ())):
        return made
    merged = merge.run(Merge(model=training.id), run)
    return folder.store().get(merged["model"])


def _came_of(ref: ModelRef, training: Run) -> bool:
    """Whether a model is what a training ended with: neither its imported base, nor made of what it made."""
    role = (ref.manifest.get("parents") or [{}])[0].get("role")
    return (ref.manifest.get("made_by") or {}).get("run") == training.id and role in ("base", "tokenizer")


def _convert(
    tools: Path, source: ModelRef, file: Path, kind: str, name: str, parameters: int, report: Reporter
) -> None:
    pre = load_tokenizer(source.path).cut_name()
    program = [str(CONVERTER), str(tools), pre] if pre else [str(tools / "convert_hf_to_gguf.py")]
    command = [
        sys.executable, *program, str(source.path), "--outtype", kind, "--outfile", str(file), "--model-name", name,
    ]  # fmt: skip
    environment = {"PYTHONPATH": str(tools / "gguf-py"), "HF_HUB_OFFLINE": "1", "PYTHONIOENCODING": "utf-8"}
    expected = int(parameters * BITS[kind] / 8)
    need_disk(file.parent, expected)
    _child(command, environment, file, expected, "convert", report)


def _child(
    command: list[str], environment: dict[str, str], file: Path, expected: int, stage: str, report: Reporter
) -> None:
    """Run one of llama.cpp's tools, its words into the run's log; progress is the growth of what it writes."""
    child = subprocess.Popen(command, env={**os.environ, **environment}, stdin=subprocess.DEVNULL, stdout=sys.stdout)
    try:
        while child.poll() is None:
            size = file.stat().st_size if file.exists() else 0
            report(stage, min(size, expected), expected)
            time.sleep(POLL_S)
    finally:
        if child.poll() is None:
            child.terminate()
            child.wait()
    if child.returncode or not file.is_file():
        raise MofangError(
            "export.tool_failed",
            tool=Path(command[1] if command[0] == sys.executable else command[0]).name,
            log=report.run.log,
        )
