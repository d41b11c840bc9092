"""Checkpoints in an object store: whole or not there, found by another machine, one run's at a time, no keys anywhere."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from launching import measured
from safetensors.torch import load_file
from stopping import stop_after

import s3_stand_in
from mofang.errors import Conflict, Invalid, MofangError, Unreadable
from mofang.launch.storage import Storage
from mofang.models.store import ModelStore
from mofang.recipes import launcher_of, parse
from mofang.recipes.sft import Sft
from mofang.runs import Run, Runs, Stopped
from mofang.settings import Settings
from mofang.train.methods import sft

FIELDS = {"epochs": 6, "save_every": 2, "keep_checkpoints": 2, "learning_rate": 2e-3, "dtype": "float32"}
Training = Callable[..., Run]


class Kept(Run):
    """A run whose checkpoints are kept in a storage as well, as a worker of Ray's keeps them."""

    def __init__(self, folder: Path, storage: Storage) -> None:
        super().__init__(folder)
        self.storage = storage

    def saved(self, checkpoint: Path) -> None:
        self.storage.put(checkpoint, self)


def begin(run: Run, uri: str) -> Kept:
    """The run, having taken its turn there."""
    recipe = run.recipe()
    storage = Storage(uri, recipe, recipe.keep_checkpoints)  # type: ignore[attr-defined]
    storage.take(run)
    return Kept(run.folder, storage)


def learn(run: Kept) -> None:
    sft.run(run.recipe(), run)  # type: ignore[arg-type]


def stopped_at(run: Run, uri: str, step: int) -> Kept:
    kept = begin(run, uri)
    stop_after(kept, step)
    with pytest.raises(Stopped):
        learn(kept)
    return kept


def notes(run: Run) -> str:
    return "\n".join(run.state().notes)


def there(kept: Kept) -> list[str]:
    return sorted(kept.storage._names())


@pytest.fixture
def elsewhere(tmp_path: Path, tiny_folder: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> Training:
    """elsewhere(field=value…) → the same training on a machine with an empty home, where data lie in another place."""
    home = tmp_path / "another" / "home"
    home.mkdir(parents=True)
    moved = home.parent / "same.jsonl"
    moved.write_bytes(data.read_bytes())

    def make(**fields: Any) -> Run:
        monkeypatch.setenv("MOFANG_HOME", str(home))
        name = "tiny"
        if not (home / "models").exists():
            name = ModelStore(Settings(home=home)).add(tiny_folder, name).name
        small = {"batch_size": 4, "lora_rank": 4, "eval_fraction": 0.2, **FIELDS}
        return Runs(home).create(parse(Sft, {"base": name, "data": [str(moved)], **small, **fields}))

    return make


def test_a_run_goes_on_elsewhere_as_if_nothing_had_happened(
    training: Training, elsewhere: Training, storage: str, home: Path
) -> None:
    whole, first = training(**FIELDS), training(**FIELDS)
    sft.run(whole.recipe(), whole)
    kept = stopped_at(first, storage, 5)
    assert [name for name in there(kept) if name.endswith(".json")] == ["step-000004.json", "step-000005.json"]
    assert len(there(kept)) == 4, "older ones are gone, as in the run's folder"
    second = begin(elsewhere(), storage)
    learn(second)
    assert "取回检查点 step-000005" in notes(second)
    for name in ("loss", "eval_loss", "grad_norm", "step"):
        assert measured(second, name) == measured(whole, name), "those before it, and those after it, to the last bit"
    ours, theirs = (load_file(run.out / "adapter_model.safetensors") for run in (second, whole))
    assert all((ours[name] == theirs[name]).all() for name in theirs)
    secret = s3_stand_in.KEYS["AWS_SECRET_ACCESS_KEY"].encode()
    files = [path for each in (home, second.folder) for path in each.rglob("*") if path.is_file()]
    assert len(files) > 10 and not any(secret in path.read_bytes() for path in files)


@pytest.mark.parametrize("last", ["optimizer.safetensors", "step-000004.json"])
def test_who_ends_while_sending_leaves_the_one_before(
    training: Training, elsewhere: Training, storage: str, monkeypatch: pytest.MonkeyPatch, last: str
) -> None:
    class Killed(BaseException):
        pass

    first = begin(training(**FIELDS), storage)
    send, write = first.storage._send, first.storage._write

    def until(name: str) -> None:
        if "step-000004" in name and name.endswith(last):
            raise Killed

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(first.storage, "_send", lambda path, name: until(name) or send(path, name))
        patched.setattr(first.storage, "_write", lambda name, value: until(name) or write(name, value))
        learn(first)
    assert len(measured(first, "loss")) == 4
    half = [name for name in there(first) if "step-000004-" in name]
    assert len(half) == 1 and "step-000004.json" not in there(first)
    second = begin(elsewhere(), storage)
    assert "step-000004 没有传完" in notes(second) and "取回检查点 step-000002" in notes(second)
    assert len(measured(second, "loss")) == 2, "the metrics of that step"
    stop_after(second, 3)
    with pytest.raises(Stopped):
        learn(second)
    assert half[0] not in there(second)


def test_a_damaged_one_is_not_used_and_said(training: Training, elsewhere: Training, storage: str) -> None:
    kept = stopped_at(training(**FIELDS), storage, 5)
    files, root = kept.storage.files, kept.storage.root

    def damage(step: str) -> None:
        told = kept.storage._read(f"{step}.json")
        with files.open_output_stream(f"{root}/{told['folder']}/optimizer.safetensors") as file:
            file.write(b"\0" * told["files"]["optimizer.safetensors"]["size_bytes"])

    damage("step-000005")
    second = begin(elsewhere(), storage)
    assert "optimizer.safetensors 不完整" in notes(second) and "step-000004 继续" in notes(second)
    assert [path.name for path in second.checkpoints.iterdir()] == ["step-000004"]
    damage("step-000004")
    with pytest.raises(Unreadable) as raised:
        begin(elsewhere(), storage)
    assert raised.value.code == "storage_broken", "nothing is begun anew in silence"


def test_nothing_is_written_outside_of_the_run(training: Training, elsewhere: Training, storage: str) -> None:
    kept = stopped_at(training(**FIELDS), storage, 3)
    told = kept.storage._read("step-000003.json")
    told["files"]["../../evil"] = told["files"]["run/../../evil"] = told["files"]["state.json"]
    kept.storage._write("step-000003.json", told)
    kept.storage._write(f"{told['folder']}/../../evil", {})
    second = begin(elsewhere(), storage)
    assert "取回检查点 step-000003" in notes(second)
    assert not list(second.folder.parents[1].rglob("evil*"))


def test_another_training_is_not_gone_on_with(training: Training, storage: str) -> None:
    begin(training(**FIELDS), storage)
    with pytest.raises(Conflict) as raised:
        begin(training(**{**FIELDS, "learning_rate": 1e-3, "seed": 1}), storage)
    assert raised.value.values["fields"] == "learning_rate, seed"


def test_other_examples_have_other_places(training: Training, elsewhere: Training, storage: str, data: Path) -> None:
    stopped_at(training(**FIELDS), storage, 3)
    second = begin(elsewhere(), storage)
    Path(second.recipe().data[0]).write_text(  # type: ignore[attr-defined]
        "\n".join(json.dumps({"instruction": f"别的 {n}", "output": "别的"}) for n in range(9)), encoding="utf-8"
    )
    with pytest.raises(Conflict) as raised:
        learn(second)
    assert raised.value.code == "data_changed"


def test_who_lost_its_turn_is_told_and_writes_nothing_more(
    training: Training, elsewhere: Training, storage: str
) -> None:
    """The first machine was thought to be gone."""
    first = begin(training(**FIELDS), storage)
    second = begin(elsewhere(), storage)
    with pytest.raises(Conflict) as raised:
        learn(first)
    assert raised.value.code == "storage_taken" and second.id in raised.value.message("en")
    assert there(second) == [] and [path.name for path in first.checkpoints.iterdir()] == ["step-000002"]


def test_keys_have_no_place_in_an_address(storage: str) -> None:
    for uri in (
        "s3://AKID:hunter2@bucket/prefix", "s3://bucket/prefix?secret_key=hunter2", "s3://bucket?session_token=hunter2",
    ):  # fmt: skip
        with pytest.raises(Invalid) as raised:
            launcher_of({"launcher": "ray", "storage": uri})
        for lang in ("zh", "en"):
            assert "AWS_SECRET_ACCESS_KEY" in raised.value.message(lang) and "hunter2" not in raised.value.message(lang)
    for uri in ("gs://bucket", "/mnt/shared", "s3:///prefix", "s3://bucket?anonymous=1"):
        with pytest.raises(Invalid) as raised:
            launcher_of({"launcher": "ray", "storage": uri})
        assert "s3://桶/前缀" in raised.value.message("zh")
    assert launcher_of({"launcher": "ray", "storage": storage}).storage == storage  # type: ignore[attr-defined]


def test_a_place_that_cannot_be_reached_is_told(training: Training, storage: str, s3: s3_stand_in.Store) -> None:
    for uri in (storage.replace(s3.place, "127.0.0.1:1"), storage.replace("s3://bucket", "s3://no-such-bucket")):
        with pytest.raises(MofangError) as raised:
            begin(training(**FIELDS), uri)
        assert raised.value.code == "storage_unreachable" and "AWS_ACCESS_KEY_ID" in raised.value.hint("en")
