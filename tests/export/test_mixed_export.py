"""`mofang export gguf --bits`, `--size`, `--types`: a file of that size that reads, the same once more, and bad input."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFReader
from safetensors.numpy import load_file, save_file

from mofang import settings
from mofang.engine import build
from mofang.engine.llama import library
from mofang.errors import Invalid, MofangError, NotFound, Unreadable
from mofang.export import gguf
from mofang.export.mixed import auto, imatrix, sensitivity, worker
from mofang.export.mixed.auto import Tried
from mofang.export.mixed.blocks import Blocks
from mofang.models.formats import gguf as headers
from mofang.models.store import ModelStore
from mofang.recipes import parse
from mofang.recipes.export import Gguf
from mofang.runs import Run, Stopped

Start = Callable[..., Run]
FEW = {"samples": 6, "length": 48}


@pytest.fixture
def text(tmp_path: Path) -> str:
    path = tmp_path / "texts.jsonl"
    path.write_text("\n".join(json.dumps({"text": f"第{n}段：" + "校准文本在这里，" * 9}) for n in range(9)))
    return str(path)


def make(start: Start, text: str, **fields: Any) -> tuple[Run, dict[str, Any]]:
    run = start("gguf", model="tiny", calibration=text, **{**FEW, **fields})
    return run, gguf.run(run.recipe(), run)


def test_a_size_is_kept_and_the_file_reads(
    converter: Path, base: Path, store: ModelStore, start: Start, text: str
) -> None:
    run, whole = make(start, text, type="q8_0", name="whole")
    size = int(0.8 * whole["size_bytes"])
    run, made = make(start, text, size=f"{size}B", name="small")
    small = store.get("small")
    assert 0.9 * size < small.path.stat().st_size <= size
    assert made["predicted_kl"] > 0 and small.manifest["type"].startswith("mixed ")
    assert small.manifest["calibration"]["n_sequences"] == 6
    assert not run.checkpoints.exists()
    mixed = {tensor.name: tensor.tensor_type.name for tensor in GGUFReader(small.path).tensors}
    assert len({type for name, type in mixed.items() if "norm" not in name}) > 1
    kept = {tensor.name: tensor for tensor in GGUFReader(store.get("whole").path).tensors}
    for tensor in GGUFReader(small.path).tensors:
        if "norm" in tensor.name:
            assert np.array_equal(tensor.data, kept[tensor.name].data)
    with library.Model(library.load(library.find(settings.load())[0]), small.path) as model:
        (rows,) = model.read([1, 2, 3, 4])
    assert np.isfinite(rows).all()
    found = imatrix.read(small.path.parent / worker.IMPORTANCE)
    assert set(found) == {name for name in mixed if "norm" not in name}


def test_the_same_choice_makes_the_same_file(
    converter: Path, base: Path, store: ModelStore, start: Start, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(start, text, bits=5.5, name="first")
    first = store.get("first").path
    monkeypatch.setattr(sensitivity, "weigh", None)  # nothing is measured again
    monkeypatch.setattr(sensitivity, "importances", None)
    make(start, text, types=str(first.parent / worker.CHOICE), name="second")
    second = store.get("second").path
    assert headers.read(second).tensors == headers.read(first).tensors
    offset = headers.read(first).data_offset
    assert second.read_bytes()[offset + 4096 :] == first.read_bytes()[offset + 4096 :] and offset
    assert (second.parent / worker.CHOICE).read_text() == (first.parent / worker.CHOICE).read_text()


def test_bits_are_an_average(converter: Path, base: Path, store: ModelStore, start: Start, text: str) -> None:
    for bits in (5, 7):
        _, made = make(start, text, bits=bits, name=f"b{bits}")
        assert bits - 0.5 < made["bits_per_weight"] <= bits + 0.01


def test_what_cannot_be_is_said_with_what_can(
    converter: Path, base: Path, store: ModelStore, start: Start, text: str
) -> None:
    run = start("gguf", model="tiny", bits=2, calibration=text, **FEW)
    with pytest.raises(Invalid) as raised:
        gguf.run(run.recipe(), run)
    assert raised.value.code == "size_impossible" and "64, 96" in raised.value.message()
    for fields, error in (
        ({"size": "many"}, Invalid),
        ({"types": "/nowhere"}, NotFound),
    ):
        run = start("gguf", model="tiny", calibration=text, **fields, **FEW)
        with pytest.raises(error):
            gguf.run(run.recipe(), run)
    assert {ref.name for ref in store.list()} == {"tiny"} and not list(store.folder.glob(".export-*"))


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("blk.9.attn_q.weight=q4_0", "types_unknown_tensor"),
        ("blk.0.attn_q.weight=q9", "types_unknown_type"),
        ("blk.0.attn_q.weight=q4_k", "types_misfit"),
    ],
)
def test_a_wrong_line_is_named(
    converter: Path, base: Path, start: Start, text: str, tmp_path: Path, line: str, code: str
) -> None:
    file = tmp_path / "types.txt"
    file.write_text(f"# a remark\n{line}\n")
    run = start("gguf", model="tiny", types=str(file), calibration=text, **FEW)
    with pytest.raises(Unreadable) as raised:
        gguf.run(run.recipe(), run)
    assert raised.value.code == code and "2" in raised.value.message()


def test_only_one_way_may_be_asked_for() -> None:
    for fields in ({"type": "q8_0", "bits": 4}, {"bits": 4, "size": "3MB"}, {"size": "3MB", "types": "x"}):
        with pytest.raises(MofangError):
            parse(Gguf, {"model": "x", **fields})


def test_a_stop_after_the_measurement_keeps_it(
    converter: Path, base: Path, store: ModelStore, start: Start, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = start("gguf", model="tiny", bits=5.5, calibration=text, name="kept", **FEW)
    choose = worker._choose

    def stopped(*given: Any) -> Any:
        raise Stopped

    monkeypatch.setattr(worker, "_choose", stopped)
    with pytest.raises(Stopped):
        gguf.run(run.recipe(), run)
    assert {ref.name for ref in store.list()} == {"tiny"} and not list(store.folder.glob(".export-*"))
    monkeypatch.setattr(worker, "_choose", choose)
    monkeypatch.setattr(sensitivity, "weigh", None)
    assert gguf.run(run.recipe(), run)["model"] == "kept"


def test_llama_quantize_is_given_the_importance(
    native: build.Build, converter: Path, base: Path, store: ModelStore, start: Start, text: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("PATH", f"{native.folder / 'bin'}:/usr/bin:/bin")
    _, made = make(start, text, type="q4_0", name="with")
    make(start, text, type="q4_0", name="without", imatrix=False)
    files = {name: {tensor.name: tensor.data for tensor in GGUFReader(store.get(name).path).tensors}
             for name in ("with", "without")}  # fmt: skip
    name = "blk.0.ffn_down.weight"
    assert made["type"] == "q4_0" and not np.array_equal(files["with"][name], files["without"][name])
    assert store.get("with").manifest["calibration"]["n_sequences"] == 6
    assert "calibration" not in store.get("without").manifest
    own = Blocks(library.load(library.find(settings.load())[0]))
    make(start, text, type="f16", name="whole")
    whole = {tensor.name: tensor.data for tensor in GGUFReader(store.get("whole").path).tensors}
    importance = imatrix.read(store.get("with").path.parent / worker.IMPORTANCE)
    assert np.array_equal(files["with"][name], own.encode("Q4_0", whole[name].astype(np.float32), importance[name]))


def test_a_file_that_says_no_numbers_gets_no_name(converter: Path, base: Path, store: ModelStore, start: Start) -> None:
    broken = load_file(base / "model.safetensors")
    broken["model.norm.weight"] *= float("nan")
    save_file(broken, base / "model.safetensors", metadata={"format": "pt"})
    run = start("gguf", model="tiny", type="f16", name="broken")
    with pytest.raises(MofangError):
        gguf.run(run.recipe(), run)
    assert {ref.name for ref in store.list()} == {"tiny"} and not list(store.folder.glob(".export-*"))


def test_auto_takes_the_fastest_that_is_close_enough(
    converter: Path, base: Path, store: ModelStore, start: Start, text: str
) -> None:
    _, made = make(start, text, type="auto", name="auto", max_kl=1e-9)
    ref = store.get("auto")
    tried = ref.manifest["tried"]
    assert [one["bits"] for one in tried] == sorted({one["bits"] for one in tried}) and len(tried) > 2
    assert all(one["predicted_per_second"] > 0 and one["prompt_per_second"] > 0 for one in tried)
    closest = min(tried, key=lambda one: one["mean_kl"])  # none is as close as that
    assert made["bits_per_weight"] == pytest.approx(closest["bits"], abs=0.01)
    assert sorted(path.suffix for path in ref.path.parent.iterdir()) == [".gguf", ".imatrix", ".json", ".txt"]


def test_the_fastest_within_the_limit_is_picked() -> None:
    slow, fast, far = (Path(name) for name in ("slow", "fast", "far"))
    tried = {slow: Tried(8, 80, 0.001, 1, 10), fast: Tried(6, 60, 0.02, 1, 20), far: Tried(4, 40, 0.2, 1, 30)}
    assert auto.pick(tried, 0.05) == fast and auto.pick(tried, 1) == far and auto.pick(tried, 1e-6) == slow


def test_a_trainings_own_checkpoints_stay(
    converter: Path, base: Path, store: ModelStore, start: Start, text: str
) -> None:
    """A training that ends with an export does it in its own run."""
    run = start("gguf", model="tiny", bits=5.5, calibration=text, name="made", **FEW)
    kept = run.checkpoints / "step-00001"
    kept.mkdir(parents=True)
    gguf.run(run.recipe(), run)
    assert kept.is_dir() and not run.measured.exists()
