"""TensorBoard's events are the metrics: each point once, also after a run was killed or stopped and resumed."""

import importlib.util
import struct
from collections import Counter
from collections.abc import Callable

import pytest
from stopping import stop_after
from tensorboardX.crc32c import crc32c
from tensorboardX.proto.event_pb2 import Event

from mofang.errors import MissingExtra
from mofang.runs import Run, Stopped
from mofang.train import job
from mofang.train.methods import sft

Training = Callable[..., Run]


def points(run: Run) -> list[tuple[str, int, float, float]]:
    """(tag, step, value, time) of every scalar, read record by record, as TensorBoard does."""
    found = []
    for path in sorted((run.folder / "tensorboard").iterdir()):
        raw = path.read_bytes()
        while raw:
            (length,) = struct.unpack("<Q", raw[:8])
            data = raw[12 : 12 + length]
            checked = crc32c(data)
            masked = (((checked >> 15) | (checked << 17)) + 0xA282EAD8) & 0xFFFFFFFF
            assert struct.unpack("<I", raw[12 + length : 16 + length]) == (masked,)
            raw = raw[16 + length :]
            event = Event.FromString(data)
            found += [(one.tag, event.step, one.simple_value, event.wall_time) for one in event.summary.value]
    return found


def wanted(run: Run) -> list[tuple[str, int, float]]:
    return [
        (f"eval/{name[5:]}" if name.startswith("eval_") else f"train/{name}", row["step"], value)
        for row in run.metrics()
        for name, value in row.items()
        if name != "step"
    ]


def check(run: Run) -> None:
    got = points(run)
    assert [(tag, step) for tag, step, _, _ in got] == [(tag, step) for tag, step, _ in wanted(run)]
    assert [value for _, _, value, _ in got] == pytest.approx([value for _, _, value in wanted(run)], rel=1e-6)
    assert [time for *_, time in got] == sorted(time for *_, time in got)
    assert max(Counter((tag, step) for tag, step, _, _ in got).values()) == 1


def test_the_events_are_the_metrics(training: Training) -> None:
    run = training(tensorboard=True)
    sft.run(run.recipe(), run)
    check(run)
    assert {"train/loss", "train/learning_rate", "eval/loss", "eval/bits_per_byte"} <= {tag for tag, *_ in points(run)}
    plain = training()
    sft.run(plain.recipe(), plain)
    assert not (plain.folder / "tensorboard").exists()


def test_no_point_is_there_twice_after_a_run_went_on(training: Training) -> None:
    run = training(tensorboard=True, epochs=4, save_every=3)
    stop_after(run, 2)
    with pytest.raises(Stopped):
        sft.run(run.recipe(), run)
    check(run)
    (run.folder / "stop").unlink()
    with (run.folder / "metrics.jsonl").open("a") as file:  # measured after the checkpoint, then killed
        file.write('{"step": 3, "loss": 9.0}\n')
    resumed = Run(run.folder)
    sft.run(resumed.recipe(), resumed)
    check(resumed)
    assert max(step for _, step, _, _ in points(resumed)) == 8


def test_without_its_library_it_is_refused_before_anything_is_loaded(
    training: Training, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "tensorboardX" else find(name))
    monkeypatch.setattr(job, "_model", lambda *_: pytest.fail("loaded"))
    run = training(tensorboard=True)
    with pytest.raises(MissingExtra) as raised:
        sft.run(run.recipe(), run)
    assert "mofang[tensorboard]" in raised.value.hint()
