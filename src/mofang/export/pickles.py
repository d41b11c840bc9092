"""Pickled weights (pytorch_model.bin), read only when somebody asks for it, and kept as safetensors from then on.

A pickle is a program: what torch.load does with `weights_only` builds tensors and plain values and refuses all else.
Memory holds what the system keeps of one mapped file.
"""

import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import torch

from mofang.errors import Unreadable
from mofang.export import shards
from mofang.export.values import NAMES, raw
from mofang.models.formats import hf
from mofang.models.sources.base import need_disk
from mofang.models.store import digest_of
from mofang.runs import Reporter

INDEX = "pytorch_model.bin.index.json"


def load(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a pickle, by name. Raises Unreadable for one that holds anything else, or is damaged."""
    try:
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # pickle, zipfile and torch have errors of their own
        raise Unreadable("export.pickle_refused", path=path, why=str(error).strip().split("\n")[0][:300]) from error
    if not isinstance(found, dict) or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in found.items()
    ):
        raise Unreadable("export.pickle_refused", path=path, why="not a dictionary of tensors")
    return found


def files(folder: Path) -> list[Path]:
    """The pickles of a model, as its index names them. Raises Unreadable for one that is missing."""
    if not (folder / INDEX).is_file():
        return sorted(folder.glob("pytorch_model*.bin"))
    named = sorted({Path(str(name)).name for name in (hf.read_json(folder / INDEX).get("weight_map") or {}).values()})
    missing = [name for name in named if not (folder / name).is_file()]
    if missing or not named:
        shown = missing[0] if missing else "-"
        raise Unreadable("models.shard_missing", path=folder, missing=shown, n=len(missing), count=len(named))
    return [folder / name for name in named]


def parent(folder: Path) -> dict[str, Any]:
    """How a manifest names a folder of pickles."""
    first = files(folder)[0]
    return {"role": "pickled", "name": folder.name, "format": "pickle", "path": str(folder), "sha256": digest_of(first)}


def write(folder: Path, target: Path, dtype: str, report: Reporter) -> dict[str, Any]:
    """The same model with its weights as safetensors; `dtype` "auto" keeps each tensor's type.

    Raises Unreadable for what is damaged, Unreadable for a tokenizer with more ids than the embedding has rows.
    """
    config = hf.read_json(folder / "config.json")
    paths = files(folder)
    plans: dict[str, dict[str, tuple[str, tuple[int, ...]]]] = {}
    seen: dict[tuple[int, int], str] = {}
    for file, path in zip(shards.names(len(paths)), paths, strict=True):
        plans[file] = {}
        held = load(path)
        for name, value in held.items():
            place = (value.untyped_storage().data_ptr(), value.storage_offset())
            if value.numel() and seen.setdefault(place, name) != name:
                continue  # one matrix under two names, as a tied head is pickled
            plans[file][name] = (NAMES[_type(value, dtype)], tuple(value.shape))
        seen = {}
    need_disk(target, sum(map(shards.n_bytes, plans.values())))
    done, total = 0, sum(map(shards.n_bytes, plans.values()))
    with shards.Writer(target, plans) as out:
        for path, (file, plan) in zip(paths, plans.items(), strict=True):
            values = load(path)
            for name, entry in plan.items():
                value = values[name].to(_type(values[name], dtype))
                if values[name].is_floating_point() and not bool(values[name].isfinite().all()):
                    raise Unreadable("export.not_finite", path=path, tensor=name)
                if value.is_floating_point() and not bool(value.isfinite().all()):
                    raise Unreadable("export.beyond_float16", path=path, tensor=name)
                out.write(name, raw(value))
                done += shards.n_bytes({name: entry})
                report("import", done, total, detail=f"{file} {name}")
    for path in shards.beside(folder, but=(INDEX,)):
        shutil.copy(path, target / path.name)
    if dtype != "auto":
        for key in {"torch_dtype", *({"dtype"} & config.keys())}:
            config[key] = dtype
        (target / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    shards.check_rows(target)
    return {"tensors": sum(map(len, plans.values())), "parameters": sum(
        torch.Size(shape).numel() for plan in plans.values() for _, shape in plan.values()
    )}  # fmt: skip


def _type(value: torch.Tensor, dtype: str) -> torch.dtype:
    return value.dtype if dtype == "auto" or not value.is_floating_point() else getattr(torch, dtype)
